# What a fresh clone needs: Python 3.10 or newer and make. Every target sets up .venv first; a second call skips that.
#   make demo     the whole job, from a (simulated) microscope to restored stacks, into demo-out/
#   make test     the tests, on all cores, warnings are errors
#   make lint     ruff, both linter and formatter
#   make types    mypy strict
#   make faults        every fault that this machine can stage, against a real daemon; writes docs/reliability.md's table
#   make faults-quick  the part of it that fits into ten minutes
# Variables: PYTHON (which Python makes .venv), EXTRAS (what gets installed), ARGS (passed on to the command or to pytest).

PYTHON ?= python3
EXTRAS ?= demo,tensorrt-rtx,dev
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test faults faults-quick lint types format clean

help:
	@sed -n 's/^#   //p' Makefile

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, %s is %s: make PYTHON=python3.11 ..." % (sys.executable, sys.version.split()[0]))'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

demo: $(STAMP)
	$(BIN)/ssai3d-rt demo $(ARGS)

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

faults: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --table docs/reliability.md $(ARGS)

faults-quick: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --quick --jobs 2 $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP)
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
