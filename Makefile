# What people and CI run. Each target does its own set-up on a fresh Debian, Ubuntu or macOS with Python >= 3.11.
# (macOS: needs 14 or later on Apple silicon; the pins resolve there and the commands were reviewed, but it was not run.)
#
#   TORCH_INDEX=URL  take torch from another package index at set-up. With the URL of the CPU builds, which PyTorch's
#                    install guide names, a laptop fetches 0.2 GB instead of CUDA's 3 (to change it later: rm -r .venv)
#   PYTHON=NAME      the interpreter that .venv is made with
#   CORES=N          processes for the tests
#   POLYFM_DATA=DIR  real data sets; without it the tests that need them are deselected and counted

export TORCH_INDEX PYTHON
BIN := .venv/bin
CORES ?= 2
# One thread per process: the tests run in CORES processes.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES)

.PHONY: help .venv demo test test-full evidence lint format types contracts package bench

help:  ## this list
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

.venv: .venv/.installed  ## the environment alone

.venv/.installed: pyproject.toml constraints.txt .ci/setup
	@bash .ci/setup .venv dev

.venv-bench/.installed: pyproject.toml constraints.txt .ci/setup
	@bash .ci/setup .venv-bench bench rdkit scipy

demo: .venv  ## pre-train on real molecules, fine-tune, open a report: about four minutes
	$(BIN)/polyfm demo molecules

test: .venv  ## the tests, up to 15 minutes on two cores
	$(PYTEST)

test-full: .venv  ## the longer tier, up to 90 minutes
	$(PYTEST) --tier full

evidence: .venv  ## runs on real data with fixed seeds and budgets, hours; figures go to benchmarks/results/
	$(BIN)/python -m pytest --tier evidence --timeout 0

lint: .venv  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv  ## repair style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: .venv  ## mypy, strict
	$(BIN)/mypy

contracts: .venv  ## who may import whom
	$(BIN)/lint-imports --no-logo

package: .venv  ## build sdist and wheel, try the wheel in a clean environment
	$(BIN)/python .ci/check_package.py

bench: .venv-bench/.installed  ## speed and memory against the peers, in an environment of their own
	for script in benchmarks/*.py; do .venv-bench/bin/python $$script || exit 1; done
