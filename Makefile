# fused_dropout: `make demo` and `make test` do everything, set-up included.
#
#   PYTHON=/path/to/python   use that interpreter and its packages as they are, without .venv
#   TORCH='torch==2.12.*'    the torch requirement that .venv gets (default: the tested pin below)
#   CUDA_TORCH='torch==...'  the same for .venv-cuda, where cuda-build and gpu-... have their CUDA
#                            build of torch
#   RESULTS=folder           where gpu-... write results and logs (default: bench/results)
#   PYTHONS='a/python ...'   the interpreters that wheel-check uses as they are (default: environments
#                            of its own, for the releases of torch in CHECKED_TORCHES)

TORCH ?= torch==2.13.0
CUDA_TORCH ?= torch==2.14.1
VENV := .venv
CUDA_VENV := .venv-cuda
CHECK_VENV := .venv-torch-
CHECKED_TORCHES ?= 2.11.0 2.15.0
CHECK_VENVS := $(addprefix $(CHECK_VENV),$(CHECKED_TORCHES))
VENVS := $(VENV) $(CUDA_VENV) $(CHECK_VENVS)
# pip's notices about root, newer releases and unused indexes are no concern of this set-up.
ERRORS_ONLY := -qq

ifdef PYTHON
PY := $(PYTHON)
CUDA_PY := $(if $(findstring /,$(PYTHON)),$(abspath $(PYTHON)),$(PYTHON))
VENV_READY :=
CUDA_VENV_READY :=
else
PY := $(VENV)/bin/python
CUDA_PY := $(CURDIR)/$(CUDA_VENV)/bin/python
VENV_READY := $(VENV)/.ready
CUDA_VENV_READY := $(CUDA_VENV)/.ready
endif

# What the compiled extension depends on, so that it is rebuilt exactly when one of them changes.
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)
BUILT := build/.built-$(subst /,_,$(PY))

.PHONY: demo test test-clients reproduce-quick hostile instruction-counts lint bench cuda-build gpu gpu-build gpu-test gpu-sanitize gpu-bench
.PHONY: wheel wheel-check format setup clean FORCE

demo: setup
	$(PY) -m fused_dropout info
	$(PY) -m fused_dropout verify --quick
	$(PY) -m fused_dropout demo

# pytest's options for a test file per core at a time, where an interpreter has pytest-xdist, as ours.
# In the order of their names: by default files of few tests come last, and those take minutes.
FILES_AT_ONCE := --dist loadfile --no-loadscope-reorder -n auto --maxprocesses 8
at_once = $(shell $(1) -c 'import xdist' 2> /dev/null && echo $(FILES_AT_ONCE))

test: setup
	$(PY) -m pytest $(call at_once,$(PY))

# Models of other packages, converted by fused_dropout.replace. The packages are installed beside the
# CUDA build of torch, whose release they are pinned to; no GPU is used.
CLIENTS ?= torchvision==0.29.2 timm==1.0.31 transformers==5.23.0 peft==0.21.2

ifdef PYTHON
CLIENTS_READY :=
else
CLIENTS_READY := $(CUDA_VENV)/.clients
endif

$(CUDA_VENV)/.clients: $(CUDA_VENV)/.ready
	$(CUDA_PY) -m pip install $(ERRORS_ONLY) $(CLIENTS)
	touch $@

test-clients: setup $(CLIENTS_READY)
	CUDA_VISIBLE_DEVICES= PYTHONPATH=$(CURDIR) $(CUDA_PY) -m pytest tests/clients

# Calls with wrong and odd arguments; `make test` has a short form. tests/hostile/__main__.py
CALLS ?= 100000
SEED ?= 0

hostile: setup
	$(PY) -m tests.hostile --calls $(CALLS) --seed $(SEED)

# What `make test` holds the CPU kernels' instruction counts to, rewritten for the compiler that is
# here, or another one by CXX=clang++. tests/instruction_counts
instruction-counts: $(VENV_READY)
	PYTHONPATH=tests $(PY) -m instruction_counts

