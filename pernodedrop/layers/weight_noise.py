"""Weight noise: what the wrappers of a kernel-bearing layer share."""

import typing

import keras

from pernodedrop import checks, ops
from pernodedrop._types import Config, Key, Shape, Tensor
from pernodedrop.layers.contraction import Contraction, check_layer, finish, float_kernel
from pernodedrop.layers.noisy import Noisy, floating, xp
from pernodedrop.mask import Mask


class WeightNoise(Noisy, keras.layers.Wrapper):
    """Base of wrappers that put noise on the kernel of a layer.

    The inner layer keeps its weights, its checkpoint path, LoRA and `quantize`; where a call has no noise it is the
    inner layer that is called. Bias and activation are the inner layer's and have no noise.

    Args:
        layer: the inner layer, a Dense or EinsumDense.
        mask: which mask, a `pernodedrop.Mask`.
        seed: int, any; None takes one from Python's `random`.
        method: as for `pernodedrop.ops.masked_dense`.
        **kwargs: those of `keras.layers.Layer`. The dtype policy is the inner layer's unless given.
    """

    def __init__(
        self,
        layer: keras.layers.Layer,
        mask: Mask,
        seed: int | None = None,
        method: str = "auto",
        **kwargs: typing.Any,
    ) -> None:
        check_layer(layer)
        self.method = checks.check_choice(method, "method", ops.METHODS)
        if kwargs.get("dtype") is None:
            # the policy of a quantized layer is called "int8_from_float32": the wrapper itself is not quantized
            kwargs["dtype"] = layer.dtype_policy.name.rpartition("_from_")[2]
        super().__init__(mask=mask, seed=seed, layer=layer, **kwargs)
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        Contraction(self.layer, len(input_shape))
        super().build(input_shape)

    def call(
        self,
        inputs: Tensor,
        training: bool | None = None,
        key: Key | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        if not self.is_noisy(training):
            return self.layer(inputs)
        inputs = floating(inputs)
        field = self.field(key, xp.device(inputs))
        samples = self.samples(inputs, sample_ids)

        def multiply(x: Tensor, w: Tensor, in_offset: int) -> Tensor:
            return ops.multiply(
                x,
                w,
                field,
                sharing=self.mask.sharing,
                samples=samples,
                in_offset=in_offset,
                method=self.method,
                xp=xp,
            )

        contraction = Contraction(self.layer, len(inputs.shape))
        return finish(self.layer, contraction(inputs, float_kernel(self.layer), multiply))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return self.layer.compute_output_shape(input_shape)

    def get_config(self) -> Config:
        return {**super().get_config(), "method": self.method}
