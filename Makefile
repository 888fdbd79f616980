# Everything happens inside .venv; only `make test-system` touches what is outside this folder.
PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
export OMP_WAIT_POLICY ?= passive

.PHONY: setup test test-system lint demo clean

setup: .venv/installed
.venv/installed: requirements.txt requirements-export.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; run: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $(PIP_ARGS) -r requirements-dev.txt
	@touch $@

# One thread per process and a process per core: small tensors gain nothing from more.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

# Tests that need compilers, an emulator, ncnn for C++, TensorRT and a browser: installs these, and builds ncnn once into ~/.cache.
test-system: setup
	tests/system/run.sh

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: setup
	$(BIN)/python slim.py --preset quick --cfg yolov5n.yaml --optimizer adamw --lr0 0.003 --data data/bccd.yaml \
	  --hyp data/hyp/cells.yaml --target speedup=2 --project runs/demo

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
