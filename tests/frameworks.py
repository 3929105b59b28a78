"""The framework under test: its ops, and the testing kit's functions of a framework for this one."""

import contextlib
import functools
import os

import pytest

from pernodedrop import backends
from pernodedrop.testing import frameworks

NAME = os.environ["KERAS_BACKEND"]
XP = backends.get(NAME)

needs_gradients = pytest.mark.skip_backend("numpy", reason="NumPy has no gradients")
needs_training = pytest.mark.skip_backend("numpy", reason="Keras' NumPy backend has no training")

tensor = functools.partial(frameworks.tensor, NAME)
array = functools.partial(frameworks.array, NAME)
compiled = functools.partial(frameworks.compiled, NAME)
quick = functools.partial(frameworks.quick, NAME)


def value_and_gradients(function, *arrays, upstream):
    """y = function(*arrays) and the gradients of sum(y * upstream), as host arrays; a gradient that is not is None."""
    return frameworks.value_and_gradients(NAME, function, arrays, upstream)


@contextlib.contextmanager
def xla_programs():
    """The list that grows by one with each program that JAX compiles in a with block."""
    import jax

    made = []

    def listen(event, duration, **_):
        made.extend([event] if "backend_compile" in event else [])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield made
    finally:
        of_jax = jax._src.monitoring
        older = "_unregister_event_duration_listener_by_callback"  # its name in 0.6
        getattr(of_jax, "unregister_event_duration_listener", getattr(of_jax, older, None))(listen)


def float64():
    """A context in which float64 tensors stay so."""
    if NAME == "jax":
        import jax
        import jax.experimental

        return (jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64)(True)  # from 0.8 on
    return contextlib.nullcontext()
