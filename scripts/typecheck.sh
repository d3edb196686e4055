#!/usr/bin/env bash
# pyright reads folders as packages, and three of the four lie beside apex_jax/ instead of in it: check a staged copy.
set -euo pipefail
cd "$(dirname "$0")/.."
staged=build/typecheck
rm -rf "$staged"
mkdir -p "$staged"
cp -r apex_jax "$staged/"
cp -r models host_offload scheduler "$staged/apex_jax/"
exec "${PYRIGHT:-.venv/bin/pyright}" --pythonpath "${PYTHON:-.venv/bin/python}" "$staged"
