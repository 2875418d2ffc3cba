# Everything a fresh machine needs is Python 3.11 and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := dev,postgres,slurm,napari,cvat,topology,formats,stardist,cellpose

DATASET ?=
DATA_DIR ?=
GENERATIONS ?= 3
OUT ?= demo
# a trainer, such as nnunet; the campaign's default when empty
TRAINER ?=
# settings of the campaign, such as SETTINGS="training.iterations=100 query.strategy=bald"
SETTINGS ?=

.PHONY: install demo test test-all lint format clean help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed  ## make .venv and install the pinned dependencies

# nnU-Net pulls in batchgenerators -> unittest2 -> argparse from the package index; that argparse shadows the standard
# library's in some interpreters and stops the Prefect server. Nothing that we run needs the four packages.
# MONAI Label's own client proves our endpoint in the tests; its dependencies would pull in a whole server, and the
# tests it carries would stand before ours.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --no-deps monailabel
	rm -rf $(VENV)/lib/python3.*/site-packages/tests
	$(BIN)/python -m pip uninstall --quiet --yes argparse unittest2 traceback2 linecache2
	touch $@

demo: install  ## three generations of active learning on one volume: make demo [DATASET=… DATA_DIR=… OUT=… GENERATIONS=… TRAINER=… SETTINGS=…]
	$(BIN)/rescueseg demo --out '$(OUT)' --generations $(GENERATIONS) $(if $(DATASET),--dataset '$(DATASET)') $(if $(DATA_DIR),--data-dir '$(DATA_DIR)') $(if $(TRAINER),--set 'training.trainer=$(TRAINER)') $(foreach s,$(SETTINGS),--set '$(s)')

test: install  ## the tests that run in under 15 minutes
	$(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadfile --max-worker-restart 2

test-all: install  ## all tests, the slow ones too
	$(BIN)/python -m pytest -n 1 --max-worker-restart 2

lint: install  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install  ## let ruff format and fix
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what the demo and the tools left
	rm -rf demo .pytest_cache .mypy_cache .ruff_cache .hypothesis
