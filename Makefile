# Everything runs from a fresh clone; `make setup` is a prerequisite of all and does nothing when nothing changed.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.10; do $$p -c "" 2>/dev/null && echo $$p && exit; done; echo python3)
BIN := .venv/bin
STAMP := .venv/.installed
HELD_OUT_SEED := 67108864
PRESET ?= cpu
SHELL := bash
.SHELLFLAGS := -o pipefail -ec

.PHONY: help setup demo loop test check test-gpu serve bench proof chaos mini-refresh picture clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## install into .venv (about 3 minutes the first time)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v < (3, 14) else "Sakuga needs Python 3.10 to 3.13, %s is %d.%d; try: make setup PYTHON=python3.11" % (sys.executable, *v))'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)  ## render six small videos as a submitted Ray job
	$(BIN)/sakuga demo

loop: $(STAMP)  ## from nothing to a faster profile in a running farm, and its rollback (12 minutes on two cores)
	$(BIN)/sakuga loop

test: check  ## everything that needs no GPU
	$(BIN)/python -m pytest -q -m "not gpu and not slow" --ignore=tests/unit

check: $(STAMP)  ## lint, types, import rules, unit tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -q -m "not gpu and not slow" tests/unit

test-gpu: $(STAMP)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -q -m gpu

serve: $(STAMP)  ## the farm on this machine: HTTP API, job store, lanes with Wan-mini
	$(BIN)/sakuga serve

bench: $(STAMP)  ## measure, and write benchmarks/results/
	$(BIN)/python benchmarks/first_light.py --json | tail -n 1 > benchmarks/results/first_light.json.new
	$(BIN)/python benchmarks/mini_quality.py --count 16 --seed $(HELD_OUT_SEED) --sheet docs/sheets --json | tail -n 1 > benchmarks/results/mini_quality.json.new
	$(BIN)/python benchmarks/engine.py --json | tail -n 1 > benchmarks/results/engine.json.new
	$(BIN)/python benchmarks/overhead.py --json | tail -n 1 > benchmarks/results/overhead.json.new
	$(BIN)/python benchmarks/burst.py --json | tail -n 1 > benchmarks/results/burst.json.new
	$(BIN)/python benchmarks/dispatch.py --json | tail -n 1 > benchmarks/results/dispatch.json.new
	$(BIN)/python benchmarks/fewstep.py --count 8 --seed $(HELD_OUT_SEED) --sheet docs/sheets --json | tail -n 1 > benchmarks/results/fewstep.json.new
	$(BIN)/python benchmarks/lora_cpu.py --sheet docs/sheets/lora_cpu.png --json | tail -n 1 > benchmarks/results/lora_cpu.json.new
	$(BIN)/python benchmarks/sweep.py --json | tail -n 1 > benchmarks/results/sweep.json.new
	$(BIN)/python benchmarks/loop.py --json | tail -n 1 > benchmarks/results/loop.json.new
	for f in first_light mini_quality engine overhead burst dispatch fewstep lora_cpu sweep loop; do mv benchmarks/results/$$f.json.new benchmarks/results/$$f.json; done

proof: $(STAMP)  ## slow proofs
	$(BIN)/python -m pytest -q -m "slow and not gpu"

chaos: $(STAMP)  ## 90 s in which lanes and the store are killed and storage fails; then nothing may be lost (SEED=)
	$(BIN)/python tests/chaos.py --seconds 90 $(if $(SEED),--seed $(SEED))

mini-refresh: $(STAMP)  ## after new base weights: LoRA, card, result files, contact sheets, README picture (PRESET=cpu|gpu)
	$(BIN)/python -m sakuga.training.mini cache --world fairy --preset $(PRESET)
	$(BIN)/python -m sakuga.training.mini fairy --preset $(PRESET)
	$(BIN)/python -m sakuga.training.mini card
	$(MAKE) bench picture

picture: $(STAMP)  ## the moving picture of the README, from a fresh demo
	$(BIN)/sakuga demo --out out/picture
	$(BIN)/python docs/make_picture.py out/picture docs/first_light.webp

clean:  ## caches and build outputs, not .venv, not out/
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache src/*.egg-info
	find src tests jobs benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
