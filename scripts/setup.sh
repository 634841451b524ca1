#!/bin/sh
# Makes .venv once: a stamp of pyproject.toml, constraints.txt and the Python version says whether it is whole.
set -eu
cd "$(dirname "$0")/.."

python=${PYTHON:-}
for candidate in python3.11 python3.12 python3.13 python3; do
    [ -n "$python" ] && break
    command -v "$candidate" >/dev/null 2>&1 && python=$candidate
done
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    { echo "setup: Python >= 3.11 with venv is needed; set PYTHON=/path/to/python3.11" >&2; exit 2; }

stamp=.venv/.stamp-$( (cat pyproject.toml constraints.txt; "$python" -VV; pwd) | sha256sum | cut -c1-16)
[ -e "$stamp" ] && exit 0

echo "setup: installing into .venv (a few minutes, once)"
rm -rf .venv
"$python" -m venv .venv
pip="./.venv/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt"
# torch and torchvision in one command and first: anything later would pull in another build
$pip torch torchvision
$pip --editable '.[dev]'
./.venv/bin/python -c "import torch; assert torch.__version__.startswith('2.13.0'), torch.__version__"
mkdir -p build/dev/vergence
for package in platform methods pipelines; do ln -sfn "../../../$package" "build/dev/vergence/$package"; done
touch "$stamp"
