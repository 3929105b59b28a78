"""Weight noise: what the wrappers of a kernel-bearing layer share."""

import collections.abc
import contextlib
import typing

import keras

from pernodedrop import checks, ops
from pernodedrop._types import Config, Key, Shape, Tensor, Words
from pernodedrop.internals import of_keras
from pernodedrop.layers.base.activation_noise import apply_mask
from pernodedrop.layers.base.around import Around
from pernodedrop.layers.base.contraction import Contraction, Operands
from pernodedrop.layers.base.convolution import Convolution
from pernodedrop.layers.base.inner import (
    CONTRACTIONS,
    KINDS,
    LOOKUPS,
    PRODUCTS,
    STAGES,
    Product,
    bias_and_activation,
    check_inputs,
    check_layer,
    copy_of,
    float_kernel,
    product_of,
    stages_of,
    with_kernel,
)
from pernodedrop.layers.base.noisy import Noisy, check_built, check_samples, floating, xp
from pernodedrop.mask import Field, Mask
from pernodedrop.schedules import Schedule

OF_SECOND_KERNEL = 0x9E3779B9
"""By which the seed of the second of two kernels differs, bit by bit, from the layer's."""


class WeightNoise(Noisy, Around):
    """Base of wrappers that put noise on the kernel of a layer.

    The inner layer keeps its weights, LoRA and `quantize`, and its public attributes are those of the wrapper too.
    Where a call has no noise it is the inner layer that is called. Bias and activation are the inner layer's and have
    no noise. Outputs have the compute dtype of the wrapper.

    Args:
        layer: the inner layer, of one of `kinds`.
        mask: which mask, a `pernodedrop.Mask`.
        seed: any int; None takes one from Python's `random`.
        schedule: the rate over time; None leaves it where the mask has it.
        **kwargs: those of `keras.layers.Layer`. The dtype policy is the inner layer's unless given.
    """

    kinds: typing.ClassVar[tuple[type, ...]] = KINDS
    layouts: typing.ClassVar[tuple[str, ...]] = ("dense",)
    """How inputs may be stored in a call with noise, as `xp.layout` names it."""

    def __init__(
        self,
        layer: keras.layers.Layer,
        mask: Mask,
        seed: int | None = None,
        schedule: Schedule | None = None,
        **kwargs: typing.Any,
    ) -> None:
        check_layer(layer, self.kinds)
        if kwargs.get("dtype") is None:
            # the policy of a quantized layer is called "int8_from_float32": the wrapper itself is not quantized
            kwargs["dtype"] = layer.dtype_policy.name.rpartition("_from_")[2]
        super().__init__(mask=mask, seed=seed, schedule=schedule, layer=layer, **kwargs)
        self.supports_masking = layer.supports_masking
        if isinstance(layer, LOOKUPS):
            self.autocast = False  # half of a float has too few digits for an id

    def build(self, input_shape: Shape) -> None:
        if isinstance(self.layer, CONTRACTIONS):
            Contraction(self.layer, len(input_shape))  # refuses an equation without a form for one sample
        super().build(input_shape)

    def call(
        self,
        inputs: Tensor,
        training: bool | None = None,
        key: Key | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        check_samples(inputs)
        inputs = keras.ops.convert_to_tensor(inputs)  # of `stateless_call` an array comes as it is
        # alone of all kinds Dense takes sparse inputs in Keras
        layouts = ("dense", "sparse") if isinstance(self.layer, keras.layers.Dense) else ("dense",)
        ops.check_layout("inputs", inputs, layouts, xp)
        check_inputs(self.layer, inputs)
        with self._dtype_of_inner():
            if self.has_noise(training):
                inputs = self.taken(inputs)
                y = self.call_with_noise(inputs, self.field(key, xp.device(inputs)), self.samples(inputs, sample_ids))
            else:
                y = self.call_without_noise(inputs)
        return keras.ops.cast(y, self.compute_dtype)

    def _dtype_of_inner(self) -> contextlib.AbstractContextManager[typing.Any]:
        """Has the inner layer's variables read in the dtype that this one computes in."""
        if self.autocast and self.layer.variable_dtype != self.compute_dtype:
            return of_keras.autocast(self.compute_dtype)
        return contextlib.nullcontext()

    def taken(self, inputs: Tensor) -> Tensor:
        """The input as the product takes it: floating, or the integers that an Embedding makes of it."""
        if not isinstance(self.layer, LOOKUPS):
            return floating(inputs)
        is_integer = keras.backend.is_int_dtype(keras.backend.standardize_dtype(inputs.dtype))
        return inputs if is_integer else keras.ops.cast(inputs, "int32")

    def call_without_noise(self, inputs: Tensor) -> Tensor:
        """What a call without noise gives: what the inner layer does."""
        return self.layer(inputs)

    def call_with_noise(self, inputs: Tensor, field: Field, samples: Words) -> Tensor:
        """What a call with noise gives: the layer with its product replaced by `multiply`."""
        ops.check_layout("inputs", inputs, self.layouts, xp)
        product = product_of(self.layer, len(inputs.shape))
        bias = self.bias(product, field, samples)
        if self.one_kernel and isinstance(product, Convolution):
            return with_kernel(self.layer, inputs, self.masked_kernel(product, field), bias)
        x, w, restore = self._operands(product, inputs)
        return bias_and_activation(self.layer, restore(self.multiply(x, w, field, samples)), bias)

    def _operands(self, product: Product, inputs: Tensor) -> Operands:
        kernel = float_kernel(self.layer)
        if xp.layout(inputs) == "dense":
            return product.operands(inputs, kernel)
        # a sparse tensor stays as it is: only that of a Dense layer comes here, whose product has the mask's form
        return Operands((inputs,), product.matrices(kernel), lambda y: y[0])

    def bias(self, product: Product, field: Field, samples: Words) -> Tensor | None:
        """The bias of a call with noise, as `inner.bias_and_activation` takes it; None is the layer's own."""
        return None

    def multiply(self, x: Tensor, w: Tensor, field: Field, samples: Words) -> Tensor:
        """The noisy product.

        Args:
            x, w: as in `pernodedrop.layers.base.contraction.Operands`.
            field: the mask at its key; its in coordinate is row-major over (group, in).
            samples: word tensor (batch,), the sample coordinates.

        Returns:
            A tensor (group, batch, [time,] out).
        """
        raise NotImplementedError(f"{type(self).__name__} must define `multiply` or `call_with_noise`")

    @property
    def one_kernel(self) -> bool:
        """Whether all samples and positions of a call have the same mask."""
        return self.state.one_kernel

    def masked_kernel(self, product: Product, field: Field) -> Tensor:
        """The kernel with its noise, where that is one for all samples and positions."""
        kernel = float_kernel(self.layer)
        matrices = product.matrices(kernel)
        return product.kernel(apply_mask(matrices, self.one_mask(matrices, field)), kernel.shape)

    def one_mask(self, matrices: Tensor, field: Field) -> Tensor:
        """That mask, in the shape of `matrices`, (group, in, out)."""
        return self.state.one_mask(matrices, field, xp)

    def compute_mask(self, inputs: Tensor, previous_mask: Tensor | None) -> Tensor | None:
        """The mask that the inner layer passes on."""
        return self.layer.compute_mask(inputs, previous_mask)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return self.layer.compute_output_shape(input_shape)

    def fold(self) -> keras.layers.Layer:
        """A plain Keras layer, built, with weights of its own, that computes what this layer does at inference.

        Raises:
            ValueError: a layer that is not built; a bank, whose members are several layers; or a fixed mask that
                differs from position to position.
        """
        check_built(self)
        if not self.state.mask.at_inference:
            return copy_of(self.layer, dtype=self.dtype_policy)
        rank = len(self.layer.get_build_config()["input_shape"])
        self.check_folds(positions=rank > 2 or not isinstance(self.layer, CONTRACTIONS))
        product = product_of(self.layer, rank)
        return copy_of(self.layer, self.masked_kernel(product, self.field(None, None)), dtype=self.dtype_policy)


class MaskedProduct(WeightNoise):
    """Base of wrappers whose kernel is multiplied by a mask, entry by entry, by a method of choice.

    Args:
        layer, mask, seed, schedule, **kwargs: those of `WeightNoise`.
        method: as for `pernodedrop.ops.masked_dense`.
    """

    kinds: typing.ClassVar[tuple[type, ...]] = (*PRODUCTS, *STAGES)
    layouts: typing.ClassVar[tuple[str, ...]] = ("dense", "sparse")

    def __init__(
        self,
        layer: keras.layers.Layer,
        mask: Mask,
        seed: int | None = None,
        method: str = "auto",
        schedule: Schedule | None = None,
        **kwargs: typing.Any,
    ) -> None:
        super().__init__(layer, mask, seed=seed, schedule=schedule, **kwargs)
        self.method = self.state.check_method(method)
        if isinstance(layer, LOOKUPS):
            if method not in ("auto", "materialized"):
                expected = "'auto' or 'materialized' around an Embedding: no other masks than those of its ids are made"
                raise ValueError(checks.invalid("method", expected, method))
            if self.state.mask.persistence is not None:
                expected = "None around an Embedding, whose positions have other rows"
                raise ValueError(checks.invalid("persistence", expected, self.state.mask.persistence))

    def call_with_noise(self, inputs: Tensor, field: Field, samples: Words) -> Tensor:
        if not isinstance(self.layer, tuple(STAGES)):
            return super().call_with_noise(inputs, field, samples)
        for _, stage, own in self._stages(field):
            inputs = stage.call_with_noise(inputs, own, samples)
        return inputs

    def fold(self) -> keras.layers.Layer:
        if not (isinstance(self.layer, tuple(STAGES)) and self.built and self.regime == "fixed"):
            return super().fold()
        self.check_folds()
        plain: typing.Any = copy_of(self.layer, dtype=self.dtype_policy)
        rank = len(plain.get_build_config()["input_shape"])
        for name, stage, own in self._stages(self.field(None, None)):
            getattr(plain, name).assign(stage.masked_kernel(product_of(stage.layer, rank), own))
        return plain

    def _stages(self, field: Field) -> collections.abc.Iterator[tuple[str, typing.Any, Field]]:
        """The noise of each kernel: its name, this wrapper around a layer of that kernel alone, and its mask."""
        seed, call = field.key
        for name, layer in stages_of(self.layer).items():
            yield name, of_keras.shallow_copy(self, layer=layer), field._replace(key=(seed, call))
            seed = seed ^ xp.asarray(xp.as_word(OF_SECOND_KERNEL), device=xp.device(seed))

    def multiply(self, x: Tensor, w: Tensor, field: Field, samples: Words) -> Tensor:
        return self.masked_product(x, w, field, samples)

    def masked_product(self, x: Tensor, w: Tensor, field: Field, samples: Words) -> Tensor:
        """sum_i x[g, b, t, i] * w[g, i, o] * m[b, t, (g, i), o], in the shapes of `multiply`."""
        y = self.state.products(x, w, field, samples, self.method, xp)
        return keras.ops.stack(y) if isinstance(y, list) else y

    def get_config(self) -> Config:
        return {**super().get_config(), "method": self.method}
