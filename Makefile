# Three commands for a newcomer, and what they are made of. Nothing but Python 3.11 and make is needed beforehand.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install demo test bench check format reference clean

install: $(VENV)/.installed ## create .venv and install the package

demo: $(VENV)/.installed ## train a chat model from nothing
	$(BIN)/seq2chat demo

test: $(VENV)/.installed-dev ## run the tests
	$(BIN)/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder

bench: $(VENV)/.installed-dev ## measure the speed of this machine, beside peers named in BENCH (up to 30 minutes)
	$(BIN)/python benchmarks/speed.py $(BENCH)

check: $(VENV)/.installed-dev ## check lint, formatting, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## auto-fix lint and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

reference: $(VENV)/.installed-dev ## write the API reference to site/
	$(BIN)/python docs/reference.py site

clean:
	rm -rf $(VENV)

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "seq2chat needs Python 3.11 or newer; name one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"  # an older one knows no --group
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group dev
	touch $@
