# make demo    train the demo on one backend: BACKEND=jax (the lightest), torch or tensorflow
# make test    the whole suite on all backends, one process a backend
# make lint    style and types
# make package build sdist and wheel, and test the wheel away from the checkout

VENV ?= .venv
PYTHON ?= python3
BACKEND ?= jax
BIN := $(VENV)/bin
PIP := $(BIN)/pip --quiet --disable-pip-version-check
FRAMEWORK_jax := jax
FRAMEWORK_torch := torch
FRAMEWORK_tensorflow := tensorflow-cpu

.PHONY: demo test lint package clean

demo: $(VENV)/.demo-$(BACKEND)
	KERAS_BACKEND=$(BACKEND) $(BIN)/pernodedrop demo

test: $(VENV)/.test
	$(BIN)/python -m tests $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

package: $(VENV)/.test
	$(BIN)/python -m tests.package

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install 'pip>=25.1'
	touch $@

$(VENV)/.demo-$(BACKEND): $(VENV)/.pip pyproject.toml constraints.txt
	$(if $(FRAMEWORK_$(BACKEND)),,$(error BACKEND=$(BACKEND): expected jax, torch or tensorflow))
	$(PIP) install -c constraints.txt $(FRAMEWORK_$(BACKEND)) -e '.[demo]'
	touch $@

$(VENV)/.test: $(VENV)/.pip pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e . --group frameworks --group test --group lint --group package
	touch $@
