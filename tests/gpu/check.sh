#!/usr/bin/env bash
# What trainings, the block engine and a dask-cuda worker do on a GPU: one script, under eight minutes on an H200.
#
#   tests/gpu/check.sh            on a machine with an NVIDIA driver; prints everything, ends with 1 if a part failed
#   tests/gpu/check.sh --cpu      the short form without a GPU, by which the script itself is tested
#
# It expects Python 3.11 with the packages of constraints.txt: PYTHON=/path/to/python, or .venv, or python3. Where torch or
# zarr is missing there, it makes .venv as `make install` does, and adds the extra "cuda"; both need a package index.
# Data: the phantom, made here. Everything it writes goes to a folder that is removed at the end, or to OUT=/some/folder.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-}
if [ -z "$python" ]; then
    if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python=$(command -v python3); fi
fi
if ! "$python" -c 'import torch, zarr, monai, nnunetv2, distributed' 2>/dev/null; then
    echo "$python lacks packages: making .venv (this needs a package index)"
    make install
    .venv/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[cuda]'
    python=.venv/bin/python
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" tests/gpu/check.py "$@"
