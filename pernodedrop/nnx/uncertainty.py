"""MC Dropout for modules of Flax NNX: predictions with their uncertainty, from passes that keep the noise (1506.02142).

A pass is a copy of the model after `eval()`, except that its noise modules train, with the seeds of the pass in their
streams. All is in one compiled function, which gives the outputs alone, so that the model stays what it is.
"""

import collections.abc
import typing

import jax
import numpy as np
from flax import nnx

from pernodedrop._types import Array
from pernodedrop.nnx.noisy import Noisy, Rows
from pernodedrop.uncertainty.native import Passes, called, checked, mapped, outputs_of
from pernodedrop.uncertainty.prediction import Each, collected

__all__ = ["predict"]


def predict(
    model: nnx.Module | collections.abc.Sequence[nnx.Module],
    x: typing.Any,
    samples: int | None = None,
    *,
    batch_size: int | None = None,
    seed: int | None = None,
    from_logits: bool | Each = False,
    probabilities: bool | Each | None = None,
    gaussian: bool | Each = False,
    layers: str | collections.abc.Collection[str | nnx.Module] | None = None,
    keep: bool = False,
) -> typing.Any:
    """Predict with the noise left on, many times, and say how much the passes differ (arXiv 1506.02142).

    Noise modules are found in the model at any depth: those of this library, `nnx.Dropout` and the dropout of
    `nnx.MultiHeadAttention`. They train; all others are as after `eval()`: BatchNorm uses its moving statistics. The
    model itself stays as it is, its modes, streams and statistics included. All passes are compiled once.

    It is `pernodedrop.uncertainty.predict` for modules, with the same masks for the same seed if modules stand in the
    same order, that of `nnx.iter_modules`: the mask of sample n in pass s depends on (seed, place of the module, call
    number, s, n), not on `batch_size`. All other streams in the model have keys of the pass, too, so the seed decides
    the masks of NNX' own modules as well; these depend on the batch size. A module with M `members` (regime "bank") is
    its member s modulo M in pass s. Arguments of a module's call come first: a model that calls its modules with
    `deterministic=True` has no noise in them, and one that brings `rngs` of its own has their masks.

    Args:
        model: a module that is called with inputs alone, and gives an array (n, ...), or a dict, list or tuple of them,
            or an object that has one as `logits`. Or a list of M modules, an ensemble (arXiv 1612.01474): pass s is
            pass s // M of module s modulo M, with a seed of its own. Several modules need no noise.
        x: an array (n, ...), or a list or tuple of them for a model of several arguments, or a dict of them by the
            arguments' names; or batches, say from a generator, where (x, y) and (x, y, weights) stand for x. The last
            batch is filled up, so that all have one shape.
        samples: number of passes. None is the number of members where the model has members and no other noise;
            otherwise 50, or the next multiple of the number of members. Several models count as members.
        batch_size: samples in a forward pass; None is 32. If x is batches, leave it None.
        seed: int, any; None takes one from Python's `random`. A seed gives the same prediction each time.
        from_logits: whether outputs are logits. A softmax, or a sigmoid where the last axis has size 1, is applied
            first, in float64.
        probabilities: whether outputs are probabilities, and have entropies. None decides by their values.
        gaussian: whether outputs are normal distributions: along the last axis means, then as many logarithms of
            variances (arXiv 1703.04977). Where a model has several outputs, this, `probabilities` and `from_logits` are
            for all of them, or dicts or lists like the outputs.
        layers: which modules make noise: None for all, "last" for the last one of them in the order of
            `nnx.iter_modules`, or a collection of modules of the model or their paths, such as "blocks.0", with all
            that is inside these. Others are as after `eval()`; one with members gives each sample the member of its
            place in x. The masks are those of passes in which all make noise.
        keep: whether to keep the output of every pass; if not, memory does not depend on `samples`.

    Returns:
        A `pernodedrop.uncertainty.Prediction`, NumPy arrays in float64, or a dict or list of them for several outputs.

    Raises:
        TypeError, ValueError: a model without noise, or an argument that is not as described.

    Warns:
        UserWarning: all of several passes were equal.

    Example:

    >>> import jax, pernodedrop.nnx as pndx
    >>> from flax import nnx
    >>> model = nnx.Sequential(pndx.Dropout(0.5, seed=1), nnx.Linear(8, 3, rngs=nnx.Rngs(0)), jax.nn.softmax)
    >>> found = pndx.uncertainty.predict(model, jax.numpy.ones((5, 8)), samples=20, seed=1)
    >>> found.mean.shape, found.mutual_information.shape
    ((5, 3), (5,))
    """
    reading = {"from_logits": from_logits, "probabilities": probabilities, "gaussian": gaussian}
    outputs, number, seed = outputs_of(_Passes, model, x, samples, batch_size, seed, layers, keep, reading)
    return collected(outputs, number, seed, keep, **reading)


