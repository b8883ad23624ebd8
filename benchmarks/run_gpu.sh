#!/usr/bin/env bash
# Measures gnfast on the present GPU, with the ambient python3 and nothing from the network, where make may be missing:
#     bash benchmarks/run_gpu.sh OUT [stage …]
# `--help` lists the stages; `make gpu OUT=dir STAGES="…"` calls this.
set -u
out="${1:---help}"
case "$out" in
-*) ;;
*)
    mkdir -p "$out" && out="$(cd "$out" && pwd)" && [ -w "$out" ] || { echo "OUT: $1 cannot be written" >&2; exit 2; }
    ;;
esac
shift
cd "$(dirname "$0")/.." || exit 2
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# Tables and messages have signs that no other encoding has; in no locale may they end a run.
export PYTHONUTF8=1 PYTHONIOENCODING=utf-8
# Triton keeps what it compiles at home.
[ -w "${HOME:-/nowhere}" ] || export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$(mktemp -d)}"
exec python3 -m benchmarks.gpu "$out" "$@"
