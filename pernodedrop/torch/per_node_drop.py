"""PerNodeDrop: every sample and every connection gets its own multiplicative noise (arXiv 2512.12663)."""

import typing

import torch

from pernodedrop import schedules
from pernodedrop._types import Sharing
from pernodedrop.mask import Mask
from pernodedrop.noise import Noise
from pernodedrop.schedules import Schedule
from pernodedrop.torch.products import Conv1dProduct, Conv2dProduct, Conv3dProduct, LinearProduct
from pernodedrop.torch.weight_noise import WeightNoise


class PerNodeDrop(WeightNoise):
    """Base of the four; it says which mask."""

    def __init__(
        self,
        *args: typing.Any,
        rate: float | Schedule | None = None,
        noise: str | Noise = "bernoulli",
        regime: str = "dynamic",
        sharing: Sharing = None,
        bank_size: int | None = None,
        seed: int | None = None,
        method: str = "auto",
        persistence: float | Schedule | None = None,
        **kwargs: typing.Any,
    ) -> None:
        kind, schedule = schedules.get_noise(noise, rate)
        start, slow = schedules.get_persistence(persistence)
        mask = Mask(kind, sharing, regime, bank_size, start)
        super().__init__(*args, **kwargs)
        self.begin(mask, seed, method, schedule, slow)


class PerNodeLinear(PerNodeDrop, LinearProduct, torch.nn.Linear):
    """A `torch.nn.Linear` whose every connection has its own noise for every sample in training (arXiv 2512.12663).

    In training, with E[M] = 1,

        y[n, ..., j] = sum_i x[n, ..., i] * weight[j, i] * M[n, i, j] + bias[j]

    It is the module of `pernodedrop.PerNodeDrop` around a `keras.layers.Dense`: equal masks for equal (seed, call), to
    the bit. In the mode `eval()` the regimes "dynamic" and "example" are Linear itself; "fixed" and "bank" keep their
    masks.

    A `state_dict` has the parameters under Linear's names, and the key as extra state. One of a plain model loads with
    `strict=True`, and then the key stays what it is.

    Args:
        *args, **kwargs: those of `torch.nn.Linear`: in_features, out_features, bias, device, dtype.
        rate: drop rate in [0, 1) that goes with a noise given by name; None is 0.5. Or a schedule of
            `pernodedrop.schedules`, which also goes with a `pernodedrop.Noise` that has a rate.
        noise: "bernoulli", "gaussian", "uniform", or a `pernodedrop.Noise`, which brings its own numbers.
        regime: "dynamic": a new mask every call that trains. "fixed": one mask for the model, the same for all samples,
            at inference too. "bank": `bank_size` fixed masks, at inference too; row n of the batch has mask n modulo
            bank_size unless `sample_ids` says otherwise. "example": a fixed mask for each example id, in training.
        sharing: coordinates that the mask does not depend on, as in `pernodedrop.ops.masked_dense`; None shares a
            sample's mask over the positions of inputs of rank 3 and more.
        bank_size: number of masks in the bank regime.
        persistence: the probability in [0, 1] that an entry keeps its value from one position of (batch, time, in) to
            the next, and is not drawn anew, or a schedule of it. Beside it `sharing` has no "time", and a sharing of
            None shares nothing. None leaves positions to `sharing`.
        seed: any int; None takes one from Python's `random`. Seeds s and s + 1 give independent masks.
        method: how the product is computed, as in `pernodedrop.ops.masked_dense`.

    Call arguments:
        input: floating tensor (batch, ..., in_features), or (in_features,), which is one sample. Samples come first.
        key: the key to use instead of drawing one, from `draw()`, or (seed, call).
        sample_ids: integer tensor (batch,), modulo 2**32: the sample coordinate of each row. None is the row's number;
            with R processes of `torch.distributed` row n of rank r has n * R + r, see `set_replica`.

    Output shape and dtype: those of `torch.nn.Linear`, under autocast too; sums are in float32.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.
        RuntimeError: a key would be drawn inside `torch.utils.checkpoint`, see `drawn_keys`.

    Example:

    >>> import torch, pernodedrop.torch as pndt
    >>> layer, x = pndt.PerNodeLinear(3, 4, rate=0.5, seed=1), torch.ones(2, 3)
    >>> bool((layer(x)[0] == layer(x)[0]).all())
    False
    >>> plain = torch.nn.Linear(3, 4)
    >>> found = layer.load_state_dict(plain.state_dict(), strict=True)
    >>> bool((layer.eval()(x) == plain(x)).all())
    True
    """

    @classmethod
    def from_linear(cls, linear: torch.nn.Linear, **noise: typing.Any) -> typing.Self:
        """The noisy module of a plain one, whose parameters and hooks it shares.

        Args:
            linear: a `torch.nn.Linear`, or a subclass with its `forward`.
            **noise: arguments of this class beside those of Linear, such as `rate` and `seed`.

        Raises:
            TypeError, ValueError: another module, or a parametrized one; or an argument that is not as described.
        """
        return cls.from_plain(linear, **noise)


class PerNodeConv1d(PerNodeDrop, Conv1dProduct, torch.nn.Conv1d):
    """A `torch.nn.Conv1d` whose every connection has its own noise for every sample in training (arXiv 2512.12663).

    `PerNodeConv2d` with one axis of space.

    >>> import torch, pernodedrop.torch as pndt
    >>> pndt.PerNodeConv1d(2, 4, 3, rate=0.5, seed=1)(torch.ones(5, 2, 8)).shape
    torch.Size([5, 4, 6])
    """


class PerNodeConv2d(PerNodeDrop, Conv2dProduct, torch.nn.Conv2d):
    """A `torch.nn.Conv2d` whose every connection has its own noise for every sample in training (arXiv 2512.12663).

    A connection is an entry of the weight. A sample has one mask at all positions of its output unless `sharing` leaves
    "time" out. The masks are those of `pernodedrop.PerNodeDrop` around a `keras.layers.Conv2D`. Masks of each sample
    take the memory of its patches: the input times the size of the kernel.

    Args:
        *args, **kwargs: those of `torch.nn.Conv2d`, groups and all padding modes included.
        rate, noise, regime, sharing, bank_size, seed, method, persistence: as for `PerNodeLinear`.

    Call arguments: as for `PerNodeLinear`; the input is (batch, channels, rows, columns), or one sample of it.

    Output shape, dtype and memory format: those of `torch.nn.Conv2d`.

    Raises:
        TypeError, ValueError, RuntimeError: as for `PerNodeLinear`.

    Example:

    >>> import torch, pernodedrop.torch as pndt
    >>> pndt.PerNodeConv2d(2, 4, 3, padding="same", rate=0.5, seed=1)(torch.ones(5, 2, 8, 8)).shape
    torch.Size([5, 4, 8, 8])
    """


class PerNodeConv3d(PerNodeDrop, Conv3dProduct, torch.nn.Conv3d):
    """A `torch.nn.Conv3d` whose every connection has its own noise for every sample in training (arXiv 2512.12663).

    `PerNodeConv2d` with three axes of space.

    >>> import torch, pernodedrop.torch as pndt
    >>> pndt.PerNodeConv3d(2, 4, 2, rate=0.5, seed=1)(torch.ones(5, 2, 3, 3, 3)).shape
    torch.Size([5, 4, 2, 2, 2])
    """
