"""DynamicDropConnect: connections are dropped at rates that follow their last gradients (arXiv 2502.19948)."""

import collections.abc
import typing

import jax
from flax import nnx

from pernodedrop import checks, preferences
from pernodedrop.modules import DynamicDropConnectModule
from pernodedrop.nnx.noisy import NoiseState, xp
from pernodedrop.nnx.products import ConvProduct, LinearProduct
from pernodedrop.nnx.weight_noise import WeightNoise
from pernodedrop.schedules import Schedule


class DynamicDropConnect(DynamicDropConnectModule, WeightNoise):
    """Base of the two; it says which mask. `gradient` is a `NoiseState`, the gradient last noted."""

    gradient: typing.Any

    def __init__(
        self,
        *args: typing.Any,
        base_rate: float | Schedule = 0.3,
        gradient_rate: float = 0.5,
        threshold: float = 0.5,
        prefer: str = "small_gradient",
        straight_through: bool = True,
        calibration: str = "layer",
        weight_rate: float | None = None,
        seed: int | None = None,
        deterministic: bool = False,
        rngs: nnx.Rngs,
        **kwargs: typing.Any,
    ) -> None:
        found = preferences.checked(base_rate, gradient_rate, threshold, prefer, calibration, weight_rate)
        super().__init__(*args, **kwargs | {"rngs": rngs})
        self.preferences = found.preferences
        self.straight_through = checks.check_bool(straight_through, "straight_through")
        zeros = jax.numpy.zeros(self.kernel[...].shape, "float32")
        self.gradient = nnx.data(NoiseState(zeros) if found.preferences.follow_gradients else None)
        self.begin(found.mask, seed, "auto", found.schedule, None, rngs, deterministic, found.rises)

    def gradients(self, weight: jax.Array) -> jax.Array:
        return self.gradient[...]


def note_gradients(model: nnx.Module, gradients: typing.Any) -> None:
    """Have the `DynamicDropConnectLinear` and `Conv` of a model note the gradients of their kernels, in place.

    Call it in a training step, where the gradients are known, inside `nnx.jit` or not. A module keeps what it last
    noted if its kernel has no gradient, because it is frozen, say, or one with an inf or a NaN. Modules that share a
    kernel, a Variable, all note its gradient.

    Args:
        model: a module with such modules at any depth.
        gradients: those of `nnx.grad` for this model, an `nnx.State`.

    Raises:
        TypeError, ValueError: a model without such modules, or gradients of none of their kernels, or of another shape.

    >>> import jax, pernodedrop.nnx as pndx
    >>> from flax import nnx
    >>> layer, x = pndx.DynamicDropConnectLinear(30, 4, seed=1, rngs=nnx.Rngs(0)), jax.numpy.ones((2, 30))
    >>> gradients = nnx.grad(lambda layer: (layer(x) ** 2).sum())(layer)
    >>> pndx.note_gradients(layer, gradients)
    >>> bool((layer.gradient[...] == gradients["kernel"][...]).all())
    True
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(checks.invalid("model", "a flax.nnx.Module", model))
    if not isinstance(gradients, nnx.State):
        raise TypeError(checks.invalid("gradients", "the nnx.State that nnx.grad gives", gradients))
    found = {_name(path): gradient for path, gradient in nnx.to_flat_state(gradients)}
    names = {id(held): _name(path) for path, held in nnx.to_flat_state(nnx.state(model))}  # of tied ones their only one
    modules = [
        (names[id(one.kernel)], one)
        for _, one in nnx.iter_modules(model)
        if isinstance(one, DynamicDropConnect) and one.preferences.follow_gradients
    ]
    noted = [(name, one, found[name][...]) for name, one in modules if name in found]
    if not noted:
        expected = ", ".join(dict(modules)) or "a model with DynamicDropConnect that follows gradients"
        raise ValueError(checks.invalid("gradients", f"those of {expected}", list(found)))
    for name, one, gradient in noted:
        if gradient.shape != one.kernel.shape:
            raise ValueError(checks.invalid("gradients", f"{one.kernel.shape} for {name}", gradient.shape))
    for _, one, gradient in noted:
        one.gradient[...] = preferences.noted(gradient, one.gradient[...], xp)


def _name(path: collections.abc.Iterable[typing.Any]) -> str:
    return ".".join(map(str, path))


class DynamicDropConnectLinear(DynamicDropConnect, LinearProduct, nnx.Linear):
    """An `nnx.Linear` whose connections are dropped at rates that follow their last gradients (arXiv 2502.19948).

    A batch has one mask; connections with small gradients are dropped more often. It is
    `pernodedrop.DynamicDropConnect`, which has the formulas, around a `keras.layers.Dense` as a module. Inference is
    Linear itself. The gradients are those that the training step last gave to `note_gradients(model, gradients)`; until
    it does, nothing is dropped. Preferences for weights need no gradients.

    Args:
        *args, **kwargs: those of `nnx.Linear`, except `dot_general`.
        base_rate: drop rate of every connection, a float in [0, 1) or a schedule of
            `pernodedrop.schedules`; 0.3. It is the module's `rate`; it and `gradient_rate` can be set at any time.
        gradient_rate: by how much the drop rate rises as q goes to 1, a float from zero; 0.5.
        threshold: a q up to this counts as 0, a float in [0, 1); 0.5.
        prefer: what is dropped more often: "small_gradient", "big_gradient", "small_weight", "big_weight", or one for
            gradients and one for weights joined by "+".
        straight_through: whether dropped connections have the gradient of the others; True.
        calibration: "layer" divides by the share that the present mask keeps, "edge" each connection by the
            probability that it is kept.
        weight_rate: with two preferences, by how much the drop rate rises as the q of the weights goes to 1.
        rngs, seed, deterministic: as for `pernodedrop.nnx.PerNodeLinear`.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.nnx.PerNodeLinear`, but no `sample_ids`; rates and
    mask are computed in float32.

    Example:

    >>> import jax, pernodedrop.nnx as pndx
    >>> from flax import nnx
    >>> layer, x = pndx.DynamicDropConnectLinear(3, 4, seed=1, rngs=nnx.Rngs(0)), jax.numpy.ones((2, 3))
    >>> bool((layer(x) == layer(x, deterministic=True)).all())
    True
    """

    @classmethod
    def from_linear(cls, linear: nnx.Linear, **noise: typing.Any) -> typing.Self:
        """The noisy module of a plain one, as `pernodedrop.nnx.PerNodeLinear.from_linear`."""
        return cls.from_plain(linear, **noise)


class DynamicDropConnectConv(DynamicDropConnect, ConvProduct, nnx.Conv):
    """An `nnx.Conv` whose connections are dropped at rates that follow their last gradients (arXiv 2502.19948).

    A connection is an entry of the kernel.

    Args:
        *args, **kwargs: those of `nnx.Conv`, as for `pernodedrop.nnx.PerNodeConv`.
        rngs, base_rate, deterministic: and all that `DynamicDropConnectLinear` has between them, as there.

    Call arguments, shapes, dtypes and errors: as for `pernodedrop.nnx.PerNodeConv`, but no `sample_ids`.

    >>> import jax, pernodedrop.nnx as pndx
    >>> from flax import nnx
    >>> layer = pndx.DynamicDropConnectConv(2, 4, (3, 3), seed=1, rngs=nnx.Rngs(0))
    >>> layer(jax.numpy.ones((5, 8, 8, 2))).shape
    (5, 8, 8, 4)
    """
