#!/usr/bin/env bash
# Installs this checkout without a network, compiles its native kernel here, then checks and measures everything on the
# GPU within so many minutes (9 if none are given). Results: build/gpu_check, or $OUT.
#
#     scripts/gpu_check.sh [minutes]
#
# JAX and what else the package needs must be there already, for $PYTHON (python3). With APEX_JAX_INSTALLED=1 what is
# installed is taken as it is. Without a GPU everything runs with tiny shapes, to see that it does.
set -euo pipefail
cd "$(dirname "$0")/.."
minutes=${1:-9}
if ! [[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ ]] || (($# > 1)); then
    echo "usage: scripts/gpu_check.sh [minutes]; minutes are a positive number, got: $*" >&2
    exit 2
fi
PYTHON=${PYTHON:-python3}
out=${OUT:-build/gpu_check}
mkdir -p "$out"
if [[ ${APEX_JAX_INSTALLED:-} != 1 ]]; then
    site=$PWD/build/gpu_check_site
    echo "Installing into $site"
    rm -rf "$site"
    "$PYTHON" -m pip install --quiet --no-index --no-deps --no-build-isolation --target "$site" . \
        >"$out/install.log" 2>&1 || { cat "$out/install.log" >&2; exit 1; }
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
# The last seconds are for writing down what was found.
seconds=$("$PYTHON" -c 'import sys; print(60 * float(sys.argv[1]) - float(sys.argv[2]) - 5)' "$minutes" "$SECONDS")
"$PYTHON" benchmarks/gpu --seconds "$seconds" --out "$out"
