"""Weight noise: what noisy modules that are a Linear or a convolution share."""

import collections.abc
import types
import typing

import equinox as eqx
import jax
import numpy as np
from jax import numpy as jnp

from pernodedrop import checks
from pernodedrop._types import Key
from pernodedrop.equinox.noisy import Noisy, xp
from pernodedrop.equinox.products import Product, with_leaves
from pernodedrop.mask import Mask
from pernodedrop.modules import WeightModule, check_tensor
from pernodedrop.rules import is_plain
from pernodedrop.schedules import Schedule


class WeightNoise(Noisy, Product, WeightModule):
    """Base of modules of Equinox whose weight is multiplied by a mask, entry by entry.

    A class that is used also derives from one of `pernodedrop.equinox.products` and from the class of Equinox. Where a
    call has no noise it is that of the plain module.
    """

    stack: typing.ClassVar[typing.Any] = jnp.stack
    method: str = eqx.field(static=True)

    def begin(
        self,
        mask: Mask,
        schedule: Schedule | None,
        inference: bool,
        seed: int | None,
        key: jax.Array | None,
        method: str,
        more: collections.abc.Mapping[str, np.generic] = types.MappingProxyType({}),
    ) -> None:
        """Begin with a mask, after the constructor of the plain module."""
        self.check_form()
        if "float" not in xp.dtype(self.weight):
            raise TypeError(checks.invalid("dtype", "a floating dtype", self.weight.dtype))
        self.start(mask, schedule, inference, seed, key, more)
        self.method = self.state.check_method(method)

    @classmethod
    def from_plain(cls, module: typing.Any, **noise: typing.Any) -> typing.Self:
        """The noisy module of a plain one, with its parameters.

        Args:
            module: an instance of the class of Equinox that this one derives from, with Equinox' own `__call__`.
            **noise: the arguments of this class that the plain one does not have, such as `rate`; for fixed masks also
                `seed`.

        Raises:
            TypeError, ValueError: a module of another class, or an argument that is not as described.
        """
        if isinstance(module, Noisy) or not is_plain(module, cls.plain, "__call__"):
            expected = f"an equinox.nn.{cls.plain.__name__} without noise, whose `__call__` is Equinox' own"
            raise TypeError(checks.invalid("module", expected, module))
        noisy = cls(**cls.form_of(module), **{"key": jax.random.key(0), **noise})
        return with_leaves(noisy, module.weight, module.bias)

    def __call__(
        self,
        x: jax.Array,
        *,
        key: Key | None = None,
        inference: bool | None = None,
        sample_id: int | jax.Array | None = None,
    ) -> jax.Array:
        """What the plain module gives, in training with noise; see the class."""
        if self.is_noisy(inference):
            check_tensor("x", x, xp)
            return self.with_noise(x[None], self.key_of(key), sample_id)[0]
        if not self.changes_at_inference:
            return self.plain.__call__(self, x)
        return self.with_weight(x[None], *self.weights_at_inference())[0]

    def with_noise(self, x: jax.Array, key: typing.Any, sample_ids: typing.Any) -> jax.Array:
        """What a call with noise gives, of a batch."""
        samples, field = self.samples(x, sample_ids), self.field(key, None)
        return self.product(x, self.weight, None if self.bias is None else self.bias.reshape(-1), field, samples)

    def weights_at_inference(self) -> tuple[jax.Array, jax.Array | None]:
        """The weight and the bias, (out,), that inference has."""
        key = (0, 0) if self.noise_seed is None else None
        return self.at_inference(
            self.weight, None if self.bias is None else self.bias.reshape(-1), self.field(key, None)
        )

    def fold(self) -> eqx.Module:
        """The plain module that computes what this one does at inference.

        Raises:
            ValueError: a bank, whose members are several modules; or a fixed mask that differs from position to
                position.
        """
        self.check_folds()
        plain = self.plain(**self.form_of(self), key=jax.random.key(0))
        weights = self.weights_at_inference() if self.changes_at_inference else (self.weight, self.bias)
        return typing.cast(eqx.Module, with_leaves(plain, *weights))
