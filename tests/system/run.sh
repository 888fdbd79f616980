#!/usr/bin/env bash
# Runs the tests marked `system` with all they need: what `make test-system` calls. More flags are pytest's.
set -euo pipefail
cd "$(dirname "$0")/../.."
tests/system/install_tools.sh
.venv/bin/python -m pip install --quiet -r requirements-tensorrt.txt
ncnn_DIR=${ncnn_DIR:-$(tests/system/build_ncnn.sh native)}
ncnn_aarch64_DIR=${ncnn_aarch64_DIR:-$(tests/system/build_ncnn.sh aarch64)}
export ncnn_DIR ncnn_aarch64_DIR OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest --system -m system -n auto --dist loadfile "$@"
