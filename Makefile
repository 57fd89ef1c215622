# fused_dropout: `make demo` and `make test` do everything, set-up included.
#
#   PYTHON=/path/to/python   use that interpreter and its packages as they are, without .venv
#   TORCH='torch==2.12.*'    the torch requirement that .venv gets (default: the tested pin below)

TORCH ?= torch==2.13.0
VENV := .venv

ifdef PYTHON
PY := $(PYTHON)
VENV_READY :=
else
PY := $(VENV)/bin/python
VENV_READY := $(VENV)/.ready
endif

# What the compiled extension depends on, so that it is rebuilt exactly when one of them changes.
SOURCES := setup.py pyproject.toml $(shell find csrc -type f)
BUILT := build/.built-$(subst /,_,$(PY))

.PHONY: demo test lint bench format setup clean FORCE

demo: setup
	$(PY) -m fused_dropout info
	$(PY) -m fused_dropout verify --quick
	$(PY) -m fused_dropout demo

test: setup
	$(PY) -m pytest

bench: setup
	$(PY) bench/dropconnect_linear.py

setup: $(BUILT)

# Changes when another torch is asked for, and has the environment and the extension remade.
$(VENV)/.torch: FORCE
	@mkdir -p $(VENV) && echo '$(TORCH)' | cmp -s - $@ || echo '$(TORCH)' > $@

$(VENV)/.ready: pyproject.toml Makefile $(VENV)/.torch
	test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --upgrade pip 'setuptools>=64' wheel
	$(VENV)/bin/python -m pip install -q '$(TORCH)' numpy rich ninja pybind11 \
	    pytest hypothesis matplotlib scikit-learn
	touch $@

# --no-build-isolation: the extension must be compiled against the torch it will run with.
$(BUILT): $(VENV_READY) $(SOURCES)
	$(PY) -m pip install -q --no-build-isolation --no-deps -e .
	mkdir -p build && touch $@

$(VENV)/.lint: pyproject.toml
	test -x $(VENV)/bin/python || python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q $$(sed -n 's/^lint = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')
	touch $@

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
