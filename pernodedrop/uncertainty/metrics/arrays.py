"""What metrics are given, as NumPy arrays in float64 that have been checked."""

import typing

import numpy as np

from pernodedrop import backends, checks
from pernodedrop._types import Array

SUM_TOLERANCE = 1e-2  # how far from 1 the sum of probabilities in half precision can be

Labels: typing.TypeAlias = np.typing.NDArray[np.int64]


def numbers(values: typing.Any, argument: str, shape: tuple[int | None, ...] | None = None) -> Array:
    """Finite numbers in float64, at least one and of that shape (None: any size, or any shape), or an error."""
    try:
        raw = np.asarray(_on_host(values))
        found = raw.astype("float64", casting="same_kind" if raw.dtype.kind == "c" else "unsafe")
    except (TypeError, ValueError, OverflowError, NotImplementedError) as error:  # the last of a symbolic tensor
        raise TypeError(checks.invalid(argument, "an array of real numbers", values)) from error
    fits = shape is None or (
        found.ndim == len(shape) and all(size in (None, n) for size, n in zip(shape, found.shape, strict=True))
    )
    if not fits or not found.size:
        expected = "an array with at least one number" if shape is None else f"an array {_shown(shape)}, not empty"
        raise ValueError(checks.invalid(argument, expected, found.shape))
    if not np.isfinite(found).all():
        raise ValueError(checks.invalid(argument, "finite numbers", found[~np.isfinite(found)][0]))
    return found


def alike(y: typing.Any, **others: typing.Any) -> list[Array]:
    """Arrays of numbers that all have the shape of y, y first."""
    first = numbers(y, "y")
    return [first, *(numbers(values, argument, first.shape) for argument, values in others.items())]


def probabilities_of_classes(p: typing.Any, argument: str = "p") -> Array:
    """Probabilities (n, k) with a sum of 1, of what may be the second of two classes (n,) or passes (S, n, k)."""
    found = numbers(p, argument)
    if found.ndim == 3:
        found = found.mean(0)
    if found.ndim == 1 or (found.ndim == 2 and found.shape[1] == 1):
        found = np.stack([1 - found.ravel(), found.ravel()], -1)
    if found.ndim != 2:
        raise ValueError(checks.invalid(argument, "probabilities (n, k), (n,) or (S, n, k)", found.shape))
    wrong = (found < 0).any(-1) | (abs(found.sum(-1) - 1) > SUM_TOLERANCE)
    if wrong.any():
        expected = "probabilities, not below 0 and with sum 1 over the classes"
        raise ValueError(checks.invalid(argument, expected, found[wrong][0]))
    return found


def classes_of(y: Array) -> Array:
    """Outputs with the classes in the last axis: of one output, the second of two."""
    if y.ndim > 1 and y.shape[-1] > 1:
        return y
    second = y if y.ndim == 1 else y[..., 0]
    return np.stack([1 - second, second], -1)


def probabilities_of(logits: Array) -> Array:
    """A softmax over the last axis, or a sigmoid of one output."""
    from scipy.special import expit, softmax

    return expit(logits) if logits.ndim == 1 or logits.shape[-1] == 1 else softmax(logits, -1)


def labels_of(y: typing.Any, n: int, k: int) -> Labels:
    """Labels (n,), ints in [0, k), of what may be (n, 1), or one-hot (n, k)."""
    found = numbers(y, "y")
    if k > 1 and found.shape == (n, k) and ((found == 0) | (found == 1)).all() and (found.sum(-1) == 1).all():
        return found.argmax(-1)
    if found.shape not in ((n,), (n, 1)):
        raise ValueError(checks.invalid("y", f"labels ({n},), one for each sample, or one-hot ({n}, {k})", found.shape))
    labels = found.ravel().astype("int64")
    wrong = (labels != found.ravel()) | (labels < 0) | (labels >= k)
    if wrong.any():
        raise ValueError(checks.invalid("y", f"labels that are ints in [0, {k})", found.ravel()[wrong][0]))
    return labels


def classified(y: typing.Any, p: typing.Any) -> tuple[Labels, Array]:
    """Labels (n,) and probabilities (n, k)."""
    probabilities = probabilities_of_classes(p)
    return labels_of(y, *probabilities.shape), probabilities


def _shown(shape: tuple[int | None, ...]) -> str:
    sizes = ["n" if size is None else str(size) for size in shape]
    return f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"


def _on_host(values: typing.Any) -> typing.Any:
    """The array of a tensor, or of a Keras variable, whose value is one; all else as it is."""
    name, value = backends.name_of(values), getattr(values, "value", None)
    if name is None and backends.name_of(value) is not None:
        return _on_host(value)
    if name in (None, "numpy"):
        return values
    xp = backends.get(name)
    return xp.to_numpy(xp.astype(values, "float32") if xp.dtype(values) == "bfloat16" else values)
