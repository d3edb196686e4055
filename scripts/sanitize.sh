#!/usr/bin/env bash
# Builds the native kernel under sanitizers, together with a program that drives it without Python, and runs that:
#
#     scripts/sanitize.sh [ROUNDS] [SEED]
#
# First address and undefined behaviour, then threads. Ends at the first report, with a status that is not 0. CXX is the
# compiler.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${1:-100}
seed=${2:-0}
out=build/sanitize
mkdir -p "$out"
sources=(attention select portable avx2 avx512 avx512_bf16)
flags=(-std=c++17 -O1 -g -fno-omit-frame-pointer -fno-exceptions -Wall -Wno-uninitialized -Wno-maybe-uninitialized
    -Wno-psabi -Ihost_offload/native)

check() {
    echo "== $1"
    "${CXX:-g++}" "${flags[@]}" "-fsanitize=$1" -fno-sanitize-recover=all -o "$out/stress" \
        tests/host_offload/native/stress.cc "${sources[@]/#/host_offload/native/}" -pthread
    "$out/stress" "$rounds" "$seed"
}

sources=("${sources[@]/%/.cc}")
export ASAN_OPTIONS=detect_stack_use_after_return=1:strict_string_checks=1 TSAN_OPTIONS=halt_on_error=1
check address,undefined
check thread
