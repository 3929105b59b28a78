"""The variants of a study: each regularizer as a function from a Dense layer, a rate and a seed to layers.

What a study compares has a name here. Whatever a layer's own arguments are called, its variant takes a rate, so that
one grid of rates serves all. `register` adds one of your own, and `of_layer` makes one from a layer's arguments, as the
file of a study gives them.
"""

import collections.abc
import contextlib
import inspect
import math
import random
import typing

import keras

from pernodedrop import checks, layers, schedules
from pernodedrop._types import Config
from pernodedrop.contrast import FractalBlock, MixtureOfExperts
from pernodedrop.layers import (
    DropConnect,
    Dropout,
    DynamicDropConnect,
    GaussianDropout,
    Masksembles,
    PerNodeDrop,
)
from pernodedrop.members import MOST_MEMBERS
from pernodedrop.noise import PartialGaussian

__all__ = ["Variant", "drop_connect_rates", "get", "masksembles", "names", "of_layer", "register"]

Layers: typing.TypeAlias = list[keras.layers.Layer]
Function: typing.TypeAlias = collections.abc.Callable[[keras.layers.Layer, float, int], Layers]

Rates: typing.TypeAlias = collections.abc.Callable[[float], typing.Any]
"""From the study's rate to a layer's, which may be a schedule."""

LAYERS = ("DropConnect", "Dropout", "DynamicDropConnect", "GaussianDropout", "PerNodeDrop", "Shakeout", "TabuDropout")
"""Those that stand for one Dense layer and have a rate."""

SCHEDULES = ("Annealed", "Curriculum", "Exponential", "Linear", "Step")

WIDE = 32
"""The bits of seeds for this library's own layers, which take them all: studies were run with these."""

LOW_MEAN = 0.38
"""The mean of DynamicDropConnect's q where gradients are normal: what its rate rises by, over `gradient_rate`."""


class Variant(typing.NamedTuple):
    """A way to regularize a Dense layer.

    Attributes:
        function: (dense, rate, seed) -> the layers that stand in the place of the Dense layer, in order.
        title: what reports call it.
        has_rate: whether the rate matters; otherwise it is tried once, with the rate None.
        r_drop: the alpha of `pernodedrop.losses.RDrop`, with which the model is trained; None trains without R-Drop.
        seed_bits: the function's seeds are below 2**seed_bits; 31, which any layer takes: Keras' own layers keep their
            seeds as an int32 on torch.
    """

    function: Function
    title: str
    has_rate: bool = True
    r_drop: float | None = None
    seed_bits: int = 31


def register(name: str, function: Function, title: str | None = None, has_rate: bool = True) -> Variant:
    """Give a variant a name that studies can use.

    Args:
        name: a str that no variant has yet.
        function: (dense, rate, seed) -> list of layers. `dense` is an unbuilt `keras.layers.Dense`, which the list has
            to hold, bare or inside a wrapper; `rate` is a float in [0, 1); `seed` an int from 0 below
            2**31 that differs between places.
        title: what reports call it; the name by default.
        has_rate: whether the rate matters.

    Returns:
        The `Variant`.

    Raises:
        TypeError, ValueError: a name that is taken, or an argument of another type.

    >>> import pernodedrop as pnd
    >>> from pernodedrop.study import variants
    >>> variants.register("shakeout", lambda dense, rate, seed: [pnd.Shakeout(dense, rate, seed=seed)]).title
    'shakeout'
    """
    if not isinstance(name, str) or name in _VARIANTS:
        raise ValueError(checks.invalid("name", "a str that no variant has yet", name))
    if not callable(function):
        raise TypeError(checks.invalid("function", "a function (dense, rate, seed) -> list of layers", function))
    title = name if title is None else checks.check_str(title, "title")
    _VARIANTS[name] = Variant(function, title, checks.check_bool(has_rate, "has_rate"))
    return _VARIANTS[name]


def get(name: str) -> Variant:
    """The variant with a name, or an error that says which name is nearest.

    >>> from pernodedrop.study import variants
    >>> variants.get("per_node_drop").title
    'PerNodeDrop Bernoulli'
    """
    return _VARIANTS[checks.check_choice(name, "variants", tuple(_VARIANTS))]


