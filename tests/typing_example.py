"""A user's program for mypy, which `make lint` runs on it; it is never run.

What is right has to pass. What is wrong carries the error that mypy has to find: if it did not, mypy would report the
comment as unused.
"""

import typing

import keras
import numpy as np

import pernodedrop as pnd


class TwoPoint(pnd.Noise):
    """A noise of one's own."""

    size: float

    @property
    def variance(self) -> float:
        return self.size**2

    def from_uniform(self, u: typing.Any, params: typing.Any, xp: typing.Any) -> typing.Any:
        return 1 + params["size"] * xp.sign(u - 0.5)


def right() -> None:
    x, w = np.ones((2, 3), "float32"), np.ones((3, 4), "float32")
    pnd.ops.masked_dense(x, w, pnd.Bernoulli(0.5), key=(1, 0), sharing="sample+time", sample_offset=np.uint32(8))
    pnd.ops.sample_mask(TwoPoint(0.5), (1, 0), (2, 3, 4), sharing=["time", "out"], backend="numpy")
    words: np.typing.NDArray[np.uint32] = pnd.ops.random_bits((1, 0), shape=(2, 3, 4))
    layer = pnd.PerNodeDrop(keras.layers.Dense(4), noise=pnd.Gaussian(stddev=0.5), regime="bank", bank_size=3, seed=-1)
    layer(x, training=True, key=layer.draw(), sample_ids=words[0, 0])
    layer.rate = 0.3
    pnd.DropConnect(pnd.PerNodeDense(8, rate=0.3).layer, rate=0.1, dtype="float32")
    keras.Sequential([pnd.Dropout(0.5, noise_shape=(None, 3)), pnd.GaussianDropout(0.5, seed=1), layer])
    variance: float = pnd.Mask(TwoPoint(size=0.5), sharing="out", regime="fixed").variance
    assert variance > 0


def wrong() -> None:
    x, w = np.ones((2, 3), "float32"), np.ones((3, 4), "float32")
    pnd.ops.masked_dense(x, w, "bernoulli", key=(1, 0))  # type: ignore[arg-type] # a noise, not its name
    pnd.ops.masked_dense(x, w, pnd.Bernoulli(0.5))  # type: ignore[call-arg] # no key
    pnd.ops.masked_dense(x, w, pnd.Bernoulli(0.5), (1, 0), "out")  # type: ignore[call-arg] # sharing is named
    pnd.ops.sample_mask(pnd.Bernoulli(0.5), (1, 0), 3)  # type: ignore[arg-type] # a shape, not a size
    pnd.Bernoulli("half")  # type: ignore[arg-type] # a number
    pnd.Bernouli(0.5)  # type: ignore[attr-defined] # misspelt
    pnd.Bernoulli()  # type: ignore[call-arg] # no rate
    pnd.Bernoulli(0.5).rate = 0.3  # type: ignore[misc] # noises are frozen
    TwoPoint(0.5, 0.5)  # type: ignore[call-arg] # it has one field
    pnd.PerNodeDrop(keras.layers.Dense(4), noise=0.5)  # type: ignore[arg-type] # a noise or its name
    pnd.PerNodeDrop(keras.layers.Dense(4), bank_size="three")  # type: ignore[arg-type] # a number
    pnd.Dropout(rate="half")  # type: ignore[arg-type] # a number
    pnd.GaussianDropout()  # type: ignore[call-arg] # no rate
    pnd.Uniform(0.5).half_width + 1  # type: ignore[operator] # None until it is asked for
