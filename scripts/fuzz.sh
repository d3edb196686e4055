#!/usr/bin/env bash
# Spoils files of every kind that this package reads, for as long as it is told, with others each time:
#
#     scripts/fuzz.sh SECONDS [READER...]
#
# SECONDS are for each reader; readers are those of tests/fuzz/readers.py. What is read wrongly is kept in build/fuzz/
# under its reader and seed. FIRST=<seed> begins with that one.
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:?how many seconds for each reader?}
shift
first=${FIRST:-$(date +%s)000}
echo "first seed: $first"
names=$(printf 'or test_spoilt_files[%s] ' "$@")
export APEX_JAX_FUZZ_SECONDS=$seconds APEX_JAX_FUZZ_FIRST=$first
exec .venv/bin/pytest tests/fuzz ${1:+-k "${names#or }"} --durations=0 -rA