def names() -> tuple[str, ...]:
    """The names of all variants, those of `register` last.

    >>> from pernodedrop.study import variants
    >>> variants.names()[:4]
    ('none', 'none_2', 'dropout', 'gaussian_dropout')
    """
    return tuple(_VARIANTS)


def of_layer(
    layer: str,
    title: str | None = None,
    r_drop: float | None = None,
    schedule: Config | None = None,
    **arguments: typing.Any,
) -> Variant:
    """A variant made of a layer of this library with arguments, as the file of a study gives them.

    Args:
        layer: the name of a layer that has a rate, such as "DynamicDropConnect".
        title: what reports call it; the layer's name by default.
        r_drop: as for `Variant`, a float from zero.
        schedule: the layer's rate over time: "kind", the name of one of `pernodedrop.schedules`, and its arguments.
        **arguments: those of the layer. If neither they nor the schedule give a rate, it is the study's.

    Returns:
        The `Variant`. Weight noise is around the Dense layer, activation noise before it.

    Raises:
        TypeError, ValueError: an argument that is not as described, or that the layer does not take.

    >>> from pernodedrop.study import variants
    >>> variants.of_layer("DropConnect", sharing="time").has_rate, variants.of_layer("DropConnect", rate=0.1).has_rate
    (True, False)
    """
    kind = getattr(layers, checks.check_choice(layer, "layer", LAYERS))
    takes = inspect.signature(kind.__init__).parameters
    rate_of = "rate" if "rate" in takes else "base_rate"
    has_rate = rate_of not in arguments
    rates: Rates = _same
    if schedule is not None:
        if not has_rate:
            raise ValueError(checks.invalid("schedule", f"None beside `{rate_of}`", schedule))
        if not isinstance(schedule, dict) or not all(isinstance(name, str) for name in schedule):
            raise TypeError(checks.invalid("schedule", "a dict of a kind and its arguments", schedule))
        has_rate, rates = _scheduled(**schedule)

    def function(dense: keras.layers.Layer, rate: float, seed: int) -> Layers:
        own = {rate_of: rates(rate), "seed": seed, **arguments}
        return [kind(dense, **own)] if "layer" in takes else [kind(**own), dense]

    function(keras.layers.Dense(1), 0.0, 0)  # so that what is wrong is said before anything is trained
    alpha = None if r_drop is None else checks.check_positive(r_drop, "r_drop", zero=True)
    return Variant(function, layer if title is None else checks.check_str(title, "title"), has_rate, alpha, WIDE)


def _same(rate: float) -> typing.Any:
    return rate


def _scheduled(kind: str | None = None, **arguments: typing.Any) -> tuple[bool, Rates]:
    """Whether a schedule has the study's rate, and the schedule as a function of that."""
    make = getattr(schedules, checks.check_choice(kind, "schedule", SCHEDULES))
    has_rate = "rate" not in arguments and "rate" in inspect.signature(make).parameters
    return has_rate, lambda rate: make(**({"rate": rate} if has_rate else {}), **arguments)


def drop_connect_rates(rate: float) -> tuple[float, float]:
    """The (base_rate, gradient_rate) of a DynamicDropConnect that drops a share `rate` of connections on the average.

    That is where gradients are normal, of which q has the mean 0.38. At 0.5 it is about what its authors have, and
    above 0.6 the gradients' part shrinks, since no connection's rate may come to 1.

    >>> [round(number, 2) for number in drop_connect_rates(0.5)]
    [0.31, 0.5]
    """
    rate = checks.check_rate(rate)
    gradient_rate = min(rate, 1.5 * (1 - rate))
    return rate - LOW_MEAN * gradient_rate, gradient_rate


def masksembles(rate: float) -> tuple[int, float]:
    """The (members, scale) of a Masksembles whose masks drop a share `rate` of channels.

    Members are 4, or twice as many as it takes to cover all channels once. The scale solves
    1 - rate = 1 / (scale * (1 - (1 - 1 / scale)**members)), what a mask keeps (arXiv 2012.08334).

    >>> masksembles(0.0), masksembles(0.8)[0], round(masksembles(1 - 8 / 15)[1], 6)
    ((4, 1.0), 10, 2.0)
    """
    from scipy import optimize  # costs 100 ms to import

    members = max(4, math.ceil(round(2 / (1 - checks.check_rate(rate)), 9)))
    if members > MOST_MEMBERS:
        raise ValueError(checks.invalid("rate", f"a drop rate that {MOST_MEMBERS} members have", rate))
    if rate < 1e-9:  # a scale that is 1 in float32
        return members, 1.0

    def excess(scale: float) -> float:
        return -1 / (scale * math.expm1(members * math.log1p(-1 / scale))) - (1 - rate)

    return members, float(optimize.brentq(excess, 1 + 1e-12, 1e6, xtol=1e-12))


