# `make demo` and `make test` set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# pip shows its progress to a terminal; in a log it is silent unless it fails.
INSTALL = [ -t 1 ] || quiet=--quiet; $(BIN)/pip install $$quiet --constraint constraints.txt
# One thread each: two processes share two cores, and their models are tiny.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadgroup
NATIVE := $(wildcard workers/kernels/*.cpp workers/kernels/*.h)

.PHONY: demo test test-long fidelity check wheel clean

demo: $(READY)
	$(BIN)/potluck demo

test: $(READY)
	$(PYTEST) -m "not long"

# More examples and larger ones, for a night.
test-long: $(READY)
	$(PYTEST) -m long

# Predictions beside the runtime's times; on a busy machine it ends after five minutes and judges nothing.
fidelity: $(READY)
	$(BIN)/python -m benchmarks.fidelity.gate

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The kernels compiled, in dist/: for boxes of this system and processor family, which then need no compiler.
wheel: $(READY)
	$(BIN)/pip wheel --no-build-isolation --no-deps --wheel-dir dist .

$(READY): pyproject.toml constraints.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "potluck needs Python 3.11 or newer; '$(PYTHON)' is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@command -v $${CXX:-c++} >/dev/null || \
	  { echo "potluck builds its kernels with a C++ compiler; none found. Install g++ or set CXX." >&2; exit 2; }
	@echo "Setting up $(VENV), once: 1 of 3, an empty environment (seconds)"
	@$(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV): 2 of 3, what builds the kernels (seconds)"
	@$(INSTALL) setuptools
	@echo "Setting up $(VENV): 3 of 3, torch, Ray and the rest, then the kernels (some minutes; where torch" \
	  "brings CUDA along, 3 GB to download)"
	@$(INSTALL) --no-build-isolation --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info workers/kernels/*.so
