"""What native modules of all frameworks do alike: noise on a weight, and noise on what passes between modules.

A module of a framework derives from one of these, from what its framework computes, and from a class of the framework.
"""

import collections.abc
import contextlib
import typing

import numpy as np

from pernodedrop import backends, checks, ops, schedules
from pernodedrop._types import Key, Shape, Sharing, Tensor, Words
from pernodedrop.blocks import Blocks
from pernodedrop.mask import Field, Mask, broadcast_shape
from pernodedrop.members import Ensemble, Members, check_axis
from pernodedrop.noise import Bernoulli
from pernodedrop.preferences import DynamicRates
from pernodedrop.schedules import Schedule
from pernodedrop.state import Patches, Regularizer, apply_mask

Restore: typing.TypeAlias = collections.abc.Callable[[Tensor], Tensor]


def check_tensor(argument: str, x: typing.Any, xp: typing.Any) -> None:
    """Raise unless an input is a tensor of the module's framework; JAX takes those of NumPy, and variables, too."""
    framework = xp.__name__.rpartition(".")[2].removesuffix("_ops")
    value, taken = x, [framework]
    if framework == "jax":
        taken.append("numpy")
        with contextlib.suppress(AttributeError, TypeError, ValueError):  # the last of tensors without a value
            value = x.__jax_array__()
    if backends.name_of(value) not in taken:
        raise TypeError(checks.invalid(argument, f"a tensor of {framework}", type(x)))
    checks.check_numbers(value, argument)


