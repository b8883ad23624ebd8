#!/usr/bin/env bash
# Build, GPU tests and benchmarks, with the ambient python3 and nothing from the network: see `make gpu`.
# Every step has its own time limit, all together ten minutes; what the first two leave over, the benchmarks get.
# results.json is there after every row, and written even when an earlier step failed.
set -u
mkdir -p "$1"
out="$(cd "$1" && pwd)"
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-$(python3 -c '
import torch
print("%d.%d" % torch.cuda.get_device_capability())')}"
export TORCH_CUDA_ARCH_LIST

failed=0 statuses=""
step() {
  local limit="$1" name="$2" start=$SECONDS status
  shift 2
  echo "== $name (at most $limit s)"
  timeout --kill-after=10 "$limit" "$@" 2>&1 | tee "$out/$name.log"
  status=${PIPESTATUS[0]}
  echo "== $name: exit status $status after $((SECONDS - start)) s"
  [ "$status" -eq 0 ] || failed=1
  statuses="${statuses:+$statuses }$name=$status"
}

step 150 build env GNFAST_BUILD=cuda python3 setup.py build_ext --inplace
# Only the files with GPU tests: the others may import packages that are not here. Processes share the compiling of
# Triton kernels, and one that loses the device is replaced.
workers="-p no:xdist"
if python3 -c 'import xdist' 2>/dev/null; then workers="-n 8 --max-worker-restart 64"; fi
step 210 tests python3 -m pytest -m gpu $(grep -lE "mark\.gpu" tests/test_*.py) -p no:cacheprovider $workers --durations=10
left=$((570 - SECONDS))
step "$left" benchmarks python3 benchmarks/run_gpu.py --out "$out/results.json" --time-limit $((left - 30)) --steps "$statuses"
exit "$failed"
