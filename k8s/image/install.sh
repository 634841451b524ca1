#!/bin/sh
# What the image adds to Python: Vergence and all that a cluster runs of it, in one folder, from a source tree.
#   SOURCE=/src PREFIX=/opt/vergence VARIANT=cpu|cuda sh install.sh
# pip's own settings (PIP_INDEX_URL, /etc/pip.conf) say where packages come from; a CPU build of torch needs an index that has
# one. Nothing is downloaded at run time.
set -eu
: "${SOURCE:?the source tree}" "${PREFIX:?where to install}" "${VARIANT:=cpu}"
cd "$SOURCE"

"${PYTHON:-python3}" -m venv "$PREFIX"
pip="$PREFIX/bin/python -m pip --disable-pip-version-check install --quiet --no-cache-dir --constraint constraints.txt"
export DS_BUILD_OPS=0
# torch and torchvision in one command and first: anything later would pull in another build
$pip torch torchvision
# psycopg2 and boto3 are the MLflow server's, which runs from this image too
$pip ".[audio,onnx,serve,text,tune]" psycopg2-binary boto3

"$PREFIX/bin/python" - "$VARIANT" <<'PYTHON'
import importlib.metadata
import sys

import torch

built = "cuda" if torch.version.cuda else "cpu"
if built != sys.argv[1]:
    sys.exit(f"install.sh: VARIANT={sys.argv[1]}, but pip's index has a {built} build of torch")
import boto3, deepspeed, mlflow, onnxruntime, optuna, psycopg2, ray.serve, tokenizers  # noqa: E401, F401

print("vergence", importlib.metadata.version("vergence"), "ray", ray.__version__, "torch", torch.__version__)
PYTHON
"$PREFIX/bin/vergence" methods >/dev/null
