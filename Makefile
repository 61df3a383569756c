# `make demo` and `make test` set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# pip shows its progress to a terminal; in a log it is silent unless it fails.
INSTALL = [ -t 1 ] || quiet=--quiet; $(BIN)/pip install $$quiet --constraint constraints.txt
NATIVE := $(wildcard workers/kernels/*.cpp workers/kernels/*.h)

.PHONY: demo test check clean

demo: $(READY)
	$(BIN)/potluck demo

test: $(READY)
	$(BIN)/python -m pytest -m "not alone" --numprocesses 2 --dist loadgroup
	$(BIN)/python -m pytest -m alone

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

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
