# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install quickstart test test-slow lint format dashboard benchmarks clean

help: ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 20

install: $(STAMP) ## Make .venv with everything in it (once; again when pyproject.toml changes).

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (2 to 4 minutes the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -e '.[dev]' 2> $(VENV)/install.log || \
	  { cat $(VENV)/install.log >&2; exit 1; }
	@touch $@

quickstart: $(STAMP) ## Run the main job: distil by REOPOLD, plain distillation and GRPO, and report.
	@$(BIN)/reopold quickstart $(ARGS)

test: $(STAMP) ## Pass the tests (`make test ARGS='-k rewards'` for some).
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(STAMP) ## Pass the tests that take minutes.
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(ARGS)

lint: $(STAMP) ## Check style, types and import contracts.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP) ## Format and mend what ruff can.
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

dashboard: $(STAMP) ## Serve Prefect and MLflow over .reopold/ on loopback.
	@$(BIN)/reopold dashboard $(ARGS)

benchmarks: $(STAMP) ## Measure speed and memory (on demand; never part of the tests).
	@$(BIN)/python -m tests.benchmarks $(ARGS)

clean: ## Remove the environment and all state.
	rm -rf $(VENV) .reopold
