"""GradientRouting: the identity, through which gradients pass where data says (arXiv 2410.04332)."""

import collections.abc
import typing

import keras
import numpy as np

from pernodedrop import checks
from pernodedrop._types import Config, Shape, Tensor
from pernodedrop.layers.base.noisy import check_samples


@keras.saving.register_keras_serializable("pernodedrop")
class GradientRouting(keras.layers.Layer):
    """The identity, which multiplies the gradient by a mask that the data choose (arXiv 2410.04332).

    With M the mask of a call, and sg (stop gradient) constant in the backward pass,

        y = M * x + (1 - M) * sg(x)

    so the layers before this one learn from a sample through the units of its mask alone, and these units come to hold
    what is learned from it. The layers after this one learn from all units. Nothing is random.

    Args:
        routes: None: each call is given its masks. Or an array (routes, units), a mask for each label or example id:
            each call is given labels or ids.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: floating tensor (batch, ..., units), of finite numbers.
        route: with `routes`, an integer tensor (batch,) or (batch, positions) of rows of it, such as labels; else the
            mask, a tensor (batch or 1, ...) that broadcasts against the input. Numbers between 0 and 1 let a part of
            the gradient pass, negative ones reverse it. A mask has no gradient. Unless `training` is True it may be
            left out: then gradients pass as they are.
        training: whether to train; Keras sets it in `fit`.

    Output shape and dtype: the input's.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> layer = pnd.GradientRouting(routes=[[1, 1, 0], [0, 1, 1]])
    >>> x, labels = np.ones((2, 3), "float32"), np.array([0, 1])
    >>> keras.ops.convert_to_numpy(layer(x, labels))
    array([[1., 1., 1.],
           [1., 1., 1.]], dtype=float32)

    Each of 1000 examples has units of its own, those that the regime "example" keeps, and its id is its route:

    >>> kept = pnd.ops.sample_mask(pnd.Bernoulli(0.5), (1, 0), (1000, 3, 1), backend="numpy")[..., 0] > 0
    >>> pnd.GradientRouting(kept).routes.shape
    (1000, 3)
    """

    def __init__(
        self, routes: collections.abc.Sequence[collections.abc.Sequence[float]] | None = None, **kwargs: typing.Any
    ) -> None:
        super().__init__(**kwargs)
        self._routes = None if routes is None else _check_routes(routes)
        self.supports_masking = True
        self.built = True

    @property
    def routes(self) -> np.typing.NDArray[np.float32] | None:
        """The masks by their numbers, or None."""
        return self._routes

    def call(self, inputs: Tensor, route: Tensor | None = None, training: bool | None = None) -> Tensor:
        check_samples(inputs)
        if route is None:
            if checks.check_training(training):
                raise ValueError(
                    checks.invalid("route", "the masks of the samples, or their numbers, in training", route)
                )
            return inputs
        mask = self._mask(inputs, keras.ops.convert_to_tensor(route))
        held = keras.ops.stop_gradient(inputs)
        return held + keras.ops.stop_gradient(keras.ops.cast(mask, held.dtype)) * (inputs - held)

    def compute_output_shape(self, inputs_shape: Shape, route_shape: Shape | None = None) -> Shape:
        return inputs_shape

    def get_config(self) -> Config:
        return {**super().get_config(), "routes": None if self._routes is None else self._routes.tolist()}

    def _mask(self, inputs: Tensor, route: Tensor) -> Tensor:
        """The mask of a call, which broadcasts against its input."""
        rank, is_integer = len(inputs.shape), keras.backend.is_int_dtype(keras.backend.standardize_dtype(route.dtype))
        if self._routes is None:
            if len(route.shape) != rank or not _fits(route.shape, inputs.shape):
                raise ValueError(
                    checks.invalid("route", f"a mask for inputs {tuple(inputs.shape)}", tuple(route.shape))
                )
            return route
        if not is_integer:
            raise TypeError(checks.invalid("route", "integers, the numbers of `routes`", route.dtype))
        if inputs.shape[-1] != self._routes.shape[1]:
            raise ValueError(
                checks.invalid("inputs", f"{self._routes.shape[1]} units, as `routes`", tuple(inputs.shape))
            )
        if not 1 <= len(route.shape) < rank or not _fits(route.shape, inputs.shape):
            expected = f"a number for each sample, or for each position, of inputs {tuple(inputs.shape)}"
            raise ValueError(checks.invalid("route", expected, tuple(route.shape)))
        mask = keras.ops.take(keras.ops.convert_to_tensor(self._routes), route, axis=0)
        for _ in range(rank - len(mask.shape)):
            mask = keras.ops.expand_dims(mask, -2)
        return mask


def _check_routes(routes: typing.Any) -> np.typing.NDArray[np.float32]:
    """The masks as an array, or an error."""
    expected = "None or an array (routes, units) of finite numbers"
    try:
        array = np.asarray(routes, "float32")
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(checks.invalid("routes", expected, routes)) from error
    if array.ndim != 2 or 0 in array.shape or not np.isfinite(array).all():
        raise ValueError(checks.invalid("routes", expected, routes))
    return array


def _fits(shape: Shape, of: Shape) -> bool:
    """Whether sizes are those of the first axes of another shape, or 1, as far as they are known."""
    return all(None in (own, size) or own in (1, size) for own, size in zip(shape, of, strict=False))
