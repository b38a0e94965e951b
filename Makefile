# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: demo test lint bench fuzz clean

demo: .venv/ready
	@$(BIN)/fleetfold demo

test: .venv/ready lint
	@$(BIN)/pytest -n 2 --dist worksteal

lint: .venv/ready
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: .venv/ready
	@for name in overhead fold select buffered attack codecs proximal privacy fleet agent; do $(BIN)/python -m bench $$name || exit 1; done

# Mutated updates through the gate and the fold: FUZZ_FILES of them (a million), from FUZZ_SEED (any).
fuzz: .venv/ready
	@$(BIN)/python -m tests.fuzz

# Everything with pip, under the versions that were tested together; again when either file changes.
.venv/ready: pyproject.toml constraints.txt hatch_build.py src/fleetfold/fold/_kernel.c
	@test -d .venv || $(PYTHON) -m venv .venv
	@echo "installing into .venv, about a minute the first time"
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[demo,dev]'
	@touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .import_linter_cache .hypothesis
