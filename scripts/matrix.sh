#!/usr/bin/env bash
# Runs a core of the tests in a fresh environment for each pair of Python and JAX, and prints a table of what came out.
#
#     scripts/matrix.sh [PYTHON:JAX[:lowest] ...]        3.12:0.11.2, say; without arguments those of docs/installation.md
#
# One wheel, $WHEEL or built in isolation by the first Python, serves all of them. A Python is looked for on the path and among pyenv's;
# where it is not there, and root asks, in a Debian release that has it (CHROOT_SUITE=testing), put into build/matrix by
# debootstrap. `lowest` installs the lowest version that pyproject.toml allows of each dependency. Needs a package index.
# Some minutes each; logs and environments stay in build/matrix.
set -euo pipefail
cd "$(dirname "$0")/.."
PAIRS=("$@")
((${#PAIRS[@]})) || PAIRS=(3.11:0.10.2 3.11:0.10.2:lowest 3.12:0.10.2 3.12:0.11.2 3.12:0.12.0.1 3.13:0.11.2 3.13:0.12.0.1
    3.14:0.10.2 3.14:0.12.0.1)
# Numbers of the kernel, tokens of real models, engines with a host tier, files, and what an installation is made of.
CORE=(tests/host_offload/test_attention.py tests/host_offload/test_native_library.py
    tests/models/test_stories.py tests/models/test_registry.py tests/models/test_config.py tests/files
    tests/engine/test_soak.py::test_a_real_model_tells_its_story tests/engine/test_hybrid_tokens.py::TestFromOutside
    tests/cli/test_info.py tests/packaging/test_dependencies.py)
work=$PWD/build/matrix
root=$work/root
mkdir -p "$work"

python3 -m venv "$work/tools"
"$work/tools/bin/python" -m pip install --quiet --disable-pip-version-check uv
uv=$work/tools/bin/uv

find_python() { # of a version: prints its path
    local found
    for found in "$(command -v "python$1" || true)" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1".*/bin/python; do
        [[ -x $found ]] && "$found" -c "import sys; sys.exit('$1' != '%d.%d' % sys.version_info[:2])" 2> /dev/null \
            && { echo "$found"; return; }
    done
    return 1
}

make_root() { # a Debian release with its Python, unless it is there
    [[ -n ${CHROOT_SUITE:-} && $EUID == 0 ]] || return 1
    if [[ ! -e $root/made ]]; then
        rm -rf "$root"
        debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates,gcc,libc6-dev "$CHROOT_SUITE" "$root" \
            > "$work/debootstrap.log" || return 1
        cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
        touch "$root/made"
    fi
    cp "$uv" "$root/usr/local/bin/uv"
    # XLA reads what the processor can do there.
    mountpoint -q "$root/proc" || mount -t proc proc "$root/proc"
}
trap 'mountpoint -q "$root/proc" && umount "$root/proc" || true' EXIT

run_pair() { # prefix of commands, folder as they see it, python, jax, how versions are resolved
    local enter=$1 folder=$2 python=$3 jax=$4 resolution=$5
    $enter "$6" venv --quiet --clear --python "$python" "$folder" || return
    local tools=("pytest>=8.4" "hypothesis>=6.130" "packaging>=24" "sentencepiece>=0.2.1")
    $enter "$6" pip install --quiet --python "$folder/bin/python" --resolution "$resolution" "jax==$jax" "jaxlib==$jax" \
        "$(dirname "$folder")/$(basename "$wheel")" -r "$(dirname "$folder")/requirements.txt" "${tools[@]}" || return
    $enter env JAX_PLATFORMS=cpu PYTHONSAFEPATH=1 "$folder/bin/python" -c "import os, sys; os.chdir(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])" \
        "$(dirname "$folder")/checkout" "$folder/bin/pytest" -m "not slow" "${CORE[@]}"
}

copy_checkout() { # to a folder: the tests and what they read, without the package itself
    rm -rf "$1/checkout" && mkdir -p "$1/checkout"
    git ls-files -z tests docs scripts LICENSE '*.md' pyproject.toml apex_jax models scheduler host_offload | xargs -0 cp --parents -t "$1/checkout"
    [[ -d ../shared ]] && ln -sfn "$(realpath ../shared)" "$1/shared"
    cp "$wheel" "$1/"
    # Named here, or the lowest versions of what the wheel asks for would not be sought.
    "$work/tools/bin/python" scripts/requirements.py plot > "$1/requirements.txt"
}

wheel=${WHEEL:-}
if [[ -z $wheel ]]; then
    rm -rf "$work/wheel"
    "$uv" build --quiet --wheel --python "$(find_python "${PAIRS[0]%%:*}")" --out-dir "$work/wheel" .
    wheel=$(echo "$work"/wheel/*.whl)
fi
copy_checkout "$work"

echo "| Python | JAX | dependencies | result |"
echo "|---|---|---|---|"
failed=0
for pair in "${PAIRS[@]}"; do
    IFS=: read -r version jax kind <<< "$pair"
    log=$work/${pair//:/-}.log
    resolution=highest && [[ $kind == lowest ]] && resolution=lowest-direct
    if python=$(find_python "$version"); then
        where=("" "$work/environment" "$python" "$jax" "$resolution" "$uv")
    elif make_root && chroot "$root" python3 --version | grep -q "Python $version\."; then
        mkdir -p "$root/matrix"
        copy_checkout "$root/matrix"
        [[ -d ../shared ]] && rm -f "$root/matrix/shared" && cp -r "$(realpath ../shared)" "$root/matrix/shared"
        where=("chroot $root" /matrix/environment python3 "$jax" "$resolution" uv)
    else
        echo "| $version | $jax | ${kind:-newest} | no Python $version here |"
        continue
    fi
    if run_pair "${where[@]}" > "$log" 2>&1; then
        result=$(grep -E "^[0-9]+ passed" "$log" | tail -1)
    else
        result="**failed**: $(grep -E "^([0-9]+ (failed|passed)|error|Error)" "$log" | tail -1)" && failed=1
    fi
    echo "| $version | $jax | ${kind:-newest} | $result |"
done
exit "$failed"
