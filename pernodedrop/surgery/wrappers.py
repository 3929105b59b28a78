"""The wrappers that `apply` puts around layers, by name, and the kinds of layers that each of them takes."""

import typing

import keras

from pernodedrop.layers import (
    DropConnect,
    DynamicDropConnect,
    FastDropout,
    Flipout,
    NoiseInjection,
    NoisyRNN,
    PerNodeDrop,
    Shakeout,
    SparseVariationalDropout,
    Standout,
    VariationalDropout,
)
from pernodedrop.layers.base.inner import CONTRACTIONS, PRODUCTS, STAGES
from pernodedrop.layers.base.noise_layer import NoiseLayer
from pernodedrop.rules import Family, arguments_of

RECURRENT = (keras.layers.SimpleRNN, keras.layers.GRU, keras.layers.LSTM, keras.layers.Bidirectional)

KINDS: dict[str, tuple[type, ...]] = {
    "all-linear": CONTRACTIONS,
    "all-conv": tuple(kind for kind in (*PRODUCTS, *STAGES) if "Conv" in kind.__name__),
    "all-recurrent": RECURRENT,
}


class Wrapped(typing.NamedTuple):
    """A wrapper around one kind of layer."""

    wrapper: type
    plain: type

    def from_plain(self, layer: keras.layers.Layer, **noise: typing.Any) -> keras.layers.Layer:
        """The wrapper around a layer, under its name."""
        return self.wrapper(layer, name=layer.name, **noise)

    def arguments(self) -> list[str]:
        """The names of those of `from_plain`, of the wrapper itself and then of every layer."""
        own = arguments_of(self.wrapper) + arguments_of(keras.layers.Layer)
        return [name for name in own if name not in ("layer", "name")]


def _wrapped(wrapper: type, kinds: tuple[type, ...]) -> tuple[Wrapped, ...]:
    return tuple(Wrapped(wrapper, kind) for kind in kinds)


FAMILY = Family(
    keras.layers.Layer,
    "keras.layers.Layer",
    NoiseLayer,
    "call",
    KINDS,
    {
        "per_node_drop": _wrapped(PerNodeDrop, PerNodeDrop.kinds),
        "drop_connect": _wrapped(DropConnect, DropConnect.kinds),
        "dynamic_drop_connect": _wrapped(DynamicDropConnect, DynamicDropConnect.kinds),
        "fast_dropout": _wrapped(FastDropout, FastDropout.kinds),
        "flipout": _wrapped(Flipout, Flipout.kinds),
        "noise_injection": _wrapped(NoiseInjection, NoiseInjection.kinds),
        "noisy_rnn": _wrapped(NoisyRNN, RECURRENT),
        "shakeout": _wrapped(Shakeout, Shakeout.kinds),
        "sparse_variational_dropout": _wrapped(SparseVariationalDropout, SparseVariationalDropout.kinds),
        "standout": _wrapped(Standout, Standout.kinds),
        "variational_dropout": _wrapped(VariationalDropout, VariationalDropout.kinds),
    },
    Wrapped.arguments,
)
