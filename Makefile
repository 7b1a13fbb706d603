PYTHON ?= python3
MINUTES ?= 10
SEED ?=
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow check fuzz bench docs reproduce stress

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

setup: .venv/ready-dev ## make .venv with everything a developer needs

train: .venv/ready ## train a small model on four local peers while some of them crash
	$(BIN)/atoll train --peers 4 --chaos

test: .venv/ready-dev ## run the quick tests
	$(BIN)/pytest --beside --numprocesses auto
	$(BIN)/pytest --alone

test-slow: .venv/ready-dev ## run the tests that take minutes, and all cases of those that `make test` samples
	$(BIN)/pytest -m 'slow or sampled'

check: .venv/ready-dev ## format, lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: .venv/ready-fuzz ## fuzz all that reads foreign bytes, MINUTES=10 for each target
	$(BIN)/python -m tests.fuzzers --seconds $$(($(MINUTES) * 60))

bench: .venv/ready ## compare the all-reduce with gloo's
	$(BIN)/python benchmarks/all_reduce.py

docs: .venv/ready-dev ## build the documentation into site/
	$(BIN)/mkdocs build --strict

reproduce: .venv/ready ## check the claims of the first system on this machine
	$(BIN)/atoll reproduce pccl

stress: .venv/ready ## put a group under all that can go wrong, for MINUTES=10, from SEED=
	$(BIN)/python -m atoll.reproduce.stress --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# Stamps, so that a second `make` is instant: what users need, and what developers need on top.
.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("atoll needs Python 3.11 or newer, $(PYTHON) is %d.%d. Name another: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv --clear .venv

.venv/ready: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[plot]'
	@touch $@

.venv/ready-dev: pyproject.toml constraints.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch .venv/ready $@

# Where atheris has no wheel, fuzzing goes on without coverage.
.venv/ready-fuzz: .venv/ready-dev
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[fuzz]' || true
	@touch $@
