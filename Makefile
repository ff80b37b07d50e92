# Needs only python3 (3.11 or newer) with venv, make, and a registry of Python packages.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# `-c constraints-3.N.txt`, the versions tested together on the Python of $(VENV); nothing where no such file exists.
CONSTRAINTS = $$($(BIN)/python -c 'import os, sys; f = "constraints-%d.%d.txt" % sys.version_info[:2]; print("-c " + f if os.path.exists(f) else "")')

.PHONY: help setup setup-test setup-plan libtpu run test test-slow lint format clean

help:
	@echo "make run        train the small model, then write a GLB, a turntable and a report (some 5 minutes on 2 cores)"
	@echo "make test       the test suite          make test-slow   the minutes-long tests"
	@echo "make setup-plan the compiler for TPUs, in .venv-plan, for \`t3d plan\` (2 GB)"
	@echo "make setup      the virtual environment make lint        ruff"

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt pyproject.toml $(wildcard constraints-*.txt)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 't3d needs Python 3.11 or newer: make PYTHON=python3.12 ...'; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e . $(CONSTRAINTS)
	touch $@

setup-test: $(VENV)/.installed-test

$(VENV)/.installed-test: $(VENV)/.installed requirements-test.txt
	$(BIN)/python -m pip install --quiet -r requirements-test.txt $(CONSTRAINTS)
	touch $@

# In an environment of its own: where libtpu is, jax looks for a TPU at every start.
setup-plan:
	$(MAKE) VENV=.venv-plan setup libtpu

libtpu:
	$(BIN)/python -m pip install --quiet -e ".[tpu]" $(CONSTRAINTS)

run: setup
	$(BIN)/t3d train configs/instant3d.py:rays --prompts "a red cube" "a purple sphere" "a small green cone"

test: setup-test lint
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup-test
	$(BIN)/python -m pytest -m slow

lint: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet . || { echo 'not formatted: make format'; exit 1; }

format: setup-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build .jax_cache .pytest_cache *.egg-info