def _twice(dense: keras.layers.Layer, rate: float, seed: int) -> Layers:
    config: Config = {**dense.get_config()}
    del config["name"]
    return [dense, type(dense).from_config(config)]


def _masksembles(dense: keras.layers.Layer, rate: float, seed: int) -> Layers:
    members, scale = masksembles(rate)
    return [Masksembles(members, scale, seed=seed), dense]


def _dynamic_drop_connect(dense: keras.layers.Layer, rate: float, seed: int) -> Layers:
    return [DynamicDropConnect(dense, *drop_connect_rates(rate), seed=seed)]


def _per_node_drop(noise: str, regime: str = "dynamic") -> Function:
    return lambda dense, rate, seed: [PerNodeDrop(dense, rate, noise, regime=regime, seed=seed)]


def _partial_gaussian(dense: keras.layers.Layer, rate: float, seed: int) -> Layers:
    noise = PartialGaussian(rate, (1 - rate) ** -0.5)  # its variance is that of the others, rate / (1 - rate)
    return [PerNodeDrop(dense, noise=noise, seed=seed)]


@contextlib.contextmanager
def _of_place(seed: int) -> collections.abc.Iterator[None]:
    """Has copies of a layer start by the seed of their place.

    What they would take of `random` the slot has given back, so that the next layer would start as they do.
    """
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _with_copies(dense: keras.layers.Layer, count: int) -> Layers:
    """A layer after others like it, so many in all, with weights of their own."""
    configs = ({**dense.get_config(), "name": f"{dense.name}_copy_{n}"} for n in range(count - 1))
    return [*(type(dense).from_config(config) for config in configs), dense]


def _fractal_block(dense: keras.layers.Layer, rate: float, seed: int) -> Layers:
    with _of_place(seed):
        return [FractalBlock(_with_copies(dense, 3), rate=rate, seed=seed)]


def _experts(dense: keras.layers.Layer, rate: float, seed: int) -> Layers:
    with _of_place(seed):
        return [MixtureOfExperts(_with_copies(dense, 4))]


# Activation noise stands before the Dense layer, where it multiplies the same inputs as the noise of its kernel does.
_VARIANTS = {
    "none": Variant(lambda dense, rate, seed: [dense], "no regularizer", has_rate=False),
    "none_2": Variant(_twice, "no regularizer, two Dense layers", has_rate=False),
    "dropout": Variant(lambda dense, rate, seed: [Dropout(rate, seed=seed), dense], "Dropout"),
    "gaussian_dropout": Variant(lambda dense, rate, seed: [GaussianDropout(rate, seed=seed), dense], "GaussianDropout"),
    "drop_connect": Variant(lambda dense, rate, seed: [DropConnect(dense, rate, seed=seed)], "DropConnect"),
    "masksembles": Variant(_masksembles, "Masksembles"),
    "per_node_drop": Variant(_per_node_drop("bernoulli"), "PerNodeDrop Bernoulli"),
    "per_node_drop_gaussian": Variant(_per_node_drop("gaussian"), "PerNodeDrop Gaussian"),
    "per_node_drop_partial_gaussian": Variant(_partial_gaussian, "PerNodeDrop partial Gaussian"),
    "per_node_drop_fixed": Variant(_per_node_drop("bernoulli", "fixed"), "PerNodeDrop Bernoulli fixed"),
    "per_node_drop_gaussian_fixed": Variant(_per_node_drop("gaussian", "fixed"), "PerNodeDrop Gaussian fixed"),
    "dynamic_drop_connect": Variant(_dynamic_drop_connect, "DynamicDropConnect"),
    "fractal_block": Variant(_fractal_block, "FractalBlock"),
    "experts": Variant(_experts, "mixture of experts", has_rate=False),
}
_VARIANTS = {name: variant._replace(seed_bits=WIDE) for name, variant in _VARIANTS.items()}
