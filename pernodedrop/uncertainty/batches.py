"""What is predicted: `x`, in any of the forms that `model.predict` takes, in batches."""

import collections.abc
import typing

import keras
import numpy as np

from pernodedrop import checks


def batches_of(
    x: typing.Any, batch_size: int | None
) -> tuple[collections.abc.Iterator[tuple[typing.Any, int]], int | None]:
    """The batches of `x` with NumPy arrays, each with how many samples it has, and the number of batches, if known.

    All that `model.predict` takes is one of two: arrays, or what gives batches of them.
    """
    if isinstance(x, keras.utils.PyDataset):
        if x.num_batches is None:
            raise ValueError(checks.invalid("x", "a PyDataset whose `num_batches` is not None", x))
        given, number = map(x.__getitem__, range(x.num_batches)), x.num_batches
    elif isinstance(x, list | tuple | dict | str) or hasattr(x, "shape") or not hasattr(x, "__iter__"):
        batch_size = 32 if batch_size is None else checks.check_count(batch_size, "batch_size")
        arrays, size = _arrays(x)
        starts = range(0, size, batch_size)
        sizes = [min(batch_size, size - start) for start in starts]
        return ((rows_of(arrays, start, count), count) for start, count in zip(starts, sizes, strict=True)), len(starts)
    else:
        given, number = iter(x), len(x) if isinstance(x, collections.abc.Sized) else None
    if batch_size is not None:
        raise ValueError(checks.invalid("batch_size", "None where `x` gives batches, which have their own", batch_size))

    def inputs_of(batch: typing.Any) -> tuple[typing.Any, int]:
        arrays, size = _arrays(keras.utils.unpack_x_y_sample_weight(batch)[0])
        return rows_of(arrays, 0, size), size

    return map(inputs_of, given), number


def _arrays(x: typing.Any) -> tuple[typing.Any, int]:
    """`x` with arrays of NumPy, or of SciPy where it has such, and how many samples they have."""
    leaves = keras.tree.flatten(x)
    expected = "an array with samples first, or a list or dict of them, of equal lengths from 1"
    if not all(hasattr(leaf, "shape") for leaf in leaves):
        raise TypeError(checks.invalid("x", expected, x))
    sizes = {tuple(leaf.shape)[:1] for leaf in leaves}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(checks.invalid("x", expected, [tuple(leaf.shape) for leaf in leaves]))

    def of_numpy(leaf: typing.Any) -> typing.Any:
        return leaf.tocsr() if hasattr(leaf, "tocsr") else keras.ops.convert_to_numpy(leaf)

    arrays = keras.tree.map_structure(of_numpy, x)
    if keras.backend.backend() == "jax":  # elsewhere texts may do
        for leaf in keras.tree.flatten(arrays):
            checks.check_numbers(leaf, "x")
    return arrays, sizes.pop()[0]


def rows_of(x: typing.Any, start: int, count: int) -> typing.Any:
    """Rows of `x` from `start`, as NumPy arrays; its last row stands for those that are missing."""

    def of(leaf: typing.Any) -> typing.Any:
        rows = leaf[np.minimum(np.arange(start, start + count), leaf.shape[0] - 1)]
        return rows.toarray() if hasattr(rows, "toarray") else rows

    return keras.tree.map_structure(of, x)
