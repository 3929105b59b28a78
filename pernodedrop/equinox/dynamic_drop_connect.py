"""DynamicDropConnect: connections are dropped at rates that follow their last gradients (arXiv 2502.19948)."""

import typing

import equinox as eqx
import jax

from pernodedrop import checks, preferences
from pernodedrop.equinox.noisy import Model, replaced, xp
from pernodedrop.equinox.products import ConvProduct, LinearProduct
from pernodedrop.equinox.weight_noise import WeightNoise
from pernodedrop.modules import DynamicDropConnectModule
from pernodedrop.preferences import Preferences
from pernodedrop.state import bits_of


class DynamicDropConnect(DynamicDropConnectModule, WeightNoise):
    """Base of the two; it says which mask. `gradient_bits` are those of the gradient last noted, int32, or None."""

    preferences: Preferences = eqx.field(static=True)
    straight_through: bool = eqx.field(static=True)
    gradient_bits: jax.Array | None

    def __init__(
        self,
        *args: typing.Any,
        base_rate: float = 0.3,
        gradient_rate: float = 0.5,
        threshold: float = 0.5,
        prefer: str = "small_gradient",
        straight_through: bool = True,
        calibration: str = "layer",
        weight_rate: float | None = None,
        inference: bool = False,
        key: jax.Array,
        **kwargs: typing.Any,
    ) -> None:
        found = preferences.checked(base_rate, gradient_rate, threshold, prefer, calibration, weight_rate)
        self.plain.__init__(self, *args, **kwargs, key=key)
        self.preferences = found.preferences
        self.straight_through = checks.check_bool(straight_through, "straight_through")
        zeros = jax.numpy.zeros(self.weight.shape, "int32")
        self.gradient_bits = zeros if found.preferences.follow_gradients else None
        self.begin(found.mask, found.schedule, inference, None, None, "auto", found.rises)

    @property
    def gradient(self) -> jax.Array | None:
        """The gradient last noted, float32 in the shape of the weight; None where none is followed."""
        return None if self.gradient_bits is None else jax.lax.bitcast_convert_type(self.gradient_bits, "float32")

    def gradients(self, weight: jax.Array) -> typing.Any:
        return self.gradient

    def with_gradient_rate(self, gradient_rate: float) -> typing.Self:
        """The module at another gradient rate, as `with_rate` gives it at another base rate."""
        return self._with_rise("gradient_rate", gradient_rate)

    def with_weight_rate(self, weight_rate: float) -> typing.Self:
        """The module with two preferences at another rate of that for weights."""
        self.check_two_preferences()
        return self._with_rise("weight_rate", weight_rate)

    def _with_rise(self, name: str, value: float) -> typing.Self:
        return replaced(self, noise_numbers=xp.asarray(bits_of(self.numbers_with_rise(name, value))))


def note_gradients(model: Model, gradients: Model) -> Model:
    """A model whose `DynamicDropConnectLinear` and `Conv` have noted the gradients of their weights.

    Call it in a training step, where the gradients are known, inside `equinox.filter_jit` or not. A module keeps what
    it last noted if its weight has no gradient, because it is frozen, say, or one with an inf or a NaN.

    Args:
        model: a tree with such modules at any depth.
        gradients: those of `equinox.filter_grad` for this model, a tree of the same form.

    Returns:
        The model; the one given stays as it is.

    Raises:
        ValueError: a model without such modules that follow gradients, or gradients of another form.

    >>> import equinox as eqx, jax, pernodedrop.equinox as pnde
    >>> layer, x = pnde.DynamicDropConnectLinear(30, 4, key=jax.random.key(0)), jax.numpy.ones(30)
    >>> gradients = eqx.filter_grad(lambda layer: (layer(x, key=jax.random.key(1)) ** 2).sum())(layer)
    >>> layer = pnde.note_gradients(layer, gradients)
    >>> bool((layer.gradient == gradients.weight).all())
    True
    """
    modules, found = _following(model), _following(gradients)
    if not modules:
        raise ValueError(checks.invalid("model", "one with DynamicDropConnect that follows gradients", type(model)))
    if [one.weight.shape for one in modules] != [_shape(new, old) for new, old in zip(found, modules, strict=False)]:
        raise ValueError(checks.invalid("gradients", "what equinox.filter_grad gives for this model", type(gradients)))
    noted = [
        old.gradient if new.weight is None else preferences.noted(new.weight, old.gradient, xp)
        for old, new in zip(modules, found, strict=True)
    ]
    bits = [jax.lax.bitcast_convert_type(one, "int32") for one in noted]
    return eqx.tree_at(lambda tree: [one.gradient_bits for one in _following(tree)], model, bits)


