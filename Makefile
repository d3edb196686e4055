# make demo      a first look: installs what a run needs, fetches a small model, asks it questions, draws what ran when
# make install   everything, for development, editable
# make test      install, then all tests: what CI runs
# make check     tests, style and types, with what is installed
# make quick     what one runs after each edit: style, and the tests that say most in the least time
#
# Each step leaves a stamp in the virtual environment and is repeated only when what it depends on has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes that share the tests; the tests of a file stay together, for they share engines.
JOBS ?= 2
PYTEST := $(BIN)/pytest --numprocesses $(JOBS) --dist loadfile
# JAX's compiler for GPUs that are not there, for tests/fit.
CUDA := $(CURDIR)/$(VENV)/cuda_compile
NATIVE := $(wildcard host_offload/native/*.cc host_offload/native/*.h)

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Of pip's report, the lines that show that it is getting on.
DOWNLOADS := awk '$$1 == "Downloading" { sub(/^ */, ""); print "    " $$0; fflush() } \
	/^Successfully installed/ { print "    " NF - 2 " packages installed" }'

# All that needs no JAX or little of it, and the tokens of each path beside those of the plain model.
QUICK := tests/scheduler tests/trace tests/packaging/test_dependencies.py tests/profiling/test_profiling.py \
	tests/sampling/test_sampling_params.py tests/sampling/test_prompts.py tests/cli/test_arguments.py \
	tests/models/test_stories.py tests/host_offload/test_attention.py::test_long_rows_are_cut_and_merged \
	tests/engine/test_soak.py::test_a_real_model_tells_its_story tests/engine/test_hybrid_tokens.py::TestFromOutside

.PHONY: help demo install test check quick installed format clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: $(VENV)/.package
	@mkdir -p build
	@$(BIN)/apex-jax demo --timeline build/demo.png

install: $(VENV)/.dev $(VENV)/.package

test: install $(VENV)/.cuda
	PYTHONPATH=$(CUDA) $(PYTEST) tests/fit
	$(PYTEST)

check: installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	scripts/typecheck.sh
	$(PYTEST)

quick: installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(PYTEST) -m "not slow" $(QUICK)

installed:
	@$(BIN)/python -c 'import xdist' 2> /dev/null || { echo "not all is installed yet: run 'make install' first" >&2; exit 1; }

format:
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf build dist *.egg-info host_offload/_native*.so $(VENV)

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' \
	    || { echo "Python 3.11 to 3.14 is needed, $$($(PYTHON) --version) was found; try: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.run: pyproject.toml scripts/requirements.py | $(VENV)/.made
	@echo "Installing JAX and what else a run needs: some 250 MB, minutes on a slow line"
	@$(BIN)/python -m pip install -r <($(BIN)/python scripts/requirements.py plot) | $(DOWNLOADS)
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "Installing what development needs: torch to compare with, pytest, ruff, pyright"
	@$(BIN)/python -m pip install -r <($(BIN)/python scripts/requirements.py dev) | $(DOWNLOADS)
	@touch $@

# Apart from the rest: where there is no GPU, JAX complains of the plugin whenever it starts.
$(VENV)/.cuda: $(VENV)/.run
	@echo "Installing JAX's compiler for CUDA GPUs, which need not be there: some 200 MB"
	@version=$$($(BIN)/python -c 'from importlib.metadata import version; print(version("jax"))'); \
	    $(BIN)/python -m pip install --quiet --no-deps --target $(CUDA) --upgrade \
	    jax-cuda12-plugin==$$version jax-cuda12-pjrt==$$version 'nvidia-cuda-nvcc-cu12>=12.8,<13'
	@touch $@

$(VENV)/.package: $(VENV)/.run setup.py pyproject.toml $(NATIVE)
	@echo "Installing apex_jax (editable) and compiling its native attention kernel: about a minute"
	@rm -f host_offload/_native*.so
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@test -e host_offload/_native.so || echo "    Without a C++17 compiler: attention on the host is in plain JAX, several times slower"
	@touch $@
