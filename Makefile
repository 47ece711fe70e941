# The only entry points anyone needs. Each sets up .venv by itself: on a fresh machine `make demo` is enough.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := src tests benchmarks examples docs
# The tests of how the code is written: `make check` runs them, `make test` only where they are named.
HOUSE := tests/test_house.py tests/test_public_names.py
# Tests start many programs: what one has compiled, the next need not.
test: export PYTHONDONTWRITEBYTECODE :=
# Memory that was freed is kept (glibc): a tenth of the time went into asking for it anew.
test prove: export MALLOC_MMAP_THRESHOLD_ := 1073741824
test prove: export MALLOC_TRIM_THRESHOLD_ := 4294967296

.PHONY: help demo test check prove fuzz bench bench-rows bench-growth bench-gpu docs figures

help:
	@echo "make demo    set up, train a small RetinaNet on the embedded data, evaluate, draw: runs/demo/report.html"
	@echo "make test    the tests (long proofs left out; no network but loopback)"
	@echo "make check   style, types, layers, sizes, names of the code"
	@echo "make prove   the long proofs: kills, mutations, overfits"
	@echo "make fuzz SECONDS=60    open damaged files of every kind, each read or refused: failures in build/fuzz"
	@echo "make bench DATA=folder WEIGHTS=file    side by side with torchvision: results in benchmarks/results/"
	@echo "make bench-rows    every operation beside torchvision's, interleaved; bench-growth: how time and memory grow"
	@echo "make bench-gpu    checks, operations, networks on one GPU in 8 minutes (without one: small, on the CPU)"
	@echo "make docs    build the documentation as a site, every link checked: build/docs/index.html"
	@echo "make figures    redraw the images in docs/, and write the table of focaldet models anew"

demo: $(INSTALLED)
	$(RUN)/focaldet demo $(DEMO)

test: $(INSTALLED)
	$(RUN)/python -m pytest -m "not prove" -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder \
		$(addprefix --ignore=,$(if $(TESTS),,$(HOUSE))) $(TESTS)

check: $(INSTALLED)
	$(RUN)/ruff check $(SOURCES)
	$(RUN)/ruff format --check $(SOURCES)
	$(RUN)/mypy --strict
	$(RUN)/mypy --strict examples/03_new_detector.py
	$(RUN)/lint-imports --no-cache
	$(RUN)/python -m pytest $(HOUSE)

prove: $(INSTALLED)
	$(RUN)/python -m pytest -m prove --timeout=0 $(TESTS)

fuzz: $(INSTALLED)
	$(RUN)/python -m tests.fuzz.run --seconds $(or $(SECONDS),60) $(FUZZ)

bench: $(INSTALLED)
	@test -n "$(DATA)" && test -n "$(WEIGHTS)" || { echo "make bench DATA=folder/of/bccd WEIGHTS=mobilenet_v2.safetensors"; exit 2; }
	$(RUN)/python benchmarks/steps.py --weights "$(WEIGHTS)"
	$(RUN)/python benchmarks/bccd.py --data "$(DATA)" --weights "$(WEIGHTS)"

bench-rows: $(INSTALLED)
	$(RUN)/python benchmarks/run.py

bench-growth: $(INSTALLED)
	$(RUN)/python benchmarks/growth.py

bench-gpu: $(INSTALLED)
	$(RUN)/python benchmarks/gpu.py

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --quiet
	@echo "look at  build/docs/index.html"

figures: $(INSTALLED)
	$(RUN)/python docs/list_detectors.py
	$(RUN)/python docs/draw_networks.py
	$(RUN)/python docs/draw_figures.py

# pip runs again only when what it installs from has changed.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "focaldet needs Python 3.11 to 3.13: make PYTHON=python3.12 ..."; exit 2; }
	@test -x $(RUN)/pip || $(PYTHON) -m venv --clear $(VENV) \
		|| { echo "no virtual environment could be made: on Debian, install python3-venv"; exit 2; }
	@echo "installing what constraints.txt names, torch among it: some minutes, once"
	$(RUN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
