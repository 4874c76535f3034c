# PYTHON       the interpreter that makes the virtual environment, 3.11 or newer
# ACCELERATOR  cuda13 or tpu: what `make install` installs JAX for; empty: CPU
# CONFIG       the demo's settings
# WORKDIR      the demo's folder
# TORCH_INDEX  a pip index with CPU builds of PyTorch (tests only); empty: pip's own, which on Linux may bring CUDA
PYTHON ?= python3
VENV ?= .venv
ACCELERATOR ?=
TORCH_INDEX ?=
WORKERS ?= 2
CONFIG ?= configs/demo.py
WORKDIR ?= runs/demo

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Tests of one file share what they compile and write.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: install demo ablation test test-slow lint format lock clean

install: $(VENV)/.installed-$(ACCELERATOR)

$(VENV)/.installed-$(ACCELERATOR): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .$(if $(ACCELERATOR),[$(ACCELERATOR)])
	touch $@

# The whole of it on the shapes world: report.html and report.json in runs/demo.
demo: install
	$(BIN)/python -m launch.demo --config=$(CONFIG) --workdir=$(WORKDIR)

# The paper's ablation on the shapes world, an hour and a half on two cores: run it in the background.
ablation: install
	$(BIN)/python -m launch.ablation --config=configs/ablation.py --workdir=runs/ablation

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.tests-installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) --editable .[test]
	touch $@

# Offline, on eight fake CPU devices.
test: $(VENV)/.tests-installed
	$(PYTEST)

# What those marked `slow` add: the same checks on more networks, and at full size.
test-slow: $(VENV)/.tests-installed
	$(PYTEST) -m slow

lint: $(VENV)/.tests-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.tests-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Brings every dependency to its newest allowed version and writes down what that is.
lock:
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) 'torch==2.13.0'
	$(BIN)/python -m pip install --quiet --editable .[test]
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) .jax_cache .pytest_cache .ruff_cache bksdm_jax.egg-info
