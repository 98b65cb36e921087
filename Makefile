# robustkit's front door. Needs make, Python 3.11+ with pip, and nothing else: everything below goes into .venv.
#   make demo PYTHON=python3.12      another interpreter
#   make test ARGS="-k pgd -x"       arguments for pytest
#   make test JOBS=0                 in one process, for a debugger; by default one process a core, at most 8
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= auto
ARGS   ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# A shell that exports PYTHONPATH must not decide what `robustkit` is, and no target may read the terminal.
unexport PYTHONPATH
export PIP_NO_INPUT := 1
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint docs docs-serve bench wheel clean

help: ## what can be made
	@echo "robustkit: make TARGET, where TARGET is one of"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed-demo ## evaluate two embedded models on real images and write an HTML report
	@$(BIN)/python examples/demo.py $(ARGS)

test: $(VENV)/.installed-test ## run every test, doctests included
	@$(BIN)/python -m pytest -n $(JOBS) --maxprocesses=8 --dist=worksteal $(ARGS)

lint: $(VENV)/.installed-test ## ruff, mypy --strict and the import directions
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: $(VENV)/.installed-test ## build the documentation into site/, warnings being errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "documentation: site/index.html"

docs-serve: $(VENV)/.installed-test ## the documentation at a local address, rebuilt as you write
	@$(BIN)/mkdocs serve

bench: $(VENV)/.installed-test ## compare speed and memory with other libraries, and write docs/benchmarks.md
	@$(BIN)/python -m benchmarks $(ARGS)

wheel: $(VENV)/.installed-test ## build dist/robustkit-*.whl
	@$(BIN)/python -m build --wheel --no-isolation .

clean: ## remove .venv and everything built, but no run
	rm -rf $(VENV) .bench-venv build dist site robustkit.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# One environment; a stamp per extra, so that pip runs again only when the metadata changed.
$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) not found: install Python 3.11 or newer, or name one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "robustkit needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: setup.cfg pyproject.toml | $(BIN)/python
	$(PIP) install --quiet -e '.[$*]'
	@touch $@
