"""The wrappers that `apply` puts around layers, by name, and the kinds of layers that each of them takes."""

import operator
import typing

import keras

from pernodedrop.layers import (
    AttentionDropout,
    DropConnect,
    DynamicDropConnect,
    FastDropout,
    Flipout,
    NoiseInjection,
    NoisyAttention,
    NoisyRNN,
    PerNodeDrop,
    Shakeout,
    SparseVariationalDropout,
    SparseVariationalDropoutRNN,
    Standout,
    VariationalDropout,
    VariationalDropoutRNN,
    Zoneout,
)
from pernodedrop.layers.base.around_attention import KINDS as ATTENTION
from pernodedrop.layers.base.inner import CONTRACTIONS, PRODUCTS, STAGES
from pernodedrop.layers.base.noise_layer import NoiseLayer
from pernodedrop.rules import Family, arguments_of

RECURRENT = (keras.layers.SimpleRNN, keras.layers.GRU, keras.layers.LSTM, keras.layers.Bidirectional)

KINDS: dict[str, tuple[type, ...]] = {
    "all-linear": CONTRACTIONS,
    "all-conv": tuple(kind for kind in (*PRODUCTS, *STAGES) if "Conv" in kind.__name__),
    "all-recurrent": RECURRENT,
    "all-attention": ATTENTION,
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


class Projections(Wrapped):
    """A wrapper around the projections of attention, which are also layers by themselves."""

    takes_inside = True

    def from_plain(self, layer: keras.layers.Layer, **noise: typing.Any) -> keras.layers.Layer:
        """A NoisyAttention around a layer, under its name."""
        return NoisyAttention(layer, self.wrapper, name=layer.name, **noise)

    def arguments(self) -> list[str]:
        """Those of the wrapper and which projections it goes around."""
        return ["projections", *super().arguments()]


def _wrapped(wrapper: type, kinds: tuple[type, ...]) -> tuple[Wrapped, ...]:
    return tuple(Wrapped(wrapper, kind) for kind in kinds)


def _of_weights(wrapper: typing.Any) -> tuple[Wrapped, ...]:
    """Around all that a weight noise takes, and in attention around its projections, which are EinsumDense."""
    projections = ATTENTION if keras.layers.EinsumDense in wrapper.kinds else ()
    return (*_wrapped(wrapper, wrapper.kinds), *(Projections(wrapper, kind) for kind in projections))


FAMILY = Family(
    keras.layers.Layer,
    "keras.layers.Layer",
    NoiseLayer,
    "call",
    KINDS,
    {
        "per_node_drop": _of_weights(PerNodeDrop),
        "drop_connect": _of_weights(DropConnect),
        "attention_dropout": _wrapped(AttentionDropout, ATTENTION),
        "dynamic_drop_connect": _of_weights(DynamicDropConnect),
        "fast_dropout": _of_weights(FastDropout),
        "flipout": _of_weights(Flipout),
        "noise_injection": _of_weights(NoiseInjection),
        "noisy_rnn": _wrapped(NoisyRNN, RECURRENT),
        "shakeout": _of_weights(Shakeout),
        "sparse_variational_dropout": _of_weights(SparseVariationalDropout),
        "sparse_variational_dropout_rnn": _wrapped(SparseVariationalDropoutRNN, RECURRENT),
        "standout": _of_weights(Standout),
        "variational_dropout": _of_weights(VariationalDropout),
        "variational_dropout_rnn": _wrapped(VariationalDropoutRNN, RECURRENT),
        "zoneout": _wrapped(Zoneout, RECURRENT),
    },
    operator.methodcaller("arguments"),
)
