"""Standout: dropout whose rate each unit sets by its own pre-activation (Ba and Frey, NIPS 2013)."""

import typing

import keras

from pernodedrop import checks
from pernodedrop._types import Config, Tensor, Words
from pernodedrop.layers.base.activation_noise import apply_mask
from pernodedrop.layers.base.inner import bias_and_activation, float_kernel, product_with
from pernodedrop.layers.base.noisy import at_least_float32, floating, uniforms, xp
from pernodedrop.layers.base.weight_noise import WeightNoise
from pernodedrop.mask import Field, Mask
from pernodedrop.noise import UniformNumber

SHIFTS = ("unit", "weight")


@keras.saving.register_keras_serializable("pernodedrop")
class Standout(WeightNoise):
    """Keeps each unit of a Dense layer with a probability of its own (Ba and Frey, NIPS 2013).

    In training h = m * f(x W + b), where m is 1 with probability p and else 0, independently for every sample, position
    and unit. At inference h = p * f(x W + b): what is kept is not scaled, the mean is taken instead. With the sigmoid s

        shift="unit": p = s(alpha * (x W) + beta), as nearly all code has it;
        shift="weight": p = s(x (alpha * W + beta)) = s(alpha * (x W) + beta * sum(x)),

    two readings of the paper's tied weights alpha * W + beta. No gradient passes through m: W is trained as the
    weights of f alone. Every backend decides by the same random bits; the probabilities that they are compared with
    agree up to rounding.

    Args:
        layer: the inner layer, a `keras.layers.Dense`.
        alpha: factor of the pre-activation, a finite float; 1.0. With alpha 0 this is dropout at rate 1 - s(beta),
            without its scale.
        beta: shift towards being kept, a finite float; 0.0.
        shift: what `beta` is added to: "unit", the pre-activation of each unit, or "weight", each weight.
        seed: any int; None takes one from Python's `random`.
        **kwargs: those of `keras.layers.Layer`; the dtype policy is the inner layer's unless given.

    Call arguments, shapes and dtypes: as for `pernodedrop.PerNodeDrop`.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> dense = keras.layers.Dense(8, kernel_initializer="zeros", bias_initializer="ones")
    >>> layer = pnd.Standout(dense, seed=1)
    >>> x = np.ones((4, 3), "float32")
    >>> sorted(set(keras.ops.convert_to_numpy(layer(x, training=True)).ravel().tolist()))
    [0.0, 1.0]
    >>> sorted(set(keras.ops.convert_to_numpy(layer(x)).ravel().tolist()))
    [0.5]
    """

    kinds = (keras.layers.Dense,)

    def __init__(
        self,
        layer: keras.layers.Layer,
        alpha: float = 1.0,
        beta: float = 0.0,
        shift: str = "unit",
        seed: int | None = None,
        **kwargs: typing.Any,
    ) -> None:
        super().__init__(layer, Mask(UniformNumber(), "in"), seed=seed, **kwargs)
        self.alpha = checks.check_finite(alpha, "alpha")
        self.beta = checks.check_finite(beta, "beta")
        self.shift = checks.check_choice(shift, "shift", SHIFTS)

    def call_without_noise(self, inputs: Tensor) -> Tensor:
        inputs = floating(inputs)
        z = self._product(inputs)
        return apply_mask(bias_and_activation(self.layer, z), self._probability(inputs, z))

    def call_with_noise(self, inputs: Tensor, field: Field, samples: Words) -> Tensor:
        z = self._product(inputs)
        probability = self._probability(inputs, z)
        # no gradient passes through a comparison
        kept = xp.astype(uniforms(z, field, samples, lane=0, of="out"), xp.dtype(probability)) < probability
        return apply_mask(bias_and_activation(self.layer, z), kept)

    def _product(self, inputs: Tensor) -> Tensor:
        return product_with(self.layer, inputs, float_kernel(self.layer))

    def _probability(self, inputs: Tensor, z: Tensor) -> Tensor:
        """The probability that a unit is kept, from the product z of the inputs with the kernel; float32 at least."""
        inputs, z = at_least_float32(inputs), at_least_float32(z)
        shift = self.beta * _sums(inputs) if self.shift == "weight" else self.beta
        return keras.ops.sigmoid(self.alpha * z + shift)

    def fold(self) -> keras.layers.Layer:
        """A model of plain Keras layers, with weights of its own, that computes what this layer does at inference.

        It is the product of a copy of the inner layer and of a Dense layer with a sigmoid, the probabilities.

        Raises:
            ValueError: a layer that is not built.
        """
        dense = super().fold()
        kernel = self.alpha * keras.ops.cast(float_kernel(self.layer), "float32")
        x = keras.Input(self.layer.get_build_config()["input_shape"][1:], dtype=self.compute_dtype)
        gate = keras.layers.Dense(
            self.layer.units,
            activation="sigmoid",
            bias_initializer=keras.initializers.Constant(self.beta),
            use_bias=self.shift == "unit",
            dtype=self.dtype_policy,
        )
        model = keras.Model(x, keras.layers.Multiply(dtype=self.dtype_policy)([dense(x), gate(x)]), name=self.name)
        gate.kernel.assign(kernel if self.shift == "unit" else kernel + self.beta)
        return model

    def get_config(self) -> Config:
        return {**super().get_config(), "alpha": self.alpha, "beta": self.beta, "shift": self.shift}


def _sums(x: Tensor) -> Tensor:
    """The sums over the last axis, which stays: dense ones, of sparse tensors too."""
    if xp.layout(x) == "dense":
        return keras.ops.sum(x, axis=-1, keepdims=True)
    return keras.ops.matmul(x, keras.ops.ones((x.shape[-1], 1), x.dtype))
