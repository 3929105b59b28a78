"""Dropout: Bernoulli noise on activations (Srivastava et al., JMLR 15, 2014)."""

import typing

import keras

from pernodedrop import schedules
from pernodedrop._types import Config, Shape
from pernodedrop.layers.base.shaped_noise import ShapedNoise
from pernodedrop.noise import Bernoulli
from pernodedrop.schedules import Schedule


@keras.saving.register_keras_serializable("pernodedrop")
class Dropout(ShapedNoise):
    """Sets entries of its input to zero with probability `rate` in training (Srivastava et al., JMLR 15, 2014).

    Entries that are kept are scaled by 1 / (1 - rate); inference is the identity. Masks are equal to the bit on every
    backend and are those of `PerNodeDrop(..., sharing="out")` at the same key.

    Args:
        rate: drop rate in [0, 1), or a schedule of `pernodedrop.schedules`.
        noise_shape: shape of the mask, which is broadcast against the input; a None in it stands for the input's size,
            and None for the input's shape.
        seed: int, any; None takes one from Python's `random`.
        persistence: the probability in [0, 1] that an entry keeps its value from one position of (batch, time, in) to
            the next instead of being drawn anew, or a schedule of it. With None or 0 every position has its own mask,
            with 1 a sequence has one (arXiv 1512.05287); between them it is Markov dropout. Positions along several
            axes follow each other row by row.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: floating tensor of any rank from 1, samples first.
        training: whether to train; Keras sets it in `fit`.
        key: the key to use instead of drawing one, from `draw()`.
        sample_ids: integer tensor (batch,): the sample coordinate of each row, instead of its place in the batch. Not
            with a `noise_shape` whose first size is 1.

    Output shape and dtype: the input's.

    Raises:
        TypeError, ValueError: a rate outside [0, 1) or an argument that is not as described.

    Example:

    >>> import numpy as np, pernodedrop as pnd
    >>> layer = pnd.Dropout(0.5, seed=1)
    >>> sorted(set(np.asarray(layer(np.ones((4, 8), "float32"), training=True)).ravel().tolist()))
    [0.0, 2.0]
    """

    def __init__(
        self,
        rate: float | Schedule,
        noise_shape: Shape | None = None,
        seed: int | None = None,
        persistence: float | Schedule | None = None,
        **kwargs: typing.Any,
    ) -> None:
        start, schedule = schedules.get(rate)
        super().__init__(Bernoulli(start), noise_shape, seed, schedule, persistence, **kwargs)

    def get_config(self) -> Config:
        return {**super().get_config(), "rate": self.rate_config}
