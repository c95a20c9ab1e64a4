# Two commands do everything on a fresh machine with Python 3.11+, make and a package index:
#   make quickstart   the whole job on the embedded digits data
#   make test         the tests
# make test OPTUNA=4.8.0 runs those of the sampler, the storage and studies on that version of
# Optuna, in an environment beside the first.
PYTHON ?= python3
OPTUNA ?=
VENV := $(if $(OPTUNA),.venv-optuna-$(OPTUNA),.venv)
BIN := $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS)
CONSTRAINTS := $(if $(OPTUNA),$(VENV)/constraints.txt,constraints.txt)
EXTRA := $(if $(OPTUNA),test,dev)
# what has to do with Optuna, and with its version
TESTS := $(if $(OPTUNA),tests/sampler tests/report tests/families tests/test_storage.py \
	tests/test_objective.py tests/test_stored.py tests/test_studies.py \
	--ignore tests/sampler/test_limits.py --ignore tests/sampler/test_sources.py)

.PHONY: quickstart test lint types wheel hub clean

quickstart: $(VENV)/.installed
	$(BIN)/apq-optuna quickstart

test: $(VENV)/.installed-$(EXTRA)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 $(TESTS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# A wheel that runs the quickstart where nothing else is installed.
wheel: $(VENV)/.installed-dev
	.ci/wheel $(BIN)/python

# The OptunaHub package of the sampler, whole, in build/hub.
hub: $(VENV)/.installed
	$(BIN)/python hub/build.py

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

# the pinned versions, but for Optuna's, which is the one asked for
$(VENV)/constraints.txt: constraints.txt | $(BIN)/python
	grep -v '^optuna==' constraints.txt > $@
	echo 'optuna==$(OPTUNA)' >> $@

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(PIP) torch==2.13.0
	$(PIP) --editable .
	touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	$(PIP) --editable '.[$*]'
	touch $@

clean:
	rm -rf .venv .venv-optuna-* runs dist build *.egg-info
