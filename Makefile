# From a machine with Python 3.11 or later and nothing installed: `make demo`, `make test`.
# `make help` lists what there is.

# The first that runs; a name alone may be a version manager's stub for a Python it lacks.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	$$p -c "" 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN = $(VENV)/bin
LOWEST = $(VENV)-lowest
PLOTS = $(VENV)/.installed-plots
DEV = $(VENV)/.installed-dev

DEMO_OUT ?= runs/demo
DEMO_ARGS ?=
TEST_ARGS ?= -n 2 --dist worksteal
BENCH ?=
BENCH_ARGS ?=
BENCHMARKS = $(patsubst benchmarks/%.py,%,$(wildcard benchmarks/[a-z]*.py))
# What the CPU's program is built from.
KERNEL = $(wildcard l2ljax/kernels/*.cc l2ljax/kernels/*.h)
NOTEBOOKS = $(wildcard notebooks/*.ipynb)

.DEFAULT_GOAL = help
.PHONY: help demo test doctest lint bench notebooks test-lowest clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(PLOTS)  ## meta-train an optimizer on digits, compare it; DEMO_ARGS="--force"
	@$(BIN)/l2ljax demo --out $(DEMO_OUT) $(DEMO_ARGS)

test: $(DEV)  ## run the tests; TEST_ARGS="-k adam"
	@$(BIN)/python -m pytest $(TEST_ARGS)

doctest: $(DEV)  ## run the examples in docstrings
	@$(BIN)/python -m pytest -p tests.conftest --doctest-modules l2ljax $(TEST_ARGS)

lint: $(DEV)  ## check style, format and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

bench: $(DEV)  ## run a benchmark: BENCH=name BENCH_ARGS="..."; without a name, list them
ifeq ($(BENCH),)
	@echo "make bench BENCH=name, one of: $(or $(BENCHMARKS),(none yet))"
else
	@$(BIN)/python benchmarks/$(BENCH).py $(BENCH_ARGS)
endif

notebooks: $(DEV)  ## execute the notebooks in place; L2LJAX_SMOKE=1: briefly, writing nothing
ifeq ($(NOTEBOOKS),)
	@echo "no notebooks yet"
else
	@$(BIN)/jupyter-execute $(if $(L2LJAX_SMOKE),,--inplace) $(NOTEBOOKS)
endif

test-lowest: $(LOWEST)/.installed  ## run the tests with the oldest dependencies that are allowed
	@$(LOWEST)/bin/python -m pytest $(TEST_ARGS) -m "not slow"

clean:  ## remove environments, caches and builds, but not runs/
	@rm -rf $(VENV) $(LOWEST) build dist l2ljax/kernels/built .jax_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed-%: pyproject.toml $(KERNEL) | $(BIN)/python
	@echo "Installing l2ljax[$*] into $(VENV); the first time takes a minute or two."
	@$(BIN)/python -m pip --disable-pip-version-check install -qq --editable '.[$*]'
	@$(BIN)/l2ljax build || echo "Without it XLA computes learned LSTMs, more slowly."
	@touch $@

$(LOWEST)/.installed: pyproject.toml $(KERNEL) | $(DEV)
	@echo "Installing the oldest dependencies that are allowed into $(LOWEST)."
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(LOWEST)
	@$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python \
		--resolution lowest-direct --editable '.[dev]'
	@$(LOWEST)/bin/l2ljax build || echo "Without it XLA computes learned LSTMs, more slowly."
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python found; l2ljax needs 3.11 or later." >&2; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "l2ljax needs \
	Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: \
	make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