def _following(tree: typing.Any) -> list[typing.Any]:
    """The modules of a tree that follow gradients."""
    leaves = jax.tree.leaves(tree, is_leaf=lambda leaf: isinstance(leaf, DynamicDropConnect))
    return [one for one in leaves if isinstance(one, DynamicDropConnect) and one.preferences.follow_gradients]


def _shape(gradient: typing.Any, module: typing.Any) -> tuple[int, ...]:
    """The shape of a module's gradient, which may be missing."""
    return (module if gradient.weight is None else gradient).weight.shape


class DynamicDropConnectLinear(DynamicDropConnect, LinearProduct, eqx.nn.Linear):
    """An `equinox.nn.Linear` whose connections are dropped at rates that follow their last gradients (2502.19948).

    Those with small gradients are dropped more often. Samples share a mask, as in the paper, if they are given one key
    (`jax.vmap` with None for it in `in_axes`). It is `pernodedrop.DynamicDropConnect`, which has the formulas, around a
    `keras.layers.Dense` as a module. Inference is Linear itself. The gradients are those that the training step last
    gave to `note_gradients(model, gradients)`; until it does, nothing is dropped. Preferences for weights need no
    gradients.

    Args:
        *args, **kwargs: those of `equinox.nn.Linear`.
        base_rate: drop rate of every connection, a float in [0, 1); 0.3. No schedule: `with_rate`
            sets it, as `with_gradient_rate` and `with_weight_rate` set the others.
        gradient_rate: by how much the drop rate rises as q goes to 1, a float from zero; 0.5.
        threshold: a q up to this counts as 0, a float in [0, 1); 0.5.
        prefer: what is dropped more often: "small_gradient", "big_gradient", "small_weight", "big_weight", or one for
            gradients and one for weights joined by "+".
        straight_through: whether dropped connections have the gradient of the others; True.
        calibration: "layer" divides by the share that the present mask keeps, "edge" each connection by the
            probability that it is kept.
        weight_rate: with two preferences, by how much the drop rate rises as the q of the weights goes to 1.
        inference, key: as for `pernodedrop.equinox.PerNodeLinear`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.equinox.PerNodeLinear`, but no `sample_id`; rates and
    mask are computed in float32.

    Example:

    >>> import jax, pernodedrop.equinox as pnde
    >>> layer, x = pnde.DynamicDropConnectLinear(3, 4, key=jax.random.key(0)), jax.numpy.ones(3)
    >>> bool((layer(x, key=jax.random.key(1)) == layer(x, inference=True)).all())
    True
    """

    @classmethod
    def from_linear(cls, linear: eqx.nn.Linear, **noise: typing.Any) -> typing.Self:
        """The noisy module of a plain one, as `pernodedrop.equinox.PerNodeLinear.from_linear`."""
        return cls.from_plain(linear, **noise)


class DynamicDropConnectConv(DynamicDropConnect, ConvProduct, eqx.nn.Conv):
    """An `equinox.nn.Conv` whose connections are dropped at rates that follow their last gradients (arXiv 2502.19948).

    A connection is an entry of the weight.

    Args:
        *args, **kwargs: those of `equinox.nn.Conv`.
        base_rate, gradient_rate, threshold, prefer, straight_through, calibration, weight_rate, inference, key: as for
            `DynamicDropConnectLinear`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.equinox.PerNodeConv`, but no `sample_id`.

    >>> import jax, pernodedrop.equinox as pnde
    >>> layer = pnde.DynamicDropConnectConv(2, 2, 4, 3, key=jax.random.key(0))
    >>> layer(jax.numpy.ones((2, 8, 8)), key=jax.random.key(1)).shape
    (4, 6, 6)
    """
