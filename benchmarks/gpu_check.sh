#!/usr/bin/env bash
# Everything that needs a card, in at most 5 minutes: bits first, then figures.
#
#     benchmarks/gpu_check.sh [--device cuda] [--out FILE.md] [--on-cpu]
#
# PYTHON names the interpreter (3.11 or newer) that has Potluck's dependencies, cuda-bindings and NVRTC; .venv's where
# there is one. No network is needed. All output goes to FILE.md as well, as markdown for benchmarks/RESULTS.md. The
# exit code is 0 where every bit was the CPU's and every table could be made, 1 where one was not, 2 where something
# is missing here. With --on-cpu this machine's CPU plays a card, and all is tiny: it shows that the script works.
set -euo pipefail
cd "$(dirname "$0")/.."

device=cuda
out=gpu_check.md
on_cpu=no
while [ $# -gt 0 ]; do
  case $1 in
    --device | --out)
      [ $# -ge 2 ] || { echo "$1: expected a value behind it" >&2; exit 2; }
      if [ "$1" = --device ]; then device=$2; else out=$2; fi
      shift 2
      ;;
    --on-cpu) on_cpu=yes; shift ;;
    *) echo "$1: expected --device NAME, --out FILE or --on-cpu" >&2; exit 2 ;;
  esac
done

python=${PYTHON:-}
if [ -z "$python" ]; then
  python=python3
  [ ! -x .venv/bin/python ] || python=.venv/bin/python
fi
# missing MESSAGE: ends here.
missing() {
  echo "$1" >&2
  exit 2
}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  missing "'$python' is no Python 3.11 or newer: set PYTHON"
"$python" -c 'import torch, numpy, gguf, pydantic, psutil, zmq, msgpack, typer, rich' ||
  missing "'$python' lacks what Potluck needs: $python -m pip install -e '.[test,cuda]'"
"$python" -c 'from workers.gpu.compile import load_nvrtc; load_nvrtc()' ||
  missing "'$python' lacks cuda-bindings or NVRTC: $python -m pip install cuda-bindings nvidia-cuda-nvrtc"
"$python" -c 'import pytest, hypothesis' ||
  missing "'$python' lacks pytest or hypothesis: $python -m pip install pytest hypothesis"
if ! "$python" -c 'import orchestrator.kernels, workers.kernels, workers.memory.mapped, transport.monitored' 2>/dev/null; then
  echo "building the CPU's kernels" >&2
  "$python" -c 'from setuptools import setup; setup()' -q build_ext --inplace ||
    missing "the CPU's kernels could not be built: is a C++ compiler here, and python3-dev?"
fi
if [ "$on_cpu" = no ]; then
  "$python" -c 'import sys; from workers.gpu.device import open_device; open_device(sys.argv[1])' "$device" ||
    missing "no card to check"
fi

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
: >"$out"
failed=()
say() { printf '%s\n' "$@" | tee -a "$out"; }

# begin NAME COMMAND...: starts a step, for what is left of the time; several run side by side.
begin() {
  local at="$folder/$1"
  shift
  echo "--- $SECONDS s: $*" >&2
  {
    code=0
    timeout "$((limit_s > SECONDS ? limit_s - SECONDS : 1))" "$@" >"$at.out" 2>"$at.err" || code=$?
    echo "$code" >"$at.code"
  } &
}
# end NAME TITLE: waits for the steps that were begun, shows what one printed, keeps it, and notes its failure.
end() {
  local at="$folder/$1" code
  wait
  code=$(cat "$at.code")
  [ -z "$2" ] || say "**$2**"
  tee -a "$out" <"$at.out"
  if [ "$code" -ne 0 ]; then
    failed+=("${2:-$1}")
    say "FAILED with exit code $code; what it said last:" '```'
    tail -n 30 "$at.err" | tee -a "$out"
    say '```'
  fi
  say ""
}

limit_s=300
target=(--device "$device")
bits=(--device "$device")
cases=10000
generation=()
tests=(tests/workers/gpu tests/orchestrator/gpu)
if [ "$on_cpu" = yes ]; then
  limit_s=3000
  target=(--on-cpu)
  bits=()
  cases=40
  generation=(--tokens 2 --types q4_k)
  tests=(tests/workers/gpu/test_grouping.py)
fi

say "## A card, checked: \`benchmarks/gpu_check.sh\`" \
  "$(date -u '+%Y-%m-%d %H:%M UTC'), $("$python" -V), $(uname -sr), $(nproc) cores" ""
if [ "$on_cpu" = yes ]; then
  say "**This machine's CPU plays the card: no figure here means anything.**" ""
else
  if command -v nvidia-smi >/dev/null; then
    begin card nvidia-smi --format=csv,noheader \
      --query-gpu=name,driver_version,memory.total,memory.used,clocks.max.sm,power.limit
    end card "Name, driver, memory, used, highest clock, power limit"
  fi
  begin compiling "$python" -m benchmarks.gpu.compile_all --device "$device"
  end compiling "Compiled"
  export POTLUCK_TEST_CARD=$device
fi

# Side by side, since what takes long is the CPU's part. A thread each: their products are small.
OMP_NUM_THREADS=1 begin products "$python" -m benchmarks.gpu_bits "${bits[@]}" --cases "$cases"
OMP_NUM_THREADS=1 begin tests "$python" -m pytest -q -n 0 -m "not long and not slow" -p no:cacheprovider "${tests[@]}"
OMP_NUM_THREADS=1 begin generations "$python" -m benchmarks.gpu_generation "${target[@]}" "${generation[@]}"
wait
say "### Bits" ""
tail -n 1 "$folder/products.out" >"$folder/last" && mv "$folder/last" "$folder/products.out"
end products "Products in all types of weights, random cases"
tail -n 1 "$folder/tests.out" >"$folder/last"
[ "$(cat "$folder/tests.code")" -ne 0 ] || mv "$folder/last" "$folder/tests.out"
end tests "Kernels of the head, of experts and of prompts: their tests, on the card"
end generations "Generations beside the CPU's"

begin figures "$python" -m benchmarks.hybrid "${target[@]}"
end figures ""

if [ ${#failed[@]} -gt 0 ]; then
  say "**Failed**: $(printf '%s; ' "${failed[@]}")"
  exit 1
fi
say "All bits are the CPU's. It took $SECONDS s."
