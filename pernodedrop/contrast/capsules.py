"""Capsules with dynamic routing (Sabour, Frosst and Hinton, arXiv 1710.09829)."""

import typing

import keras

from pernodedrop import checks, ops
from pernodedrop._types import Config, Shape, Tensor
from pernodedrop.layers.base.noisy import check_size, floating, xp

TINY = 1e-14
"""Added to squares, so that a vector of zeros has a gradient."""


def squash(s: Tensor, axis: int = -1) -> Tensor:
    """Vectors shortened to a length below 1, in their own direction (arXiv 1710.09829, equation 1).

        v = (|s|**2 / (1 + |s|**2)) (s / |s|)

    Args:
        s: floating tensor; Keras' symbolic ones too.
        axis: along which the vectors lie; the last.

    Returns:
        A tensor of the shape and dtype of s.

    Raises:
        TypeError: an s of another dtype, or an axis that is no int.

    >>> import numpy as np, pernodedrop as pnd
    >>> np.asarray(pnd.contrast.squash(np.array([[0.0, 3.0], [0.0, 0.0]], "float32"))).round(4).tolist()
    [[0.0, 0.8999999761581421], [0.0, 0.0]]
    """
    s, wide = _wide(s, "s")
    square = keras.ops.sum(keras.ops.square(wide), axis=checks.check_int(axis, "axis"), keepdims=True)
    return keras.ops.cast(wide * keras.ops.sqrt(square + TINY) / (1 + square), s.dtype)


def lengths(capsules: Tensor) -> Tensor:
    """The lengths of vectors along the last axis: the probability that what a capsule stands for is there.

    Args:
        capsules: floating tensor (..., dim); Keras' symbolic ones too.

    Returns:
        A tensor (...) of the dtype of `capsules`.

    Raises:
        TypeError: capsules of another dtype.

    >>> import numpy as np, pernodedrop as pnd
    >>> np.asarray(pnd.contrast.lengths(np.array([[3.0, 4.0]], "float32"))).tolist()
    [5.0]
    """
    capsules, wide = _wide(capsules, "capsules")
    return keras.ops.cast(keras.ops.sqrt(keras.ops.sum(keras.ops.square(wide), axis=-1) + TINY), capsules.dtype)