class WeightModule(Regularizer):
    """A linear map or a convolution whose weight is multiplied by a mask, entry by entry, by `method`.

    What its framework computes are the methods that raise here. Sums are in float32 at least.
    """

    method: str
    stack: typing.ClassVar[typing.Callable[[list[Tensor]], Tensor]]
    """Makes one tensor of several."""

    def operands(self, x: Tensor) -> tuple[Tensor | Patches, Restore]:
        """The input (group, batch, [time,] in), or the `Patches` that it is, and what makes the output of a product."""
        raise NotImplementedError(f"{type(self).__name__} must define `operands`")

    def matrices(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape as (group, in, out)."""
        raise NotImplementedError(f"{type(self).__name__} must define `matrices`")

    def from_matrices(self, matrices: Tensor) -> Tensor:
        """A tensor of the weight's shape from (group, in, out)."""
        raise NotImplementedError(f"{type(self).__name__} must define `from_matrices`")

    def with_weight(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """What the plain module gives with another weight and bias."""
        raise NotImplementedError(f"{type(self).__name__} must define `with_weight`")

    def as_channels(self, bias: Tensor, y: Tensor) -> Tensor:
        """A bias (batch or 1, out) in a shape that is added to an output."""
        raise NotImplementedError(f"{type(self).__name__} must define `as_channels`")

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None, field: Field, samples: Words) -> Tensor:
        """What a call with noise gives, of a batch; `bias` is (out,)."""
        biases = None if bias is None else self.noisy_bias(self.xp.expand_dims(bias, axis=0), weight, field, samples)
        if self.state.one_kernel:
            return self.with_weight(x, self.noisy_weight(weight, field), None if biases is None else biases[0])
        rows, restore = self.operands(x)
        w = self.scaled(self.matrices(weight), field)
        y = self.state.products(rows, w, field, samples, self.method, self.xp)
        y = restore(type(self).stack(y) if isinstance(y, list) else y)
        return y if biases is None else y + self.xp.astype(self.as_channels(biases, y), self.xp.dtype(y))

    def noisy_weight(self, weight: Tensor, field: Field) -> Tensor:
        """The weight with its noise, where that is one for all samples and positions."""
        w = self.matrices(weight)
        mask = self.state.one_mask(w, field, self.xp)
        return self.from_matrices(self.scaled(apply_mask(w, mask, self.xp), field))

    def noisy_bias(self, bias: Tensor, weight: Tensor, field: Field, samples: Words) -> Tensor:
        """The bias (1, out) of a call with noise, (batch or 1, out)."""
        return bias

    def scaled(self, weights: Tensor, field: Field) -> Tensor:
        """Weights times what the mask leaves out of its scale: 1."""
        return weights

    def at_inference(self, weight: Tensor, bias: Tensor | None, field: Field) -> tuple[Tensor, Tensor | None]:
        """The weight and the bias that inference has."""
        return (self.noisy_weight(weight, field) if self.state.mask.at_inference else weight), bias

    @property
    def changes_at_inference(self) -> bool:
        """Whether these are others than the module's own."""
        return self.state.mask.at_inference


class DropConnectModule(WeightModule):
    """DropConnect: `mask_bias`, and `scaling` "none" for its mean at inference rather than a scale in training."""

    mask_bias: bool
    scaling: str

    def noisy_bias(self, bias: Tensor, weight: Tensor, field: Field, samples: Words) -> Tensor:
        if not self.mask_bias:
            return bias
        groups, inputs, _ = self.matrices(weight).shape
        mask = self.state.bias_mask(bias, groups * inputs, field, samples, self.xp)
        return self.scaled(apply_mask(bias, mask, self.xp), field)

    def scaled(self, weights: Tensor, field: Field) -> Tensor:
        if self.scaling == "inverted":
            return weights
        noise = typing.cast(Bernoulli, field.noise)
        return apply_mask(weights, noise.keep_probability(field.params, self.xp), self.xp)

    def at_inference(self, weight: Tensor, bias: Tensor | None, field: Field) -> tuple[Tensor, Tensor | None]:
        scale_bias = self.mask_bias and bias is not None
        return self.scaled(weight, field), (self.scaled(bias, field) if scale_bias else bias)

    @property
    def changes_at_inference(self) -> bool:
        return self.scaling == "none"


def mask_of_drop_connect(
    rate: float | Schedule, sharing: Sharing, mask_bias: bool, scaling: str, persistence: float | None = None
) -> tuple[Mask, Schedule | None]:
    """The mask of DropConnect and its schedule, or an error about one of its arguments."""
    start, schedule = schedules.get(rate)
    if sharing is None:
        sharing = "sample+time" if persistence is None else "sample"
    mask = Mask(Bernoulli(start), sharing, persistence=persistence)
    if checks.check_bool(mask_bias, "mask_bias") and "time" not in mask.sharing:
        raise ValueError(checks.invalid("sharing", "coordinates with 'time' beside mask_bias=True", sharing))
    checks.check_choice(scaling, "scaling", ("inverted", "none"))
    return mask, schedule


class DynamicDropConnectModule(DynamicRates, WeightModule):
    """DropConnect at rates that follow gradients, those last noted, and weights; `straight_through` or not."""

    straight_through: bool

    def gradients(self, weight: Tensor) -> Tensor:
        """The gradient last noted, float32, in the shape of the weight."""
        raise NotImplementedError(f"{type(self).__name__} must define `gradients`")

    def noisy_weight(self, weight: Tensor, field: Field) -> Tensor:
        w = self.matrices(weight)
        sizes = self.matrices(self.xp.abs(self.gradients(weight))) if self.preferences.follow_gradients else None
        mask = self.from_matrices(self.preferences.mask(w, sizes, self.numbers(), field, self.xp))
        return self.times_mask(weight, self.xp.stop_gradient(mask))

    def times_mask(self, weight: Tensor, mask: Tensor) -> Tensor:
        """The weight with its noise, whose gradient is that of the weight where it passes straight through."""
        xp, dtype = self.xp, ops.accumulation_dtype(weight, xp=self.xp)
        w, mask = xp.astype(weight, dtype), xp.astype(mask, dtype)
        masked = w + xp.stop_gradient(w * mask - w) if self.straight_through else w * mask
        return xp.astype(masked, xp.dtype(weight))


class ActivationModule(Regularizer):
    """Noise between modules, which is the identity at inference; a subclass gives `mask_of`."""

    argument: typing.ClassVar[str] = "inputs"
    """What the framework calls the input."""

    changes_at_inference: typing.ClassVar[bool] = False
    """Whether inference is not the identity, and has the mask of `mask_at_inference`."""

    def check_input(self, x: Tensor, of_one: bool = False) -> None:
        """Raise unless a call may have this input, of one sample or with samples first, at inference too."""
        check_tensor(self.argument, x, self.xp)
        shape = (1, *x.shape) if of_one else tuple(x.shape)
        if not shape:
            raise ValueError(checks.invalid(self.argument, "samples in the first axis", shape))
        self.check_shape(shape)

    def check_shape(self, shape: Shape) -> None:
        """Raise unless inputs may have this shape, samples first."""

    def mask_of(self, x: Tensor, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        """The mask of a call, float32, in a shape that broadcasts against the input's, samples first."""
        raise NotImplementedError(f"{type(self).__name__} must define `mask_of`")

    def mask_at_inference(self, x: Tensor, sample_ids: Tensor | None) -> Tensor:
        """The mask of a call at inference, likewise."""
        raise NotImplementedError(f"{type(self).__name__} must define `mask_at_inference`")

    def masked(self, x: Tensor, key: Key | None, sample_ids: Tensor | None, training: bool = True) -> Tensor:
        """The input, samples first, times its mask."""
        if "float" not in self.xp.dtype(x):
            raise TypeError(checks.invalid(self.argument, "a floating dtype", x.dtype))
        ops.check_layout(self.argument, x, ("dense",), self.xp)
        mask = self.mask_of(x, key, sample_ids) if training else self.mask_at_inference(x, sample_ids)
        return apply_mask(x, mask, self.xp)


class ShapedModule(ActivationModule):
    """One entry for each place of a mask of `noise_shape` that is broadcast against the input."""

    noise_shape: Shape | None

    def check_shape(self, shape: Shape) -> None:
        broadcast_shape(self.noise_shape, shape)

    def mask_of(self, x: Tensor, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        return self.entries_of(broadcast_shape(self.noise_shape, tuple(x.shape)), x, key, sample_ids)


def sharing_of(noise_shape: Shape | None) -> str:
    """The sharing of a mask that is broadcast from a shape, samples first."""
    return "sample+out" if noise_shape and noise_shape[0] == 1 else "out"


class PathModule(ActivationModule):
    """One entry for each sample, of its scale or, without `scale_by_keep`, 1."""

    scale_by_keep: bool

    def mask_of(self, x: Tensor, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        entries = self.entries_of((x.shape[0], *(1 for _ in x.shape[1:])), x, key, sample_ids)
        return entries if self.scale_by_keep else self.xp.astype(entries > 0, "float32")


class ChannelModule(ActivationModule):
    """One entry for each sample and channel, the same at all positions; `data_format` says which axis channels have."""

    data_format: str

    def mask_of(self, x: Tensor, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        is_last = self.data_format == "channels_last"
        batch, channels, ones = x.shape[0], x.shape[-1 if is_last else 1], (1,) * (len(x.shape) - 2)
        entries = self.entries_of((batch, *ones, channels), x, key, sample_ids)
        return entries if is_last else self.xp.reshape(entries, (entries.shape[0], channels, *ones))


class BlockModule(ActivationModule):
    """Blocks of feature maps that are dropped; `data_format` says which axis channels have."""

    block_size: int
    per_channel: bool
    normalize: str
    data_format: str

    def mask_of(self, x: Tensor, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        batch, *sizes = x.shape
        is_last = self.data_format == "channels_last"
        shape = (batch, *(sizes if is_last else [*sizes[1:], sizes[0]]))
        samples, field = self.samples(x, sample_ids), self.field(key, self.xp.device(x))
        mask = Blocks(self.block_size, self.per_channel, self.normalize).mask(shape, field, samples, x, self.xp)
        return mask if is_last else self.xp.permute_dims(mask, (0, len(sizes), *range(1, len(sizes))))

    def check_blocks(self, block_size: int, per_channel: bool, data_format: str, normalize: str = "sample") -> None:
        """Take the arguments of a constructor, or raise."""
        self.block_size = checks.check_count(block_size, "block_size")
        self.per_channel = checks.check_bool(per_channel, "per_channel")
        self.normalize = checks.check_choice(normalize, "normalize", ("sample", "batch"))
        self.data_format = checks.check_choice(data_format, "data_format", ("channels_last", "channels_first"))


class EnsembleModule(Ensemble, ActivationModule):
    """One of a few fixed masks over channels for each sample, at inference too; a subclass gives `masks`.

    Attributes:
        channels, axis: how many there are, and which axis of a batch they are.
    """

    changes_at_inference = True
    channels: int
    axis: int

    def check_ensemble(
        self, channels: int, members: int, scale: float, train_assignment: str, rounding: str, axis: int
    ) -> Mask:
        """Take the arguments of a constructor, or raise; the mask of the numbers that choose members."""
        self.channels = checks.check_count(channels, "channels")
        self.which, self.axis = Members(members, scale, train_assignment, rounding), check_axis(axis)
        return self.which.mask

    def masks_now(self) -> Tensor:
        """The masks, int32 (members, channels)."""
        raise NotImplementedError(f"{type(self).__name__} must define `masks_now`")

    def masks_of(self, seed: int) -> np.typing.NDArray[np.int32]:
        """The masks of a seed's word, on the host."""
        return self.which.masks(self.channels, seed).astype("int32")

    def check_shape(self, shape: Shape) -> None:
        if not -len(shape) < self.axis < len(shape) or shape[self.axis] != self.channels:
            raise ValueError(checks.invalid(self.argument, f"{self.channels} channels in axis {self.axis}", shape))

    def mask_of(self, x: Tensor, key: Key | None, sample_ids: Tensor | None) -> Tensor:
        return self._mask_of_rows(x, self.member_of_rows(x, key, sample_ids, training=True))

    def mask_at_inference(self, x: Tensor, sample_ids: Tensor | None) -> Tensor:
        return self._mask_of_rows(x, self.member_of_rows(x, None, sample_ids, training=False))

    def fold(self) -> typing.NoReturn:
        """Refused.

        Raises:
            ValueError: always, since the members are several functions.
        """
        raise ValueError(checks.invalid("members", "one function at inference, to be folded", self.members))

    def _mask_of_rows(self, x: Tensor, member: Tensor) -> Tensor:
        return self.masks_of_rows(self.xp.astype(self.masks_now(), "float32"), member, self.axis, len(x.shape))
