"""Weight noise: what noisy modules that are a Linear or a convolution share."""

import collections.abc
import types
import typing

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from pernodedrop import checks
from pernodedrop._types import Key
from pernodedrop.mask import Mask
from pernodedrop.modules import WeightModule, check_tensor
from pernodedrop.nnx.noisy import STREAM, Noisy, Rngs, chosen, xp
from pernodedrop.nnx.products import Product
from pernodedrop.rules import is_plain
from pernodedrop.schedules import Schedule


class WeightNoise(Noisy, Product, WeightModule):
    """Base of modules of NNX whose kernel is multiplied by a mask, entry by entry.

    A class that is used also derives from one of `pernodedrop.nnx.products` and from the class of NNX. Where a call has
    no noise it is that of the plain module.
    """

    stack = jnp.stack

    def begin(
        self,
        mask: Mask,
        seed: int | None,
        method: str,
        schedule: Schedule | None,
        persistence: Schedule | None,
        rngs: nnx.Rngs | nnx.RngStream,
        deterministic: bool,
        more: collections.abc.Mapping[str, np.generic] = types.MappingProxyType({}),
    ) -> None:
        """Begin with a mask, after the constructor of the plain module."""
        name, default = self.own_product
        if getattr(self, name) is not default:
            expected = f"jax.lax.{name}: a product of another kind has no masks"
            raise ValueError(checks.invalid(name, expected, getattr(self, name)))
        if "float" not in xp.dtype(self.kernel[...]):
            raise TypeError(checks.invalid("param_dtype", "a floating dtype", self.kernel[...].dtype))
        if self.precision is not None:
            expected = "None: the product with a mask has that of jax.default_matmul_precision"
            raise ValueError(checks.invalid("precision", expected, self.precision))
        self.check_form()
        self.start(mask, seed, schedule, rngs, deterministic, persistence, more)
        self.method = self.state.check_method(method)

    @classmethod
    def from_plain(cls, module: typing.Any, **noise: typing.Any) -> typing.Self:
        """The noisy module of a plain one, whose parameters it shares.

        Args:
            module: an instance of the class of NNX that this one derives from, with NNX' own `__call__`.
            **noise: the arguments of this class that the plain one does not have, such as `rate` and `seed`; without a
                seed also `rngs`.

        Raises:
            TypeError, ValueError: a module of another class, or an argument that is not as described.
        """
        if isinstance(module, Noisy) or not is_plain(module, cls.plain, "__call__"):
            expected = f"an nnx.{cls.plain.__name__} without noise, whose `__call__` is NNX' own"
            raise TypeError(checks.invalid("module", expected, module))
        rngs = noise.pop("rngs", None)
        streams = {} if rngs is None else {STREAM: chosen(rngs)()}
        noisy: typing.Any = of_form(cls, module, streams, **noise)
        noisy.kernel, noisy.bias = module.kernel, module.bias
        return noisy

    def __call__(
        self,
        inputs: jax.Array,
        out_sharding: typing.Any = None,
        *,
        deterministic: bool | None = None,
        rngs: Rngs = None,
        key: Key | None = None,
        sample_ids: jax.Array | None = None,
    ) -> jax.Array:
        """What the plain module gives, in training with noise; see the class."""
        key = self.key_of(rngs, key)
        if not self.is_noisy(deterministic):
            return self.without_noise(inputs, out_sharding)
        check_tensor("inputs", inputs, xp)
        if out_sharding is not None:
            raise ValueError(checks.invalid("out_sharding", "None in a call with noise", out_sharding))
        if not self.is_batched(inputs):
            return self.with_noise(inputs[None], key, sample_ids)[0]
        return self.with_noise(inputs, key, sample_ids)

    def without_noise(self, x: jax.Array, out_sharding: typing.Any) -> jax.Array:
        """What a call without noise gives: what the plain module does, with the weights of inference."""
        if not self.changes_at_inference:
            return super().__call__(x, out_sharding)
        return self.with_weight(x, *self.weights_at_inference(self.own_kernel()))

    def with_noise(self, x: jax.Array, key: typing.Any, sample_ids: jax.Array | None) -> jax.Array:
        """What a call with noise gives, of a batch."""
        operands = (x, self.own_kernel(), None if self.bias is None else self.bias[...])
        x, kernel, bias = self.promote_dtype(operands, dtype=self.dtype)
        samples, field = self.samples(x, sample_ids), self.field(key, None)
        y = self.product(x, kernel, bias, field, samples)
        return y if self.preferred_element_type is None else y.astype(self.preferred_element_type)

    def weights_at_inference(self, kernel: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """The kernel that inference has of one, and its bias."""
        return self.at_inference(kernel, None if self.bias is None else self.bias[...], self.field(self.peek(), None))

    def fold(self) -> nnx.Module:
        """The plain module that computes what this one does at inference, sharing its parameters where they are equal.

        Raises:
            ValueError: a bank, whose members are several modules; or a fixed mask that differs from position to
                position.
        """
        self.check_folds()
        plain: typing.Any = of_form(self.plain, self, {})
        plain.kernel, plain.bias = self.kernel, self.bias
        if self.changes_at_inference:
            kernel, bias = self.weights_at_inference(self.kernel[...])
            plain.kernel = self.kernel.replace(kernel)
            plain.bias = nnx.data(None) if bias is None else self.bias.replace(bias)
        return plain


def of_form(cls: typing.Any, like: typing.Any, streams: dict[str, jax.Array], **noise: typing.Any) -> nnx.Module:
    """A module of a class with the form of another one, and with zeros for parameters."""
    kind = cls if issubclass(cls, Product) else type(like)
    names = [*kind.form, kind.own_product[0]]
    zeros = jax.nn.initializers.zeros
    form = {name: getattr(like, name) for name in names}
    return cls(**form, **noise, kernel_init=zeros, bias_init=zeros, rngs=nnx.Rngs(params=0, **streams))
