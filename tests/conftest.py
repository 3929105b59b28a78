"""One process tests one backend: KERAS_BACKEND chooses it, HYPOTHESIS_PROFILE how long properties are searched.

Where Keras is not installed, the tests that need none run without it; those of NumPy also where JAX is not, of whose
functions Keras' NumPy backend is made.
"""

import functools
import gc
import importlib
import os
import pathlib
import random
import tempfile
import zlib

_keras_home = tempfile.TemporaryDirectory(prefix="keras-home-")  # a developer's ~/.keras must not leak in
os.environ["KERAS_HOME"] = _keras_home.name
BACKEND = os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import hypothesis
import numpy
import pytest
import scipy

from tests.__main__ import CORE, WITHOUT_KERAS, has_keras

HAS_KERAS, NO_KERAS = has_keras(BACKEND), "no Keras, or not the jax that its NumPy backend needs"
if HAS_KERAS:
    import keras  # before the library, which then registers its classes with Keras
if HAS_KERAS and BACKEND == "numpy":  # there Keras traces layers on uninitialized memory, which may hold what overflows
    keras.src.backend.compute_output_spec = numpy.errstate(all="ignore")(keras.src.backend.compute_output_spec)

from pernodedrop import backends

HERE = pathlib.Path(__file__).parent
FUSION_EMITTERS = "xla_cpu_use_fusion_emitters"
collect_ignore = ["__main__.py", "package.py", "scripts"]  # for --doctest-modules: they are run, not imported
if not HAS_KERAS:
    collect_ignore += [file.name for file in HERE.glob("test_*.py") if file.stem not in WITHOUT_KERAS]

hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, max_examples=30, print_blob=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_modifyitems(items):
    for item in items:
        if isinstance(item, pytest.DoctestItem):
            item.add_marker(pytest.mark.once)
        for mark in list(item.iter_markers()):
            if reason := reason_to_skip(mark, item.nodeid):
                item.add_marker(pytest.mark.skip(reason=reason))


def reason_to_skip(mark, test):
    """Why a mark keeps its test from the backend under test; None if it does not. One that is not well made fails."""
    if mark.name not in ("skip_backend", "only_backend"):
        return None
    reason = mark.kwargs.get("reason")
    if not mark.args or not set(mark.args) <= set(backends.NAMES) or list(mark.kwargs) != ["reason"] or not reason:
        expected = f"names of {', '.join(backends.NAMES)}, and reason='...'"
        raise pytest.UsageError(f"{mark.name} of {test}: expected {expected}. Received: {mark.args}, {mark.kwargs}")
    return reason if (BACKEND in mark.args) == (mark.name == "skip_backend") else None


def pytest_report_header():
    with_keras = f"Keras {keras.__version__}" if HAS_KERAS else NO_KERAS
    return f"{BACKEND}, {with_keras}, NumPy {numpy.__version__}, SciPy {scipy.__version__}"


def pytest_collection_finish():
    """What is loaded by now stays, so no collection of garbage need look at it again."""
    gc.collect()
    gc.freeze()


needs_keras = pytest.mark.skipif(not HAS_KERAS, reason=NO_KERAS)


@pytest.fixture(scope="session", autouse=True)
def requested_backend():
    """A backend that was asked for and does not load is a failure, never a skip."""
    if HAS_KERAS:
        assert keras.backend.backend() == BACKEND
        assert backends.name_of(keras.ops.convert_to_tensor(0.0)) == BACKEND
    assert backends.get(BACKEND).__name__ == f"pernodedrop.backends.{BACKEND}_ops"


@pytest.fixture(autouse=True, scope="module")
def compiled_in_a_hurry(request):
    """JAX optimizes what the core's tests run, as it does for users; what it changes there is all it could change."""
    hurry = BACKEND == "jax" and request.path.stem not in CORE
    if BACKEND == "jax":
        importlib.import_module("jax").config.update("jax_disable_most_optimizations", hurry)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(int(hurry)))  # of the processes that a test starts
        if hurry and has_fusion_emitters():
            compiler = importlib.import_module("jax._src.compiler")  # a process has no setting for one module
            options = compiler.get_compile_options

            def without_fusion_emitters(*args, env_options_overrides=None, **kwargs):
                asked = {FUSION_EMITTERS: False, **(env_options_overrides or {})}
                return options(*args, env_options_overrides=asked, **kwargs)

            patch.setattr(compiler, "get_compile_options", without_fusion_emitters)
            patch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} --{FUSION_EMITTERS}=false")
        yield


@functools.cache
def has_fusion_emitters():
    """Whether this JAX has the option to do without what makes XLA compile for a CPU twice as long; 0.12 has not."""
    jax = importlib.import_module("jax")
    try:
        jax.jit(abs).lower(1.0).compile({FUSION_EMITTERS: False})
    except jax.errors.JaxRuntimeError:
        return False
    return True


@pytest.fixture(autouse=True)
def same_numbers_in_every_run(request):
    """Weights and seeds that a test does not give are other ones in every test, and the same ones in every run."""
    seed = zlib.crc32(request.node.nodeid.encode())
    if HAS_KERAS:
        keras.utils.set_random_seed(seed)
    else:
        random.seed(seed)
        numpy.random.seed(seed)
        if BACKEND == "torch":
            importlib.import_module("torch").manual_seed(seed)


@pytest.fixture(autouse=True)
def first_weights_of_numpy(monkeypatch):
    """JAX compiles up to half a second for the first weights of every shape."""
    if not HAS_KERAS or BACKEND != "jax":
        return
    of_jax, initializers = keras.src.backend.random.uniform, keras.initializers

    def tensor(numbers, dtype):
        return keras.ops.convert_to_tensor(numbers, dtype or keras.config.floatx())

    def uniform(shape, minval=0.0, maxval=1.0, dtype=None, seed=None):
        if not isinstance(seed, int):
            return of_jax(shape, minval, maxval, dtype, seed)
        return tensor(numpy.random.default_rng(seed % 2**32).uniform(minval, maxval, shape), dtype)

    def orthogonal(self, shape, dtype=None):
        numbers = numpy.random.default_rng(self.seed % 2**32).normal(size=(numpy.prod(shape[:-1]), shape[-1]))
        u, _, v = numpy.linalg.svd(numbers, full_matrices=False)
        return tensor(self.gain * (u @ v).reshape(shape), dtype)

    monkeypatch.setattr(keras.src.backend.random, "uniform", uniform)
    monkeypatch.setattr(initializers.Orthogonal, "__call__", orthogonal)
    for kind, numbers in ((initializers.Zeros, numpy.zeros), (initializers.Ones, numpy.ones)):
        monkeypatch.setattr(
            kind, "__call__", lambda self, shape, dtype=None, numbers=numbers: tensor(numbers(shape), dtype)
        )


@pytest.fixture(autouse=True)
def no_compilation_by_older_torch(monkeypatch):
    """Before 2.12 torch.compile stops at Keras' sets, at `isinstance(x, A | B)` or at noises."""
    if BACKEND == "torch":
        import torch

        if torch.__version__ < "2.12":
            skip = functools.partial(pytest.skip, "torch.compile traces Keras and the library from torch 2.12 on")
            monkeypatch.setattr(torch, "compile", lambda *_, **__: skip())


@pytest.fixture(scope="session")
def xp():
    """The ops namespace of the backend under test."""
    return backends.get(BACKEND)
