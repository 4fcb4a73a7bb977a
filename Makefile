# Two commands do everything on a fresh machine with Python 3.11 or newer:
#
#     make train      set up, train a GPT on the built-in corpus, write some text with it
#     make test       set up, prove everything
#
# ARGS is passed on:  make train ARGS="--data story.txt --train.steps 500"

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
ARGS   ?=

.DEFAULT_GOAL := help
.PHONY: help train test oracles torture lint bench prove mutate clean

help: ## show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

train: $(VENV)/.run ## train a GPT on the built-in corpus and sample from it
	@$(BIN)/python train.py $(ARGS)

test: $(VENV)/.test ## prove it right (tests that need an oracle of the bench extra are skipped where it is absent)
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

oracles: $(VENV)/.bench ## only the tests that compare with PyTorch, Hugging Face and tiktoken
	@$(BIN)/python -m pytest -m oracle $(ARGS)

torture: $(VENV)/.test ## kill, tear, poison and fill the disk under hundreds of runs: docs/reliability.md (about ten minutes)
	@$(BIN)/python -m pytest -m torture $(ARGS)

lint: $(VENV)/.test ## style, types and the arrows between rooms
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(VENV)/.bench ## measure against PyTorch and others, side by side
	@$(BIN)/python -m benchmarks $(ARGS)

prove: $(VENV)/.test ## prove every operator at full size: certificate.html
	@$(BIN)/python -m autograd.prove $(ARGS)

mutate: $(VENV)/.test ## are the tests good enough? docs/mutation.md (an hour or two; stop it when you like, it goes on from there)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "cosmic-ray>=8"
	@$(BIN)/python tests/mutation.py $(ARGS)

clean: ## remove the environment (not your runs)
	rm -rf $(VENV) *.egg-info

# -- the environment: made once, renewed when setup.cfg changes ---------------------------------------------------

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "groundup needs Python 3.11 or newer, this is $$($(PYTHON) --version); try: make PYTHON=python3.12 ..."; exit 2; }
	@echo "making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/python setup.cfg
	@echo "installing what groundup runs on (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	@echo "installing what the tests need (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	@touch $@

$(VENV)/.bench: $(VENV)/.test
	@echo "installing the oracles and peers, PyTorch among them (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test,bench]"
	@touch $@
