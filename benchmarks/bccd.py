"""focaldet beside the peer on a real Pascal VOC set: train → val over several seeds, interleaved, one process for each.

python benchmarks/bccd.py --data bccd --weights mobilenet_v2.safetensors --seeds 0 1 2
"""

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import write_result
from peer_torchvision import FORMS

HERE = Path(__file__).parent
MODEL = "retinanet_mobilenet_v2_fpn"


def run_ours(chosen: argparse.Namespace, *, seed: int, folder: Path) -> dict[str, Any]:
    """One training by the command, and the numbers that its run folder holds."""
    out = folder / f"ours_seed{seed}"
    command = [sys.executable, "-m", "focaldet", "train", "--data", chosen.data, "--model", MODEL]
    command += ["--weights", chosen.weights, "--epochs", chosen.epochs, "--size", chosen.size]
    command += ["--batch-size", chosen.batch_size, "--seed", seed, "--out", out, *chosen.flags]
    subprocess.run([str(part) for part in command], check=True)
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    last = [row for row in rows if row["kind"] == "evaluation"][-1]
    events = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    seconds = next(event["seconds_training"] for event in events if event["event"] == "finished")
    return {"seed": seed, "seconds": seconds, "ap": float(last["ap"]), "ap50": float(last["ap50"])}


def run_peer(chosen: argparse.Namespace, *, form: str, seed: int, folder: Path) -> dict[str, Any]:
    """One training by the peer's script, and its result file."""
    command = [sys.executable, HERE / "peer_torchvision.py", "--data", chosen.data, "--weights", chosen.weights]
    command += ["--form", form, "--seed", seed, "--epochs", chosen.epochs, "--size", chosen.size]
    command += ["--batch-size", chosen.batch_size, "--anchor-px", chosen.anchor_px, "--out", folder]
    subprocess.run([str(part) for part in command], check=True)
    result: dict[str, Any] = json.loads((folder / f"peer_{chosen.data.name}_{form}_seed{seed}.json").read_text())
    return {name: result[name] for name in ("seed", "seconds", "ap", "ap50")}


def summary(runs: list[dict[str, Any]]) -> dict[str, float]:
    """Means over the seeds, the least seconds too."""
    means = {name: statistics.mean(run[name] for run in runs) for name in ("ap", "ap50", "seconds")}
    return {**means, "least_seconds": min(run["seconds"] for run in runs)}


def main() -> None:
    """Train everything in turn, print the means and the ratio of seconds, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Pascal VOC folder with splits train and val")
    parser.add_argument("--weights", type=Path, required=True, help="MobileNetV2 in torchvision's key names")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=list(FORMS), help="forms of the peer")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--size", type=int, default=320, help="long side in pixels")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--peer-seeds", type=int, default=1, help="how many of the seeds the peer is trained with")
    parser.add_argument("--anchor-px", type=int, default=16, help="smallest anchor of the peer; 32 is torchvision's")
    parser.add_argument("--out", type=Path, default=None, help="folder of the result file")
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="more flags for focaldet train")
    chosen = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {"focaldet": [], **{f"torchvision {form}": [] for form in chosen.forms}}
    with tempfile.TemporaryDirectory() as folder:
        for place, seed in enumerate(chosen.seeds):
            runs["focaldet"].append(run_ours(chosen, seed=seed, folder=Path(folder)))
            for form in chosen.forms if place < chosen.peer_seeds else ():
                result = run_peer(chosen, form=form, seed=seed, folder=Path(folder))
                runs[f"torchvision {form}"].append(result)
    means = {name: summary(result) for name, result in runs.items()}
    for name, mean in means.items():
        ratio = means["focaldet"]["seconds"] / mean["seconds"]
        numbers = f"AP {100 * mean['ap']:.1f}  AP50 {100 * mean['ap50']:.1f}  {mean['seconds']:.0f} s"
        print(f"{name:18} {numbers}  focaldet / this: {ratio:.2f} of the seconds")
    names = ("epochs", "size", "batch_size", "anchor_px", "flags")
    settings = {name: getattr(chosen, name) for name in names}
    print(write_result(chosen.data.name, {"settings": settings, "means": means, "runs": runs}, folder=chosen.out))


if __name__ == "__main__":
    main()
