# make demo        train the demo on one backend: BACKEND=jax (the lightest), torch or tensorflow
# make test        the whole suite on all backends; BACKENDS="numpy jax" installs and tests some
#                  ARGS="tests/test_ops.py -k product" or ARGS=tests/test_ops.py::test_name are some tests
# make test-fast   without the tests marked slow, on NumPy and torch, which compile nothing, or on BACKENDS
# make test-alone  with torch alone, in .venv-alone: what needs neither Keras nor another framework
# make lint        style, types, and how safe the workflows are
# make bench       what a step costs on all backends; ARGS="--profile paper --output benchmarks/results" as committed
# make docs        build the site in docs/_build/html
# make package     build sdist and wheel, and test the wheel away from the checkout; DIST=dist tests what lies there
# make mutate      which broken lines of the library no test notices; ARGS="--count 60 --seed 0"
# make pre-commit  check style and types of every commit before it is made
# make clean       remove the environment and what was built

VENV ?= .venv
PYTHON ?= python3
BACKEND ?= jax
BIN := $(VENV)/bin
PIP := $(BIN)/pip --quiet --disable-pip-version-check
# pip compiles what it installs on one core; this does it on all, without what no one imports
INSTALL := $(PIP) install --no-compile -c constraints.txt
COMPILE = $(BIN)/python -m compileall -qq -j 0 -x '/tests/' $(VENV)/lib || true
ALL := numpy jax torch tensorflow
EAGER := numpy torch
FRAMEWORK_jax := jax
FRAMEWORK_torch := torch
FRAMEWORK_tensorflow := tensorflow-cpu

# its tensorflow-text would bring the whole of TensorFlow beside tensorflow-cpu; models are built without it
KERAS_HUB := keras-hub==0.32.0 kagglehub==1.0.3 kagglesdk==0.1.38 pyyaml==6.0.3 regex==2026.11.15 sentencepiece==0.2.3 tokenizers==0.23.3

.PHONY: demo test test-fast test-alone lint bench package mutate pre-commit clean

demo: $(VENV)/.demo-$(BACKEND)
	KERAS_BACKEND=$(BACKEND) $(BIN)/pernodedrop demo

test: $(patsubst %,$(VENV)/.test-%,$(or $(BACKENDS),$(ALL)))
	BACKENDS="$(or $(BACKENDS),$(ALL))" $(BIN)/python -m tests $(ARGS)

test-fast: $(patsubst %,$(VENV)/.test-%,$(or $(BACKENDS),$(EAGER)))
	BACKENDS="$(or $(BACKENDS),$(EAGER))" $(BIN)/python -m tests --fast $(ARGS)

test-alone:
	$(PYTHON) -m venv .venv-alone
	.venv-alone/bin/pip install -c constraints.txt torch numpy scipy numba hypothesis matplotlib pytest tqdm
	.venv-alone/bin/pip install --no-deps -e .
	BACKENDS=torch .venv-alone/bin/python -m tests $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/zizmor --offline --quiet --persona=pedantic .github

bench: $(VENV)/.test
	KERAS_BACKEND=numpy $(BIN)/pernodedrop bench $(ARGS)

package: $(VENV)/.test
	$(BIN)/python -m tests.package $(DIST)

mutate: $(VENV)/.test
	$(PIP) install -c constraints.txt --group mutate
	$(BIN)/python -m tests.mutate $(ARGS)

pre-commit: $(VENV)/.test
	$(PIP) install -c constraints.txt --group hooks
	$(BIN)/pre-commit install

.PHONY: docs
docs: $(VENV)/.docs
	KERAS_BACKEND=jax $(BIN)/sphinx-build -W --keep-going -n -b html docs docs/_build/html

clean:
	rm -rf $(VENV) .venv-alone build dist *.egg-info

$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install 'pip>=25.1'
	touch $@

$(VENV)/.demo-$(BACKEND): $(VENV)/.pip pyproject.toml constraints.txt
	$(if $(FRAMEWORK_$(BACKEND)),,$(error BACKEND=$(BACKEND): expected jax, torch or tensorflow))
	$(PIP) install -c constraints.txt $(FRAMEWORK_$(BACKEND)) -e '.[demo]'
	touch $@

# NumPy is every environment's, and needs no framework
$(VENV)/.test-numpy: $(VENV)/.pip pyproject.toml constraints.txt
	$(INSTALL) -e . --group test
	$(COMPILE)
	touch $@

$(VENV)/.test-jax $(VENV)/.test-torch $(VENV)/.test-tensorflow: $(VENV)/.test-%: $(VENV)/.test-numpy
	$(INSTALL) --group test-$* $(if $(filter jax,$*),--group test-flax)
	$(if $(filter torch,$*),$(PIP) install --no-deps $(KERAS_HUB))
	$(COMPILE)
	touch $@

# all backends, and what checks, builds and measures the library
$(VENV)/.test: $(VENV)/.test-jax $(VENV)/.test-torch $(VENV)/.test-tensorflow
	$(PIP) install -c constraints.txt --group lint --group package
	touch $@

$(VENV)/.docs: $(VENV)/.pip pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt jax torch flax equinox -e . --group docs
	touch $@
