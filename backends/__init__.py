"""How each framework evaluates a mask. Import name: `pernodedrop.backends`.

Rules of this folder
- A backend is a module of plain functions, the ops namespace that the rest of the library calls `xp`. Each defines
  exactly the names in `OPS`, with array-API names and meanings where that standard has one.
- A *word tensor* holds 32-bit words that wrap around. Its dtype is the backend's own business (uint32, but int32 with
  the same bits on torch, which has no uint32 arithmetic); `+`, `*` and `^` work on it, everything else is an op.
- numpy_ops is the reference: plain and readable. Every other backend is tested against it.
- What can be written once is in methods.py; a backend adds only what its framework needs to bound memory and to make
  the mask again in the backward pass (`recomputed`).
- No framework is imported unless a tensor of it was handed in or its name was asked for.
- Never name a file here like a framework: a script run beside it would import it instead.
"""

import importlib
import sys

from pernodedrop import checks
from pernodedrop._types import Namespace, Tensor
from pernodedrop.internals import of_torch

__all__ = ["ENTRY_OPS", "NAMES", "NOISE_OPS", "OPS", "TENSOR_OPS", "WORD_OPS", "get", "name_of", "of"]

if __name__ == "backends":
    raise ImportError("import this folder as `pernodedrop.backends`: under another name its classes would exist twice")

NAMES = ("numpy", "tensorflow", "torch", "jax")
"""The backends, each by the name of the module that its tensors come from."""

NOISE_OPS = (
    "abs", "sqrt", "exp", "expm1", "log", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "tanh", "floor", "sign",
    "erf", "erfinv", "minimum", "maximum", "clip", "where", "zeros_like", "ones_like",
)  # fmt: skip
"""Elementwise ops that a noise of your own may use, beside the arithmetic and comparison operators.

They take tensors. `minimum(a, b)`, `maximum(a, b)`, `clip(x, low, high)` and `where(condition, a, b)` take Python
numbers too, in any place but that of `x` and `condition`, as long as one of a and b is a tensor.
"""

WORD_OPS = ("word", "as_word", "arange", "shift_right", "bits24", "uniform", "float32", "modulo")
"""Ops on word tensors, and the numbers made of them."""

TENSOR_OPS = (
    "dtype", "layout", "device", "shape", "astype", "reshape", "expand_dims", "squeeze", "unstack", "permute_dims",
    "broadcast_to", "take", "take_along_axis", "running_maximum", "matmul", "sum", "stop_gradient",
    "optimization_barrier", "triples", "segment_sum", "sparse_matmul",
)  # fmt: skip
"""Ops on tensors of any dtype."""

ENTRY_OPS = (
    "asarray", "to_numpy", "is_integer", "fused", "recomputed", "entries", "masked", "convolved", "kernel",
    "kernel_made_again", "kernel_obstacle", "loops_by_kernel", "on_host", "sparse_recomputed", "sparse_kernel", "draw",
    "global_rows", "sum_of_replicas", "warn_of_replicas", "refuse_redraw",
)  # fmt: skip
"""Ops that lead into a framework and out of it, and those that are its own way to do a thing."""

OPS = NOISE_OPS + WORD_OPS + TENSOR_OPS + ENTRY_OPS
"""All ops, which is what a backend defines."""

_ROOTS = {"jaxlib": "jax", **{name: name for name in NAMES}}


def get(name: str) -> Namespace:
    """The ops namespace of the backend called `name`: "numpy", "tensorflow", "torch" or "jax".

    Raises:
        ValueError: an unknown name.
        ImportError: a backend whose framework is not installed.
    """
    _load(checks.check_choice(name, "backend", NAMES))
    return getattr(sys.modules[__name__], f"{name}_ops")


@of_torch.constant_in_graphs  # torch.compile does not trace an import
def _load(name: str) -> None:
    if f"{name}_ops" in globals():  # once it is imported; to ask Python takes longer
        return
    try:
        importlib.import_module(f"{__name__}.{name}_ops")
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.partition(".")[0] in _ROOTS:
            raise ImportError(f"backend={name!r} needs {error.name}, which is not installed") from error
        raise


def default() -> str:
    """The name of the backend that is meant where none is named: that of Keras if it is imported, else NumPy."""
    keras = sys.modules.get("keras")
    return "numpy" if keras is None else keras.backend.backend()


def name_of(tensor: object) -> str | None:
    """The name of the backend that `tensor` belongs to, or None; imports nothing."""
    if not (hasattr(tensor, "shape") and hasattr(tensor, "dtype")):  # a generator of numbers, a module
        return None
    for cls in type(tensor).__mro__:
        root = "numpy" if cls.__module__.startswith("scipy.sparse.") else cls.__module__.partition(".")[0]
        if root == "keras":  # its variables, of which some derive from a tensor of TensorFlow, and are none
            return None
        if root in _ROOTS and root in sys.modules:
            return _ROOTS[root]
    return None


def of(**tensors: Tensor) -> Namespace:
    """The ops namespace that all the tensors, given by argument name, belong to.

    Raises:
        TypeError: no tensor, something that is none of a known framework, or tensors of different frameworks.
    """
    if not tensors:
        raise TypeError(checks.invalid("tensors", "one at least, by the name of an argument", tensors))
    found = {}
    for argument, tensor in tensors.items():
        name = name_of(tensor)
        if name is None:
            expected = "a tensor of NumPy, TensorFlow, torch or JAX (of a variable of Keras its `value`)"
            raise TypeError(checks.invalid(argument, expected, type(tensor)))
        found[argument] = name
    if len(set(found.values())) > 1:
        received = ", ".join(f"{argument} of {name}" for argument, name in found.items())
        raise TypeError(f"Expected the tensors of one call to belong to one framework. Received: {received}")
    return get(next(iter(found.values())))
