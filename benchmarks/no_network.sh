#!/usr/bin/env bash
# Every call of connect that the commands make, on whole and hostile files; exit status 1 if one is to the internet.
#   benchmarks/no_network.sh WEIGHTS IMAGES DATA    (needs strace; with unshare also without any network)
set -u
run=${PYTHON:-.venv/bin/python} weights=$1 images=$2 data=$3
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
cut=""; unshare -rn true 2>/dev/null && cut="unshare -rn"
bad=0
watch() {
  name=$1; shift
  $cut strace -f -qq -e trace=connect -o "$folder/trace" "$@" >"$folder/out" 2>&1; status=$?
  count=$(grep -cE 'sa_family=AF_INET6?' "$folder/trace")
  printf '%-28s status %s, sockets to the internet %s\n' "$name" "$status" "$count"
  [ "$count" = 0 ] || { bad=1; grep -E 'AF_INET' "$folder/trace" | head -3; }
}
focaldet="$run -m focaldet"
watch import "$run" -c 'import focaldet; focaldet.build'
watch check $focaldet check "$data" --model yolov2_tiny --size 64
watch train $focaldet train "$data" --model yolov2_tiny --size 64 --epochs 1 --batch-size 4 --device cpu --out "$folder/run"
watch eval $focaldet eval "$folder/run" --data "$data" --device cpu
for file in onnx:model.onnx openvino:model.xml torch:model.pt2; do
  watch "export ${file%:*}" $focaldet export "$folder/run" --format "${file%:*}" --out "$folder/${file#*:}"
done
watch "predict onnx" $focaldet predict "$folder/model.onnx" "$images" --out "$folder/drawn"
watch predict $focaldet predict "$weights" "$images" --out "$folder/drawn" --size 64 --device cpu
"$run" - "$folder" <<'P'
import sys
from pathlib import Path
from tests import hostile
for number, (write, _) in enumerate(list(hostile.NAMES.values())[:4]):
    path = Path(sys.argv[1]) / f"hostile{number}"
    path.mkdir()
    write(path)
P
for file in "$folder"/hostile*/w.safetensors; do
  watch "predict $(basename "$(dirname "$file")")" $focaldet predict "$file" "$images" --out "$folder/drawn"
done
# The tests use loopback alone; TESTS names fewer of them.
strace -f -qq --seccomp-bpf -e trace=connect -o "$folder/trace" "$run" -m pytest -q -m "not prove" -n auto \
  --dist loadfile ${TESTS:-} >"$folder/out" 2>&1; status=$?
count=$(grep -E 'sa_family=AF_INET6?' "$folder/trace" | grep -cvE '127\.0\.0\.1|"::1"')
printf '%-28s status %s, sockets to the internet %s\n' tests "$status" "$count"
[ "$count" = 0 ] || bad=1
exit $bad
