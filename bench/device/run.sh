#!/usr/bin/env bash
# Holds the exporter against a real NVIDIA GPU, in 200 seconds and without a network:
#
#   bench/device/run.sh [--output DIR] [--stub]
#
# It needs PyTorch with CUDA, nvidia-ml-py, and what the exporter imports (pyproject.toml). Packages that are missing can
# come along as wheels in the folder that $WHEELS names. With --stub, or `make device`, no GPU is needed: the stub of NVML
# stands for one, which proves the checks and nothing else. At most eight files are written to DIR (build/device).
# Exit status: 0 nothing is wrong, 1 a row is wrong, 2 it could not run.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || $python -c 'import torch' 2>/dev/null || python=.venv/bin/python
if compgen -G "${WHEELS:-.wheels}/*.whl" >/dev/null; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "${WHEELS:-.wheels}"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="exporter:tests/support:bench${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
"$python" -m device "$@"
