"""PerNodeDrop: every sample and every connection of a layer gets its own multiplicative noise (arXiv 2512.12663)."""

import typing

import keras

from pernodedrop import checks, schedules
from pernodedrop._types import Config, Sharing
from pernodedrop.layers.base.weight_noise import MaskedProduct
from pernodedrop.mask import Mask
from pernodedrop.noise import Noise
from pernodedrop.schedules import Schedule

STIR_TYPES = {"drop": "bernoulli", "binary": "bernoulli"}
"""The author's words for noises, where ours are others."""


@keras.saving.register_keras_serializable("pernodedrop")
class PerNodeDrop(MaskedProduct):
    """Gives every connection of a layer its own multiplicative noise for every sample (arXiv 2512.12663).

    In training, with E[M] = 1,

        y[n, j] = activation(sum_i x[n, i] * W[i, j] * M[n, i, j] + b[j])

    At inference the dynamic and example regimes are the inner layer itself; fixed and bank keep their masks.

    The paper is of two minds about the scale: its code scales what is kept in training, as here; one of its sections
    scales at inference instead, which is `pernodedrop.DropConnect(layer, sharing="time", scaling="none")`.

    Args:
        layer: the inner layer, a `keras.layers.Dense`, `EinsumDense`, `Conv1D`, `Conv2D`, `Conv3D`, their transposed
            ones, `DepthwiseConv1D`, `DepthwiseConv2D`, `SeparableConv1D`, `SeparableConv2D` or `Embedding`.
            An EinsumDense equation needs a batch letter that comes first in x, stands in the output and not in the
            kernel. A sample's convolution has one mask at all positions of its output, and takes the memory of its
            patches: the input times the size of the kernel. A transposed one is computed as the convolution of its
            input with zeros between the entries; a separable one has noise on both kernels, and the mask of the second
            is that of the seed XOR 0x9E3779B9. Around an Embedding, where in is the id, `sharing="time+out"` drops
            whole words, wherever they stand in a sample's sequence. Only the masks of the ids that occur are made; its
            `method` is "auto", and it has no `persistence`.
        rate: drop rate in [0, 1) that goes with a noise given by name; None is 0.5. Or a schedule of
            `pernodedrop.schedules`, which also goes with a `pernodedrop.Noise` that has a rate.
        noise: "bernoulli" (the paper's binary), "gaussian", "uniform", or a `pernodedrop.Noise`, which brings its own
            numbers, so that a rate beside it is an error.
        regime: "dynamic": a new mask every training call. "fixed": one mask for the model, the same for all samples,
            at inference too. "bank": `bank_size` fixed masks, at inference too; sample n of a batch has mask n modulo
            bank_size unless `sample_ids` says otherwise. "example": a fixed mask for each example id, in training.
        sharing: coordinates that the mask does not depend on, as in `pernodedrop.ops.masked_dense`; None shares a
            sample's mask over the positions of inputs of rank 3 and more.
        bank_size: number of masks in the bank regime.
        persistence: the probability in [0, 1] that an entry keeps its value from one position of (batch, time, in) to
            the next, and is not drawn anew, or a schedule of it. Beside it `sharing` has no "time", and a sharing of
            None shares nothing. None leaves positions to `sharing`.
        seed: any int; None takes one from Python's `random` (`keras.utils.set_random_seed` makes that repeatable),
            and `layer.seed` has it. Seeds s and s + 1 give independent masks. What was given is saved with the config,
            the present key with the weights.
        method: how the product is computed, as in `pernodedrop.ops.masked_dense`.
        **kwargs: those of `keras.layers.Layer`; the dtype policy is the inner layer's unless given.

    Call arguments:
        inputs: floating tensor of any shape the inner layer takes, samples first; around Dense a sparse one too, around
            Embedding ids.
        training: whether to train; Keras sets it in `fit`.
        key: the key to use instead of drawing one, from `draw()`.
        sample_ids: integer tensor (batch,), modulo 2**32: the sample coordinate of each row. Example ids in the example
            regime, where they are required in training; mask numbers, modulo `bank_size`, in the bank regime. Where ids
            of a batch repeat in the dynamic regime, a Gaussian noise needs `method="recomputed"`.

    Input shape, output shape, dtypes: the inner layer's. Sums are in float32 under mixed precision.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> layer = pnd.PerNodeDrop(keras.layers.Dense(4, activation="relu"), rate=0.5, seed=1)
    >>> x = np.ones((2, 3), "float32")
    >>> layer(x, training=True).shape == (2, 4)
    True
    >>> bool((keras.ops.convert_to_numpy(layer(x)) == keras.ops.convert_to_numpy(layer.layer(x))).all())
    True
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        rate: float | Schedule | None = None,
        noise: str | Noise = "bernoulli",
        regime: str = "dynamic",
        sharing: Sharing = None,
        bank_size: int | None = None,
        seed: int | None = None,
        method: str = "auto",
        persistence: float | Schedule | None = None,
        **kwargs: typing.Any,
    ) -> None:
        refuse_words_of_the_author(kwargs)
        noise, schedule = schedules.get_noise(noise, rate)
        start, slow = schedules.get_persistence(persistence)
        mask = Mask(noise, sharing, regime, bank_size, start)
        super().__init__(layer, mask, seed=seed, method=method, schedule=schedule, persistence=slow, **kwargs)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            **self.noise_config,
            "regime": self.regime,
            "sharing": sorted(self.sharing),
            "bank_size": self.members,
            "persistence": self.persistence_config,
        }


def PerNodeDense(  # noqa: N802 - it makes a layer, and is named like one
    units: int,
    rate: float | Schedule | None = None,
    noise: str | Noise = "bernoulli",
    regime: str = "dynamic",
    activation: typing.Any = None,
    seed: int | None = None,
    **kwargs: typing.Any,
) -> PerNodeDrop:
    """The paper's layer in one call: a `PerNodeDrop` around a `keras.layers.Dense`.

    Args:
        units, activation: those of the Dense layer.
        rate, noise, regime, seed: those of `PerNodeDrop`.
        **kwargs: `sharing`, `bank_size`, `method`, `persistence` and `name` of `PerNodeDrop`; everything else goes to
            Dense.

    Returns:
        A `PerNodeDrop`; its `layer` is the Dense layer.

    >>> import pernodedrop as pnd
    >>> pnd.PerNodeDense(8, rate=0.3, use_bias=False, seed=1).layer.units
    8
    """
    refuse_words_of_the_author(kwargs)
    names = ("sharing", "bank_size", "method", "persistence", "name")
    of_wrapper = {name: kwargs.pop(name) for name in names if name in kwargs}
    dense = keras.layers.Dense(units, activation=activation, **kwargs)
    return PerNodeDrop(dense, rate=rate, noise=noise, regime=regime, seed=seed, **of_wrapper)


def refuse_words_of_the_author(given: Config) -> None:
    """Raise, and say the word of this library, where arguments are named as in the code of the paper's author."""
    words: dict[str, typing.Callable[[typing.Any], str]] = {
        "drop_rate": lambda rate: f"rate={rate!r}",
        "stir_type": lambda noise: f"noise={STIR_TYPES.get(str(noise).lower(), noise)!r}",
        "fixed_mask": lambda fixed: f"regime={'fixed' if fixed else 'dynamic'!r}",
        "return_masks": lambda _: "an output alone: pernodedrop.ops.sample_mask gives the mask of a key",
    }
    for name in given.keys() & words.keys():
        raise TypeError(checks.invalid(name, words[name](given[name]) + ", in the words of this library", given[name]))
