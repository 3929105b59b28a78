"""MC Dropout for modules of Equinox: predictions with their uncertainty, from passes that keep the noise (1506.02142).

A pass is the model in inference mode, except that its noise modules train, with the seeds of the pass: one compiled
function, mapped over the rows of a batch.
"""

import collections.abc
import inspect
import typing

import equinox as eqx
import jax
import numpy as np

from pernodedrop._types import Array
from pernodedrop.equinox.noisy import replaced
from pernodedrop.equinox.surgery import mapped as with_modules
from pernodedrop.uncertainty.native import Passes, called, mapped, outputs_of
from pernodedrop.uncertainty.prediction import Each, collected

__all__ = ["predict"]


def predict(
    model: eqx.Module | collections.abc.Sequence[eqx.Module],
    x: typing.Any,
    samples: int | None = None,
    *,
    batch_size: int | None = None,
    seed: int | None = None,
    from_logits: bool | Each = False,
    probabilities: bool | Each | None = None,
    gaussian: bool | Each = False,
    layers: str | collections.abc.Collection[str | eqx.Module] | None = None,
    keep: bool = False,
) -> typing.Any:
    """Predict with the noise left on, many times, and say how much the passes differ (arXiv 1506.02142).

    Noise modules are found in the model at any depth: those of this library and `equinox.nn.Dropout`, also inside of
    attention. They train; all others are in inference mode. All passes are compiled once.

    The model is called with one row of x, and `jax.vmap` makes a batch of it. If it takes a `key`, it is given one made
    from (seed, pass, row); modules to which it hands keys have the noise of these, as in training. Modules of this
    library that are called without a key have one made from their place, and the row as `sample_id`. For these it is
    `pernodedrop.uncertainty.predict`, with the same masks for the same seed if modules stand in the same order, that of
    the tree. No mask depends on `batch_size`. A module with M `members` (regime "bank") is its member s modulo M in
    pass s.

    Args:
        model: a module that is called with inputs of one sample and gives an array, or a dict, list or tuple of them,
            or an object that has one as `logits`. For a model with a state give `equinox.Partial(model, state=state)`;
            the state that it returns is discarded. Or a list of M modules, an ensemble (arXiv 1612.01474): pass s is
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
        layers: which modules make noise: None for all, "last" for the last one of them in the order of the tree, or a
            collection of modules of the model or their paths, such as "layers.0", with all that is inside these. Others
            are in inference mode; one with members gives each sample the member of its place in x. The masks are those
            of passes in which all make noise.
        keep: whether to keep the output of every pass; if not, memory does not depend on `samples`.

    Returns:
        A `pernodedrop.uncertainty.Prediction`, NumPy arrays in float64, or a dict or list of them for several outputs.

    Raises:
        TypeError, ValueError: a model without noise, or an argument that is not as described.

    Warns:
        UserWarning: all of several passes were equal.

    Example:

    >>> import equinox as eqx, jax, pernodedrop.equinox as pnde
    >>> model = pnde.apply(eqx.nn.MLP(8, 3, 16, 2, key=jax.random.key(0)), "all-linear", rate=0.2)
    >>> found = pnde.uncertainty.predict(model, jax.numpy.ones((5, 8)), samples=20, seed=1, from_logits=True)
    >>> found.mean.shape, found.mutual_information.shape
    ((5, 3), (5,))
    """
    reading = {"from_logits": from_logits, "probabilities": probabilities, "gaussian": gaussian}
    outputs, number, seed = outputs_of(_Passes, model, x, samples, batch_size, seed, layers, keep, reading)
    return collected(outputs, number, seed, keep, **reading)


class _Passes(Passes):
    """The noisy passes of a model of Equinox, compiled once. Modules are told apart by their places in the tree."""

    kind, name = eqx.Module, "equinox.Module"

    def __init__(self, model: eqx.Module, seed: int, chosen: typing.Any = None, may_be_quiet: bool = False) -> None:
        if isinstance(chosen, list | tuple | set | frozenset):
            chosen = [name for one in chosen for name in (_names(model, one) or [one])]
        model = jax.tree.map(lambda leaf: leaf, model)  # each place has an object of its own
        super().__init__(model, seed, chosen, may_be_quiet)
        self.compiled: typing.Any = eqx.filter_jit(self.outputs)

    def named_modules(self) -> list[tuple[str, eqx.Module]]:
        return _named_modules(self.model)

    def inside(self, module: eqx.Module) -> collections.abc.Iterable[eqx.Module]:
        return [one for _, one in _named_modules(module)]

    def noise_of_framework(self) -> list[eqx.Module]:
        drops = [one for _, one in self.known if isinstance(one, eqx.nn.Dropout)]
        return [one for one in drops if not isinstance(one.p, int | float) or one.p > 0]

    def forward(self, rows: typing.Any, width: int, start: int, sample: int) -> dict[typing.Any, Array]:
        words = np.array([self.word(one, sample) for one in self.noisy], "uint32")
        numbers = words, np.uint32(self.word_of_others(sample)), np.int32(start), np.int32(sample)
        found = self.compiled(self.model, mapped(rows, jax.numpy.asarray), *map(jax.numpy.asarray, numbers), width)
        return {name: np.asarray(y).astype("float64") for name, y in found.items()}

    def outputs(
        self,
        model: typing.Any,
        rows: typing.Any,
        words: jax.Array,
        others: jax.Array,
        start: jax.Array,
        sample: jax.Array,
        width: int,
    ) -> dict[typing.Any, jax.Array]:
        """What the model gives whose modules make noise: seeds `words`, and a key of `others` for each row."""
        name_of = {id(one): name for name, one in self.known}
        word_of_name = {name_of[id(one)]: word for one, word in zip(self.noisy, words, strict=True)}
        drops, members, fixed = (
            {name_of[id(one)] for one in many} for many in (self.others, self.ensembles, self.fixed)
        )
        model = eqx.nn.inference_mode(model)

        def of_row(row: typing.Any, n: jax.Array) -> dict[typing.Any, jax.Array]:
            def in_pass(name: str, module: typing.Any) -> typing.Any:
                if name in word_of_name:
                    return module.in_pass(n, word_of_name[name])
                if name in members or name in fixed:
                    return module.in_pass(sample if name in members else n)
                return replaced(module, inference=False) if name in drops else None

            key = {"key": jax.random.fold_in(jax.random.key(others), n)} if _takes_key(model) else {}
            found = called(with_modules(in_pass, "", model), row, **key)
            arrays = {name: y for name, y in found.items() if not isinstance(y, eqx.nn.State)}
            return {None: arrays[0]} if len(arrays) == 1 < len(found) else arrays

        return jax.vmap(of_row)(rows, start + jax.numpy.arange(width, dtype="int32"))


def _named_modules(model: eqx.Module) -> list[tuple[str, eqx.Module]]:
    """All places of modules in a tree, by their paths."""
    found: list[tuple[str, eqx.Module]] = []
    with_modules(lambda name, module: found.append((name, module)), "", model)
    return found


def _names(model: eqx.Module, module: typing.Any) -> list[str]:
    """The paths of a module in a model."""
    return [name for name, one in _named_modules(model) if one is module]


def _takes_key(model: typing.Any) -> bool:
    """Whether a call of a model may be given a key."""
    if isinstance(model, eqx.Partial):
        return "key" not in model.keywords and _takes_key(model.func)
    return "key" in inspect.signature(model).parameters
