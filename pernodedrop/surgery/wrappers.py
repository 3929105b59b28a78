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


class Around(typing.NamedTuple):
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


def _around(wrapper: type, kinds: tuple[type, ...]) -> tuple[Around, ...]:
    return tuple(Around(wrapper, kind) for kind in kinds)


FAMILY = Family(
    keras.layers.Layer,
    "keras.layers.Layer",
    NoiseLayer,
    "call",
    KINDS,
    {
        "per_node_drop": _around(PerNodeDrop, PerNodeDrop.kinds),
        "drop_connect": _around(DropConnect, DropConnect.kinds),
        "dynamic_drop_connect": _around(DynamicDropConnect, DynamicDropConnect.kinds),
        "fast_dropout": _around(FastDropout, FastDropout.kinds),
        "flipout": _around(Flipout, Flipout.kinds),
        "noise_injection": _around(NoiseInjection, NoiseInjection.kinds),
        "noisy_rnn": _around(NoisyRNN, RECURRENT),
        "shakeout": _around(Shakeout, Shakeout.kinds),
        "sparse_variational_dropout": _around(SparseVariationalDropout, SparseVariationalDropout.kinds),
        "standout": _around(Standout, Standout.kinds),
        "variational_dropout": _around(VariationalDropout, VariationalDropout.kinds),
    },
    Around.arguments,
)
