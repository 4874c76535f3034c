# PYTHON       the interpreter that makes the virtual environment, 3.11 or newer; one with 3.12 in its name or path gets
#              the newest JAX, in an environment of its own: .venv-newest and constraints-newest.txt
# ACCELERATOR  cuda13 or tpu: what `make install` installs JAX for; empty: CPU
# CONFIG       the demo's settings
# WORKDIR      the demo's folder
# TESTS        the test files, or tests, to run; empty: all
# THIRD        0, 1 or 2: of the slow tests only that third; empty: all
# TORCH_INDEX  a pip index with CPU builds of PyTorch (tests only); empty: pip's own, which on Linux may bring CUDA
PYTHON ?= python3
STACK := $(if $(findstring 3.12,$(PYTHON)),-newest)
VENV ?= .venv$(STACK)
CONSTRAINTS ?= constraints$(STACK).txt
SMOKE := runs/smoke$(STACK)
ACCELERATOR ?=
TORCH_INDEX ?=
WORKERS ?= 2
TESTS ?=
THIRD ?=
CONFIG ?= configs/demo.py
WORKDIR ?= runs/demo

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)
# Every worker begins with a run of neighbours, which share what they compile and write; one that has finished takes
# over half of what another still has to do.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: install install-tests demo ablation criteria dreambooth smoke test test-slow install-oracles oracles fuzz lint format lock clean \
  test-faults

install: $(VENV)/.installed-$(ACCELERATOR)

$(VENV)/.installed-$(ACCELERATOR): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) --editable .$(if $(ACCELERATOR),[$(ACCELERATOR)])
	touch $@

# The whole of it on the shapes world: report.html and report.json in runs/demo.
demo: install
	$(BIN)/python -m launch.demo --config=$(CONFIG) --workdir=$(WORKDIR)

# The paper's ablation on the shapes world, an hour and a half on two cores: run it in the background.
ablation: install
	$(BIN)/python -m launch.ablation --config=configs/ablation.py --workdir=runs/ablation

# Scores of the shapes teacher's blocks, then students chosen by them, trained and scored: an hour and a half on two
# cores. The page is runs/criteria/criteria.html. If it is interrupted, the same command continues.
criteria: install
	$(BIN)/python -m launch.analyse --config=configs/analyse.py:shapes,sensitivity \
	  --config.criteria="('magnitude','taylor','output_error','clip','frechet')" --workdir=runs/blocks
	$(BIN)/python -m launch.sweep --config=configs/sweep.py:shapes,criteria --config.block_scores=runs/blocks \
	  --workdir=runs/criteria

# The shapes teacher and a distilled student learn a heart from five pictures: by DreamBooth, by LoRAs, and the student by
# the teacher's LoRA; 25 minutes on two cores. Pages: runs/dreambooth/hearts/report/report.html, and of the other shapes
# runs/dreambooth/shapes/report/report.html. If it is interrupted, the same command continues.
dreambooth: install
	PATH=$(abspath $(BIN)):$$PATH launch/dreambooth.sh runs/dreambooth

# Two updates and an image, hardly optimised, without the tests' packages: whether an environment works at all.
smoke: export XLA_FLAGS = --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true
smoke: install
	rm -rf $(SMOKE)
	$(BIN)/python -m launch.train --config=configs/distill.py:shapes,bk_tiny,runlocal --config.steps=2 \
	  --config.sheets.steps=0 --config.validation.images=0 --workdir=$(SMOKE)/student
	$(BIN)/python -m launch.sample --config=configs/sample.py --config.model=$(SMOKE)/student/model \
	  --config.prompt="a small red circle" --config.steps=2 --workdir=$(SMOKE)/images

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

install-tests: $(VENV)/.tests-installed

$(VENV)/.tests-installed: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) --editable .[test]
	touch $@

# Offline, on eight fake CPU devices.
test: $(VENV)/.tests-installed
	$(PYTEST) $(TESTS)

# What those marked `slow` add: the same checks on more networks, and at full size.
test-slow: $(VENV)/.tests-installed
	$(PYTEST) -m slow $(if $(THIRD),--third=$(THIRD)) $(TESTS)

install-oracles: .oracles/.installed

# Without their dependencies, and apart from $(VENV): a torchvision there would change what the originals import.
# Two of them also install a package `tests` or programs.
.oracles/.installed: constraints-oracles.txt $(VENV)/.tests-installed
	rm -rf .oracles
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target .oracles --requirement $<
	rm -rf .oracles/tests .oracles/bin
	touch $@

# Scores against the tools that published ones come from.
oracles: .oracles/.installed
	PYTHONPATH=.oracles $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile tests/oracles

# Training that is killed, told to stop, moved and robbed of disk space, in real processes: half an hour on two idle
# cores. Prints a figure for each kind. FAULTS='kills=5,bits=20' asks for other numbers of trials (those of
# tests/faults/trials.py), FAULTS_SEED for the choices of an earlier run. Mounts small disks, if it may.
test-faults: $(VENV)/.tests-installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist load --maxschedchunk 1 tests/faults

# Mutants of a model's configs, FUZZ of them, or the one of a failure: MUTANT='...'
fuzz: export FUZZ ?= 10000
fuzz: $(VENV)/.tests-installed
	$(BIN)/python -m pytest -n 0 --capture=no tests/test_config_fuzz.py

lint: $(VENV)/.tests-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck .ci/run launch/dreambooth.sh

format: $(VENV)/.tests-installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Brings every dependency to its newest allowed version and writes down what that is, for the stack that PYTHON chooses.
# CUDA's packages, which pip may bring with PyTorch, aren't written down: JAX wants its own versions of them.
lock:
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) 'torch==2.13.0'
	$(BIN)/python -m pip install --quiet --editable .[test]
	$(BIN)/python -m pip freeze --exclude-editable | grep -Ev '^(nvidia|cuda|triton)' | sed 's/+cpu$$//' > $(CONSTRAINTS)

clean:
	rm -rf $(VENV) .venv-newest .oracles .jax_cache .pytest_cache .ruff_cache bksdm_jax.egg-info
