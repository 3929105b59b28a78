"""Learned noise on recurrent kernels: what is around a loop, whichever posterior is learned."""

import collections.abc
import itertools
import typing

import keras

from pernodedrop import checks
from pernodedrop._types import Config, Sharing, Tensor, Words
from pernodedrop.layers.base.inner import copy_of
from pernodedrop.layers.base.noisy import at_least_float32, check_built, xp
from pernodedrop.layers.base.posterior import Posterior
from pernodedrop.layers.recurrent.cells import (
    cells_of,
    check_steps,
    kernels_of,
    with_kernels,
    with_products,
)
from pernodedrop.layers.recurrent.recurrent_noise import RecurrentNoise
from pernodedrop.mask import Field, Mask, coordinate, parse_sharing
from pernodedrop.noise import UniformNumber, normal
from pernodedrop.recurrence import KERNELS, Product

SHARED = ({"sample", "time"}, {"time"})


class RecurrentPosterior(Posterior, RecurrentNoise):
    """Base of wrappers of a recurrent layer whose kernels have a Gaussian posterior, of which all steps have one draw.

    Normal numbers are those that the masks of a `pernodedrop.NoisyRNN` with Gaussian noise are made of.

    Args:
        layer: the inner layer, one of Keras'.
        examples: number of training examples, N: the loss is the divergence divided by it.
        kernels, sharing: those of `pernodedrop.VariationalDropoutRNN`.
        of_inputs: whether the weights of an input have one normal number.
        **kwargs: those of `RecurrentNoise`.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        examples: int,
        kernels: collections.abc.Sequence[str],
        sharing: Sharing,
        of_inputs: bool = False,
        **kwargs: typing.Any,
    ) -> None:
        if isinstance(layer, RecurrentNoise):
            raise TypeError(checks.invalid("layer", "one of Keras', without noise", layer))
        self.kernels = checks.check_names(kernels, "kernels", KERNELS)
        shared = parse_sharing("sample+time" if sharing is None else sharing)
        if shared not in SHARED:
            expected = "'sample+time', one draw of the weights for a batch, or 'time', one for each sample"
            raise ValueError(checks.invalid("sharing", expected, sharing))
        mask = Mask(UniformNumber(), shared | {"out"} if of_inputs else shared)
        super().__init__(layer, examples, mask=mask, **kwargs)
        if "sample" not in shared:
            check_steps(layer)

    def deviation(self, number: int, kernel: Tensor) -> Tensor:
        """The standard deviations of the weights of a kernel, the one with this number among those with noise.

        They are float32, in a shape that broadcasts against the kernel's.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `deviation`")

    def drawn(self, number: int, kernel: Tensor, z: Tensor) -> Tensor:
        """A kernel (in, out) drawn for normal numbers (samples, in, out or 1), all float32 at least."""
        return kernel + xp.astype(self.deviation(number, kernel), xp.dtype(kernel)) * z

    def product(self, number: int, kernel: Tensor, z: Tensor) -> Product:
        """How inputs (batch, in) are multiplied by the kernel drawn for each sample; arguments are those of `drawn`."""
        kernels = self.drawn(number, kernel, z)
        return lambda x: keras.ops.squeeze(keras.ops.matmul(keras.ops.expand_dims(x, 1), kernels), 1)

    def with_noise(
        self, layer: keras.layers.Layer, inputs: Tensor, field: Field, samples: Words
    ) -> tuple[keras.layers.Layer, Tensor]:
        one = "sample" in self.sharing
        samples = xp.arange(1, like=inputs) if one else samples

        def made(number: int, kernel: Tensor, row: int) -> typing.Any:
            wide = at_least_float32(kernel)
            dtype = xp.dtype(wide)
            z = xp.astype(self._normals(kernel, row, field, samples), dtype)
            if one:
                return self.drawn(number, wide, z)[0]
            multiply = self.product(number, wide, z)
            return lambda x: xp.astype(multiply(xp.astype(x, dtype)), xp.dtype(x))

        return (with_kernels if one else with_products)(layer, self.of_each(layer, made)), inputs

    def fold(self) -> keras.layers.Layer:
        """A plain recurrent layer, built, with weights of its own, that computes what this layer does at inference.

        Raises:
            ValueError: a layer that is not built.
        """
        check_built(self)
        return copy_of(self.layer, dtype=self.dtype_policy)

    def get_config(self) -> Config:
        shared = sorted(self.sharing - {"out"})
        return {**super().get_config(), "kernels": list(self.kernels), "sharing": shared}

    def shapes(self) -> list[tuple[int, int]]:
        """Those of the kernels with noise, (in, out), in their order."""
        named = [getattr(cell, name) for cell in cells_of(self.layer) for name in KERNELS if name in self.kernels]
        return [tuple(kernel.shape) for kernel in named]

    def of_each(
        self, layer: keras.layers.Layer, made: typing.Callable[[int, Tensor, int], typing.Any]
    ) -> list[dict[str, typing.Any]]:
        """What is made of each kernel with noise, by cell and name: of its number, itself, and its first row."""
        numbers = itertools.count()
        return [
            {name: made(next(numbers), *of_name) for name, of_name in kernels.items() if name in self.kernels}
            for kernels in kernels_of(layer)
        ]

    def _normals(self, kernel: Tensor, row: int, field: Field, samples: Words) -> Tensor:
        """Normal numbers, float32 (samples, in, out), or (samples, in, 1) where those of an input have one."""
        rows, columns = kernel.shape
        time, in_ = xp.arange(1, like=kernel)[:, None, None], (xp.arange(rows, like=kernel) + row)[:, None]
        out = coordinate("out", columns, self.sharing, kernel, xp)
        words = field.words(0, time, samples[:, None, None], in_, out, xp)
        return xp.optimization_barrier(normal(xp.uniform(words), xp))
