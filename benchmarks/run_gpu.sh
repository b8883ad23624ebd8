#!/usr/bin/env bash
# Measures gnfast on the present GPU, with the ambient python3 and nothing from the network, where make may be missing:
#     bash benchmarks/run_gpu.sh OUT [stage …]
# `--help` lists the stages; `make gpu OUT=dir STAGES="…"` calls this.
set -u
mkdir -p "$1"
out="$(cd "$1" && pwd)"
shift
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
exec python3 -m benchmarks.gpu "$out" "$@"