@keras.saving.register_keras_serializable("pernodedrop")
class Capsules(keras.layers.Layer):
    """Capsules, whose outputs are vectors, with routing by agreement (arXiv 1710.09829).

    From the vector u[i] of each capsule below, each capsule j here gets a prediction, by a kernel for each pair:

        h[j, i] = W[i, j] u[i]

    Routing starts at b[i, j] = 0. An iteration takes c[i] = softmax(b[i]), over the capsules here, and

        v[j] = squash(sum_i c[i, j] h[j, i])

    and then adds to b[i, j] the product of h[j, i] with v[j], which is large where they agree. The output is v of the
    last iteration. Gradients go through all iterations. Routing is computed in float32 at least. Training and inference
    are the same, and nothing is random.

    Args:
        capsules: the number of capsules, an int from 1; in a classifier, that of the classes.
        dim: the size of their vectors, an int from 1; 16.
        iterations: the number of iterations, an int from 1; 3. With 1 all c are equal.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: floating tensor (batch, capsules below, dim below), such as the squashed positions of a convolution.

    Output shape: (batch, capsules, dim), of lengths below 1. Output dtype: the layer's compute dtype.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example, a classifier, to be trained with `pernodedrop.contrast.margin_loss`:

    >>> import keras, pernodedrop as pnd
    >>> images = keras.Input((28, 28, 1))
    >>> maps = keras.layers.Conv2D(64, 9, strides=4, activation="relu")(images)
    >>> below = pnd.contrast.squash(keras.layers.Reshape((-1, 8))(maps))
    >>> keras.Model(images, pnd.contrast.lengths(pnd.contrast.Capsules(10)(below))).output_shape
    (None, 10)
    """

    def __init__(self, capsules: int, dim: int = 16, iterations: int = 3, **kwargs: typing.Any) -> None:
        super().__init__(**kwargs)
        self.capsules = checks.check_count(capsules, "capsules")
        self.dim = checks.check_count(dim, "dim")
        self.iterations = checks.check_count(iterations, "iterations")

    def build(self, input_shape: Shape) -> None:
        if input_shape is None or len(input_shape) != 3 or not all(input_shape[1:]):
            expected = "(batch, capsules below, dim below), the last two known"
            raise ValueError(checks.invalid("inputs", expected, input_shape))
        _, below, size = input_shape
        shape = (below, self.capsules, size, self.dim)
        self.kernel = self.add_weight(shape, keras.initializers.TruncatedNormal(stddev=0.1), name="kernel")

    def call(self, inputs: Tensor) -> Tensor:
        inputs = floating(inputs, ("dense",))
        if len(inputs.shape) != 3:
            raise ValueError(checks.invalid("inputs", "(batch, capsules below, dim below)", tuple(inputs.shape)))
        check_size(inputs, 1, self.kernel.shape[0])
        check_size(inputs, 2, self.kernel.shape[2])
        _, predictions = _wide(keras.ops.einsum("bip,ijpd->bijd", inputs, self.kernel), "inputs")
        agreement = keras.ops.zeros_like(predictions[..., 0])
        for _ in range(self.iterations):
            share = keras.ops.softmax(agreement, axis=-1)
            v = squash(keras.ops.einsum("bij,bijd->bjd", share, predictions))
            agreement = agreement + keras.ops.einsum("bijd,bjd->bij", predictions, v)
        return keras.ops.cast(v, self.compute_dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (input_shape[0], self.capsules, self.dim)

    def get_config(self) -> Config:
        own = {"capsules": self.capsules, "dim": self.dim, "iterations": self.iterations}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("pernodedrop")  # type: ignore[untyped-decorator]  # Keras has no types
def margin_loss(y_true: Tensor, y_pred: Tensor, upper: float = 0.9, lower: float = 0.1, absent: float = 0.5) -> Tensor:
    """The margin loss of the lengths of capsules, one for each class (arXiv 1710.09829, equation 4).

        L = sum_k T[k] max(0, upper - |v[k]|)**2 + absent (1 - T[k]) max(0, |v[k]| - lower)**2

    A model is compiled with it: `model.compile("adam", pernodedrop.contrast.margin_loss)`.

    Args:
        y_true: T, (batch, classes), 1 where a class is there, else 0; several classes may be.
        y_pred: lengths (batch, classes), as `pernodedrop.contrast.lengths` gives them.
        upper: from this length on, a class that is there costs nothing; 0.9.
        lower: up to this length, a class that is not there costs nothing; 0.1.
        absent: the weight of classes that are not there; 0.5.

    Returns:
        L, (batch,).

    Raises:
        TypeError, ValueError: tensors of different shapes, lengths that are not floating, or a number that is not
            finite, or a length outside [0, 1].

    >>> import numpy as np, pernodedrop as pnd
    >>> loss = pnd.contrast.margin_loss(np.array([[1.0, 0.0]]), np.array([[0.9, 0.3]], "float32"))
    >>> round(float(loss[0]), 6)  # 0.5 * (0.3 - 0.1)**2
    0.02
    """
    upper, lower = checks.check_probability(upper, "upper"), checks.check_probability(lower, "lower")
    absent = checks.check_positive(absent, "absent", zero=True)
    y_pred, _ = _wide(y_pred, "y_pred")
    there = keras.ops.cast(y_true, y_pred.dtype)
    sizes = zip(there.shape, y_pred.shape, strict=False)
    if len(there.shape) != len(y_pred.shape) or any(None not in pair and pair[0] != pair[1] for pair in sizes):
        raise ValueError(checks.invalid("y_true", f"the shape of `y_pred`, {tuple(y_pred.shape)}", there.shape))
    low, high = keras.ops.relu(upper - y_pred) ** 2, keras.ops.relu(y_pred - lower) ** 2
    return keras.ops.sum(there * low + absent * (1 - there) * high, axis=-1)


def _wide(tensor: Tensor, argument: str) -> tuple[Tensor, Tensor]:
    """A floating tensor, which may be symbolic, and the same in float32 at least, or an error."""
    if not hasattr(tensor, "shape"):
        raise TypeError(checks.invalid(argument, "a floating tensor", tensor))
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise TypeError(checks.invalid(argument, "a floating dtype", dtype))
    if not isinstance(tensor, keras.KerasTensor):
        tensor = keras.ops.convert_to_tensor(tensor)
        ops.check_layout(argument, tensor, ("dense",), xp)
    return tensor, keras.ops.cast(tensor, keras.backend.result_type(dtype, "float32"))
