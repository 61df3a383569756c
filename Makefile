# `make demo` and `make test` set up .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# pip shows its progress to a terminal; in a log it is silent unless it fails.
INSTALL = [ -t 1 ] || quiet=--quiet; $(BIN)/pip install $$quiet --constraint constraints.txt
# One thread each, since their models are tiny. Three processes keep two cores busy, since some tests wait. Python
# keeps what it compiles, since a hundred processes import the same modules.
PYTEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 3 --dist loadgroup --no-loadscope-reorder
NATIVE := $(wildcard workers/kernels/*.cpp workers/kernels/*.h workers/kernels/gpu/*.h workers/memory/*.c transport/*.c \
  orchestrator/model/*.c orchestrator/scheduling/*.cpp orchestrator/scheduling/*.h)

.PHONY: demo test card test-long launcher launcher-short soak fidelity check neon avx512 wheel clean

demo: $(READY)
	$(BIN)/potluck demo

test: $(READY)
	$(PYTEST) -m "not long and not card"

# Of what runs on graphics cards: compiled for the newest, all forms of weights, the benchmark's code.
card: $(READY)
	$(PYTEST) -m "card and not long" tests/workers/gpu tests/workers/probe tests/orchestrator/gpu \
		tests/orchestrator/test_hybrid.py tests/benchmarks

# More examples and larger ones, for a night.
test-long: $(READY)
	$(PYTEST) -m "long or hypothesis" --hypothesis-profile long

# Half an hour of random failures; the text must stay right, memory and descriptors flat.
soak: $(READY)
	$(BIN)/python -m benchmarks.soak

# Clusters of hosts on this machine, in network namespaces: Ray's launcher, ours, and what others hear of it.
launcher: $(READY)
	$(BIN)/python -m pytest --numprocesses 0 tests/launcher tests/security tests/faults/test_hosts.py

# Of these: up by Ray's launcher, a generation and down; the same by ours, overheard, its ports counted.
launcher-short: $(READY)
	$(BIN)/python -m pytest --numprocesses 0 tests/launcher/test_rays_launcher.py tests/security/test_running_cluster.py

# Predictions beside the runtime's times; on a busy machine it ends after five minutes and judges nothing.
fidelity: $(READY)
	$(BIN)/python -m benchmarks.fidelity.gate

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Instruction sets that this machine may lack, held against the bits of those it has: lines of cases and their bits.
BITS := build/bits
BITS_SOURCES := tests/workers/kernels/bits.cpp workers/kernels/thread_pool.cpp
BITS_FLAGS := -std=c++17 -g0 -pthread -ffp-contract=off -fno-math-errno -w -Wno-psabi -Iworkers/kernels

$(BITS)/here.txt: tests/workers/kernels/bits.cpp $(READY)
	@mkdir -p $(BITS)
	$${CXX:-c++} $(BITS_FLAGS) -O1 $< workers/kernels/_native*.so -o $(BITS)/here
	$(BITS)/here >$@.new && mv $@.new $@

# NEON with and without dot products, emulated by QEMU.
neon: $(BITS)/here.txt
	@command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null || \
	  { echo "make neon needs aarch64-linux-gnu-g++ and qemu-aarch64: apt install g++-aarch64-linux-gnu qemu-user" >&2; exit 2; }
	aarch64-linux-gnu-g++ $(BITS_FLAGS) -O2 -static $(BITS_SOURCES) workers/kernels/native.cpp -o $(BITS)/neon
	qemu-aarch64 -cpu max $(BITS)/neon neondot >$(BITS)/neondot.txt && diff $(BITS)/here.txt $(BITS)/neondot.txt
	qemu-aarch64 -cpu cortex-a53 $(BITS)/neon neon >$(BITS)/neon.txt && diff $(BITS)/here.txt $(BITS)/neon.txt

# AVX-512 and VNNI, their instructions spelled out in plain C++. The processor needs AVX2.
avx512: $(BITS)/here.txt
	@grep -qw avx2 /proc/cpuinfo || { echo "make avx512 needs a processor with AVX2" >&2; exit 2; }
	sed '/pragma GCC target/d' workers/kernels/native.cpp >$(BITS)/native.cpp
	$${CXX:-c++} $(BITS_FLAGS) -O1 -mavx2 -mfma -mf16c '-D__builtin_cpu_supports(name)=1' \
	  -include tests/workers/kernels/avx512_spelled_out.h $(BITS_SOURCES) $(BITS)/native.cpp -o $(BITS)/avx512
	$(BITS)/avx512 avx512vnni avx512 >$(BITS)/avx512.txt && diff $(BITS)/here.txt $(BITS)/avx512.txt

# The kernels compiled, in dist/: for boxes of this system and processor family, which then need no compiler.
wheel: $(READY)
	$(BIN)/pip wheel --no-build-isolation --no-deps --wheel-dir dist .

$(READY): pyproject.toml constraints.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "potluck needs Python 3.11 or newer; '$(PYTHON)' is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@command -v $${CXX:-c++} >/dev/null || \
	  { echo "potluck builds its kernels with a C++ compiler; none found. Install g++ or set CXX." >&2; exit 2; }
	@$(PYTHON) -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null || \
	  { echo "potluck builds with Python's headers; '$(PYTHON)' has none. Install python3-dev." >&2; exit 2; }
	@echo "Setting up $(VENV), once: 1 of 3, an empty environment (seconds)"
	@$(PYTHON) -m venv $(VENV)
	@echo "Setting up $(VENV): 2 of 3, what builds the kernels (seconds)"
	@$(INSTALL) setuptools
	@echo "Setting up $(VENV): 3 of 3, torch, Ray and the rest, then the kernels (some minutes; where torch" \
	  "brings CUDA along, 3 GB to download)"
	@$(INSTALL) --no-build-isolation --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info workers/*/*.so transport/*.so orchestrator/*/*.so
