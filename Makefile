# make demo    build the environment, install, run the demonstration on real input
# make cluster three servers and three nodes on this machine, two of them killed on the way
# make test    the whole suite; PYTEST_ARGS="-k name -x" narrows it, JOBS=4 uses more processes
# make check   ruff (lint and format) and mypy --strict
# make format  what ruff can correct by itself
# make perf    everything worth knowing about speed here, as one page, in some minutes; PERF_ARGS="--out DIR" changes it
# make perf-smoke  ratios of speeds beside those recorded for such a machine, perf/recorded.json
# make clean   remove the environment, caches and build products
#
# Needs make, a C compiler and Python 3.11 or newer; no environment has to be active. PYTHON=/path/to/python chooses one.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

NEW_ENOUGH := 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	"$$p" -c $(NEW_ENOUGH) >/dev/null 2>&1 && { echo "$$p"; break; }; done)

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

JOBS        ?= 2
PYTEST_ARGS ?=
DEMO_ARGS   ?=
CLUSTER_ARGS ?=
PERF_ARGS   ?= --quick

# A build that silently lost its compiled part must not pass for a whole one.
export SHARDENGINE_COMPILED ?= require

# The suite starts thousands of interpreters: let them keep what the first of them has compiled.
unexport PYTHONDONTWRITEBYTECODE
# Buffered output, as users have it, shows what is left in a buffer at exit.
unexport PYTHONUNBUFFERED

.PHONY: help demo cluster test check format perf perf-smoke clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

$(STAMP): pyproject.toml shards/fast/_puts.c shards/fast/_bytes.h shards/fast/_split.h
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer with venv found; set PYTHON=/path/to/python" >&2; exit 2; }
	rm -f shards/fast/*.so  # an old one must not stand in for one that cannot be built
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/shardengine demo $(DEMO_ARGS)

cluster: $(STAMP)
	$(BIN)/shardengine cluster demo $(CLUSTER_ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

perf: $(STAMP)
	$(BIN)/python -m perf report $(PERF_ARGS)

perf-smoke: $(STAMP)
	$(BIN)/python -m perf smoke

clean:
	rm -rf $(VENV) build dist *.egg-info shards/fast/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