class _Passes(Passes):
    """The noisy passes of a model of NNX, compiled once."""

    kind, name = nnx.Module, "flax.nnx.Module"

    def __init__(self, *arguments: typing.Any, **keywords: typing.Any) -> None:
        super().__init__(*arguments, **keywords)
        self.graph, self.state = nnx.split(self.model)
        self.compiled = jax.jit(self.outputs, static_argnames="width")

    def named_modules(self) -> list[tuple[str, nnx.Module]]:
        return [(".".join(map(str, path)), one) for path, one in nnx.iter_modules(self.model)]

    def inside(self, module: nnx.Module) -> collections.abc.Iterable[nnx.Module]:
        return [one for _, one in nnx.iter_modules(module)]

    def noise_of_framework(self) -> list[nnx.Module]:
        modules = [one for _, one in self.known if not isinstance(one, Noisy)]
        return [
            *(one for one in modules if isinstance(one, nnx.Dropout) and one.rate > 0),
            *(one for one in modules if isinstance(one, nnx.MultiHeadAttention) and one.dropout_rate > 0),
        ]

    def forward(self, rows: typing.Any, width: int, start: int, sample: int) -> dict[typing.Any, Array]:
        words = np.array([self.word(one, sample) for one in self.noisy], "uint32")
        others = np.uint32(self.word_of_others(sample, start))
        numbers = np.int32(start), np.int32(sample)
        found = self.compiled(self.state, mapped(rows, jax.numpy.asarray), words, others, *numbers, width=width)
        return {name: np.asarray(y).astype("float64") for name, y in found.items()}

    def outputs(
        self,
        state: typing.Any,
        rows: typing.Any,
        words: jax.Array,
        others: jax.Array,
        start: jax.Array,
        sample: jax.Array,
        *,
        width: int,
    ) -> dict[typing.Any, jax.Array]:
        """What a copy of the model gives whose modules make noise: seeds `words`, and `others` for other streams."""
        model = nnx.merge(self.graph, state)
        copies = {id(one): copy for (_, one), (_, copy) in zip(self.known, nnx.iter_modules(model), strict=True)}

        def copies_of(modules: list[typing.Any]) -> list[typing.Any]:
            return [copies[id(one)] for one in modules]

        model.eval()
        streams = [one for _, one in nnx.iter_graph(model) if isinstance(one, nnx.RngKey)]
        for n, key in enumerate(streams):
            new = jax.random.fold_in(jax.random.key(others), n)
            key[...] = jax.random.split(new, key.shape) if key.shape else new
        for one in copies_of(self.others):
            one.deterministic = False
        for one, word in zip(copies_of(self.noisy), words, strict=True):
            one.deterministic = False
            one.reseed(word)
        for one in copies_of([*self.noisy, *self.fixed]):
            if "sample" not in one.sharing:
                one.noise_rows = Rows(start, width)
        for one in copies_of(self.ensembles):
            one.noise_rows = Rows(sample, None)
        return {name: checked(y, width) for name, y in called(model, rows).items()}
