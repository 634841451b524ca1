#!/bin/sh
# The peer's packages in an overlay over .venv, so that the project itself does not depend on them.
set -eu
cd "$(dirname "$0")/.."
stamp=.venv-bench/.stamp-$( (cat constraints.txt benchmarks/requirements.txt; pwd) | sha256sum | cut -c1-16)
[ -e "$stamp" ] && exit 0
rm -rf .venv-bench
.venv/bin/python -m venv .venv-bench
base=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
overlay=$(.venv-bench/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$base')" > "$overlay/base.pth"
# lightly wants hydra-core, and that antlr4-python3-runtime 4.9, where moto, of the tests only, has 4.13. The overlay's own
# one comes first on its path and stands beside .venv's, which stays as it is.
grep -v '^antlr4-python3-runtime==' constraints.txt > .venv-bench/constraints.txt
.venv-bench/bin/python -m pip --disable-pip-version-check install --quiet \
    --constraint .venv-bench/constraints.txt --requirement benchmarks/requirements.txt
touch "$stamp"