# Every script runs, whether or not one before it has missed a goal.
BENCHES = $(shell grep -l '^SCRIPT = ' bench/*.py)

bench: setup
	status=0; for file in $(BENCHES); do $(PY) $$file || status=1; done; exit $$status

# Every experiment of `fused-dropout reproduce`, in seconds each; `make test` runs two of them.
reproduce-quick: setup
	$(PY) -m fused_dropout reproduce all --quick --out build/reproduce-quick

setup: $(BUILT)

$(VENV)/.ready: WANTED = $(TORCH)
$(CUDA_VENV)/.ready: WANTED = $(CUDA_TORCH)
$(CHECK_VENV)%/.ready: WANTED = torch==$(patsubst $(CHECK_VENV)%,%,$(@D))

# Changes when another torch is asked for, and has the environment and the extension remade.
$(VENVS:%=%/.torch): FORCE
	@mkdir -p $(@D) && echo '$(WANTED)' | cmp -s - $@ || echo '$(WANTED)' > $@

$(VENVS:%=%/.ready): %/.ready: pyproject.toml Makefile %/.torch
	test -x $(@D)/bin/python || python3 -m venv $(@D)
	$(@D)/bin/python -m pip install $(ERRORS_ONLY) --upgrade pip 'setuptools>=77'
	$(@D)/bin/python -m pip install $(ERRORS_ONLY) '$(WANTED)' numpy rich ninja \
	    pytest pytest-xdist hypothesis matplotlib scikit-learn scipy
	touch $@

# --no-build-isolation: torch's headers are here, and pip would download another torch for them.
$(BUILT): $(VENV_READY) $(SOURCES)
	$(PY) -m pip install $(ERRORS_ONLY) --no-build-isolation --no-deps -e .
	mkdir -p build && touch $@

# Without a GPU, and using none. `make test` has the other tests; here run those that another release
# of torch and another build of the extension may fail.
CUDA_TREE := build/cuda
TORCH_TESTS := tests/table tests/hostile tests/ops/test_dropout_autograd.py tests/ops/test_drop_block_api.py \
    tests/ops/test_dropconnect_module.py \
    $(addprefix tests/package/,test_private_torch.py test_random_state.py test_extension.py \
        test_bad_input.py test_fx.py test_monte_carlo.py test_mc_statistics.py)
IN_CUDA_TREE = cd $(CUDA_TREE) && CUDA_VISIBLE_DEVICES= PYTHONPATH=$(CURDIR)/$(CUDA_TREE) $(CUDA_PY)

cuda-build: $(CUDA_VENV_READY)
	PYTHON=$(CUDA_PY) bench/cuda_tree.sh $(CUDA_TREE)
	$(IN_CUDA_TREE) -m fused_dropout info
	cd $(CUDA_TREE) && CUDA_VISIBLE_DEVICES= PYTHONPATH=tests $(CUDA_PY) -m cuda_on_cpu.build
	$(IN_CUDA_TREE) -m fused_dropout verify --quick
	$(IN_CUDA_TREE) -m pytest -q $(call at_once,$(CUDA_PY)) $(TORCH_TESTS)
	$(IN_CUDA_TREE) bench/kernel_report.py --newest

# On a GPU; bench/gpu.sh says what each does.
gpu: $(CUDA_VENV_READY)
	PYTHON=$(CUDA_PY) bench/gpu.sh all

gpu-build gpu-test gpu-sanitize gpu-bench: gpu-%: $(CUDA_VENV_READY)
	PYTHON=$(CUDA_PY) bench/gpu.sh $*

# What pyproject.toml lists as extras of these names.
$(VENV)/.lint $(VENV)/.wheel: $(VENV)/.%: pyproject.toml
	test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(ERRORS_ONLY) \
	    $$(sed -n 's/^$* = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')
	touch $@

# Wheels in dist/, for the CPU and, where nvcc is, with CUDA kernels. The checkout's own build is left
# as it is. bench/wheel/build.py
wheel: $(VENV)/.wheel $(VENV_READY)
	$(VENV)/bin/python bench/wheel/build.py --python $(PY)

# The CPU wheel beside several releases of torch; takes minutes each. bench/wheel/check.py
wheel-check: wheel $(if $(PYTHONS),,$(CHECK_VENVS:%=%/.ready))
	status=0; for python in $(or $(PYTHONS),$(CHECK_VENVS:%=%/bin/python)); do \
	    $(VENV)/bin/python bench/wheel/check.py --python $$python || status=1; done; exit $$status

FORMATTED = $(shell git ls-files '*.h' '*.cpp' '*.cu' '*.cuh')

lint: $(VENV)/.lint setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/clang-format --dry-run --Werror $(FORMATTED)
	$(VENV)/bin/mypy --python-executable $(PY)

format: $(VENV)/.lint
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(FORMATTED)

clean:
	rm -rf build dist *.egg-info fused_dropout/*.so
