"""The contract of a noise: each claim is a function that raises `Broken` if a noise does not keep it.

A claim judges one noise, with the numbers that it has. `check_noise` supplies the noises (see `variation.py`) and the
examples that Hypothesis finds. To repeat the smallest example that broke a claim, call the claim by hand, with the
noise, a backend and, where there is one, the example:

>>> import pernodedrop as pnd
>>> from pernodedrop.testing import claims
>>> claims.moments(pnd.Gaussian(0.5), "numpy")
>>> claims.elementwise(pnd.Gaussian(0.5), "numpy", words=[0, 2**32 - 1])
"""

import copy
import itertools
import json
import math
import pathlib
import tempfile
import typing
import warnings

import numpy as np
from hypothesis import strategies as st
from scipy import special

from pernodedrop import checks
from pernodedrop import ops as own_ops
from pernodedrop.testing import chance, evaluate, frameworks, integration
from pernodedrop.testing.variation import RATES, at_rates, changed, has_rate, other_numbers, varied
from pernodedrop.testing.verdict import Broken, expect, expect_equal, expect_near, expect_same_entries


class _Claim(typing.NamedTuple):
    """A claim and how it is searched.

    Attributes:
        check: the function; the first line of its documentation says what is claimed.
        of: "noise": of the noise itself. "backend": on every backend. "one backend": on the first, which others are
            compared with. "other backend": on every backend but NumPy, which is the truth. "differentiable backend": on
            those that have gradients.
        needs: the names of claims without which it says nothing new: where one of them does not hold it is not tried.
        most: None: it is tried at all the numbers of `variation.py`, then on examples. Of a claim that costs much: on
            so many examples at most, of which the first has the given numbers.
        statistical: whether it takes `alarm`, the probability of a false one.
        made_of: whether it is made of a noise at all, a predicate.
        strategies: where the other arguments come from, by name.
    """

    check: typing.Callable
    of: str
    needs: tuple[str, ...]
    most: int | None
    statistical: bool
    made_of: typing.Callable
    strategies: dict

    @property
    def text(self):
        """What is claimed."""
        return self.check.__doc__.partition("\n")[0]


CLAIMS: dict[str, _Claim] = {}
"""All claims by name, in the order in which they are tried."""


def claim(*needs, of="backend", most=None, statistical=False, made_of=lambda noise: True, **strategies):
    """Put a function among `CLAIMS`."""

    def register(check):
        CLAIMS[check.__name__] = _Claim(check, of, needs, most, statistical, made_of, strategies)
        return check

    return register


def _is_resolved(noise):
    """Whether the spread of entries is far above the rounding of float32 numbers at 1, which would hide them."""
    return noise.variance >= 1e-6


def _is_resolved_gaussian(noise):
    return noise.gaussian and _is_resolved(noise)


SHARINGS = (None, (), "sample+time", "out")
PRODUCTS = (
    ("recomputed", None, "rows"),
    ("recomputed", None, "times"),
    ("recomputed", None, "blocks"),
    ("recomputed", (), "times"),
    ("recomputed", "sample+time", "rows"),
    ("recomputed", "out", "times"),
    ("materialized", None, "rows"),
    ("materialized", (), "times"),
    ("auto", None, "times"),
    ("auto", None, "long"),
    ("auto", "sample+time", "rows"),
    ("auto", "sample+time", "times"),
    ("auto", "out", "times"),
    ("auto", "in", "rows"),
)
"""Products with a mask that are tried: method, sharing and which of the `OPERANDS`."""

OPERANDS = {"rows": ((8, 6), 5), "times": ((8, 18, 6), 5), "blocks": ((20, 1300), 70), "long": ((2, 3, 1300), 70)}
"""Shapes of x, (batch, in) or (batch, time, in), and numbers of outputs. The mask of "blocks" has several blocks."""

LONG = 2**16 + 2
SHAPES = ((19, 18, 17, 20), (LONG, 2, 2, 1), (1, LONG, 2, 2), (2, 1, LONG, 2), (2, 2, 1, LONG))
"""Shapes (batch, time, in, out) of masks in which no coordinate may begin anew after a short way, nor after 16 bits."""

LAGS = range(1, 17)
"""How far apart along a coordinate entries are tested for correlation."""

OTHER_NAMES = ("p", "drop", "drop_p", "drop_prob", "drop_rate", "dropout", "dropout_rate", "keep_prob", "p_drop")
"""What a drop rate is called where nothing finds it."""

EDGES = (0, 2**32 - 1)

CUT_OFF = 8
"""What a tail lacks that ends at the last uniform number, in the largest entries: there is one in 2**23 of these."""

word = st.one_of(st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]), st.integers(0, 2**32 - 1))
some_words = st.lists(word, min_size=1, max_size=16)


def _word_like(first):
    """A word whose simplest example, which is tried first, is no 0, and unlike that of any other argument.

    With zeros for all, what forgets an offset, or takes a call for a seed, is right.
    """
    return st.just(first) | word


keys = st.tuples(_word_like(1), _word_like(2))
sample_offsets, in_offsets = _word_like(3), _word_like(5)


@claim(of="noise")
def declaration(noise):
    """It declares its mean, variance, lanes and numbers, and calls a drop rate `rate`."""
    expect(type(noise.lanes) is int and noise.lanes >= 1, "`lanes` is no count", noise.lanes, "an int from 1")
    expect(_finite(noise.mean), "`mean` is no number", noise.mean, "a finite float")
    expect(_finite(noise.variance), "`variance` is no number", noise.variance, "a finite float")
    expect(noise.variance >= 0, "`variance` is negative", noise.variance, "a float from 0")
    for name, value in noise.params().items():
        scalar = isinstance(value, np.generic) and _finite(value)
        expect(scalar, f"`params()[{name!r}]` is no finite NumPy scalar", value, "such as np.float32(0.5)")
    for name, value in noise.get_config().items():
        hidden = name in OTHER_NAMES and checks.is_real(value) and 0 <= value <= 1
        expect(not hidden, "a drop rate has a name by which no layer and no schedule finds it", f"`{name}`", "`rate`")


@claim("declaration", of="noise")
def identity(noise):
    """Noises of equal numbers are equal and hash alike, noises of other numbers are unequal."""
    twins = {
        "`with_params(params())` is another noise": noise.with_params(noise.params()),
        "`from_config(get_config())` is another noise": changed(noise, {}),
        "equal fields make unequal noises": copy.deepcopy(noise),
    }
    for what, twin in twins.items():
        expect(twin == noise and hash(twin) == hash(noise), what, twin, noise)
    for other in varied(noise):
        expect(other != noise, "other numbers make an equal noise", other, f"one that is not {noise!r}")


@claim("identity", of="noise", made_of=has_rate)
def rates(noise):
    """`with_rate` sets the drop rate, and nothing but that."""
    for wanted in at_rates(noise, RATES):
        found = noise.with_rate(wanted.rate)
        expect(type(found) is type(noise), f"`with_rate` of {noise!r} makes another noise", found, wanted)
        expect(found.rate == wanted.rate, f"`with_rate({wanted.rate})` sets another rate", found.rate, wanted.rate)
        expect(found == wanted, f"`with_rate({wanted.rate})` of {noise!r} changes more than the rate", found, wanted)


@claim("declaration", of="noise")
def bad_input(noise):
    """It refuses invalid numbers, by an error that names the field."""
    for field, value in noise.get_config().items():
        if not checks.is_real(value):
            continue
        outside = [-0.25, 1.0, 2.0] if field == "rate" else []
        for bad in [math.nan, math.inf, -math.inf, str(value), [value], *outside]:
            received = _accepted(noise, field, bad)
            wanted = f"a ValueError or TypeError that names `{field}`"
            expect(received is None, f"{field}={bad!r} is accepted", received, wanted)
    for field, numbers in other_numbers(noise).items():
        for number in numbers:
            _accepted(noise, field, number)


@claim("identity", words=some_words)
def entries(noise, backend, words=EDGES):
    """Entries are finite float32 numbers, one for each word."""
    words = evaluate.many(noise, words)
    m = evaluate.entries(noise, backend, words)
    expect(m.dtype == np.float32, "entries have another dtype", m.dtype.name, "float32")
    expect(m.shape == words.shape[1:], "entries have another shape than the words", m.shape, words.shape[1:])
    bad = np.flatnonzero(~np.isfinite(m))
    if len(bad):
        raise Broken(f"an entry is not finite, of words {words[:, bad[0]].tolist()}", m[bad[0]], "a finite float")


@claim("entries", words=some_words, shift=st.integers(1, 8))
def elementwise(noise, backend, words=EDGES, shift=1):
    """An entry depends on the upper 24 bits of its own words, and on no neighbour, no place and no other call."""
    words = evaluate.many(noise, words)
    m = evaluate.entries(noise, backend, words)
    again = evaluate.entries(noise, backend, words)
    expect_same_entries(noise, again, m, "a second evaluation differs")
    moved = np.roll(evaluate.entries(noise, backend, np.roll(words, shift, axis=1)), -shift)
    expect_same_entries(noise, moved, m, f"entries change when their words stand {shift} places on")
    few = evaluate.entries(noise, backend, words[:, :64])
    expect_same_entries(noise, few, m[:64], "entries change when there are fewer of them")
    one = evaluate.entries(noise, backend, words[:, :1])
    expect_same_entries(noise, one, m[:1], "an entry changes when it is the only one")
    more = evaluate.entries(noise, backend, np.tile(words, 32))
    expect_same_entries(noise, more, np.tile(m, 32), "entries change when there are more of them")
    rows = evaluate.entries(noise, backend, words.reshape(len(words), 8, -1))
    expect_same_entries(noise, rows.ravel(), m, "entries change when they stand in rows, as those of samples do")
    low = np.arange(words.size, dtype="uint32").reshape(words.shape) % 256
    others = evaluate.entries(noise, backend, words ^ low)
    expect_same_entries(noise, others, m, "entries change with the low 8 bits of their words")
    again = evaluate.entries(noise, backend, words)
    expect_same_entries(noise, again, m, "entries change when others were made before them")


@claim("elementwise", words=some_words)
def numbers(noise, backend, words=EDGES):
    """Its numbers are all in `params`, so that one that changes during training reaches the entries."""
    words = evaluate.many(noise, words)
    for other in varied(noise):
        wanted, taken = other.params(), noise.with_params(other.params())
        what = f"`with_params` of {noise!r} does not take the params of {other!r}"
        expect(taken.params() == wanted, what, taken.params(), wanted)
        what = f"`with_params` of {noise!r} changes more than the params of {other!r} do"
        expect(_kind(taken) == _kind(noise), what, taken, other)
        through_params = evaluate.entries(noise, backend, words, wanted)
        what = f"{noise!r} with the params of {other!r} is not {other!r}"
        if wanted == noise.params():
            what = f"`params()` of {noise!r} and {other!r} are equal, and their entries are not"
        expect_same_entries(other, through_params, evaluate.entries(other, backend, words), what)


@claim("numbers", of="noise", most=1, made_of=lambda noise: frameworks.has_keras())
def saving(noise):
    """It saves and loads, by itself and in a model, and is the same noise."""
    import keras

    from pernodedrop.layers import PerNodeDrop

    for one in (noise, *varied(noise)):
        text = json.dumps(keras.saving.serialize_keras_object(one))
        again = keras.saving.deserialize_keras_object(json.loads(text))
        what = (
            f"what is loaded is a noise of another class, which was registered under the name of {type(one).__name__}"
        )
        expect(type(again) is type(one), what, type(again), type(one))
        expect(again == one, "what is loaded is another noise", again, one)
    layer = PerNodeDrop(keras.layers.Dense(3), noise=noise, seed=1)
    model = keras.Sequential([keras.Input((4,)), layer])
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)  # Keras' on NumPy
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        loaded = keras.saving.load_model(path)
    x = keras.ops.reshape(keras.ops.linspace(-1.0, 1.0, 8), (2, 4))
    before, after = (
        keras.ops.convert_to_numpy(m.layers[0](x, training=True, key=(1, 2))).tolist() for m in (model, loaded)
    )
    expect(before == after, "a model applies another mask when it was loaded", after, before)


@claim("elementwise", of="one backend")
def moments(noise, backend):
    """Its mean and variance are as declared, by integration over all uniform numbers."""
    found, count = evaluate.moments(noise, backend), 2 ** integration.bits(noise)
    reach = found.reach + abs(noise.mean - 1)
    mean_error, variance_error = (CUT_OFF * size / count for size in (reach, reach**2))
    if noise.lanes > 1:
        mean_error += chance.bernstein(count * noise.variance, reach, 1e-10) / count
        variance_error += chance.bernstein(count * noise.variance * reach**2, reach**2, 1e-10) / count
    at = f" of {noise!r} is not the declared one"
    tolerance = 2e-5 * (abs(noise.mean) + math.sqrt(noise.variance)) + mean_error
    expect_near(found.mean, noise.mean, tolerance, f"the mean of an entry{at}")
    tolerance = 1e-3 * noise.variance + 1e-9 + variance_error
    expect_near(found.variance, noise.variance, tolerance, f"the variance of an entry{at}")


@claim("moments", of="one backend", made_of=_is_resolved_gaussian)
def normality(noise, backend):
    """A noise that says it is Gaussian is so: its entries are 1 + stddev times a standard normal number."""
    stddev = float(noise.params()["stddev"])
    expect_near(stddev**2, noise.variance, 1e-5 * noise.variance, "`params()['stddev']` squared is not the variance")
    m = np.concatenate([evaluate.entries(noise, backend, words[:, ::8]) for words in integration.chunks(noise)])
    distance = chance.kolmogorov(special.ndtr((m.astype("float64") - 1) / stddev))
    limit = 1e-4 + (chance.kolmogorov_bound(m.size, 1e-9) if noise.lanes > 1 else 0)
    expect_near(distance, 0, limit, "the distribution of entries has a distance from the normal one")


@claim("elementwise", of="other backend", words=some_words, key=keys, sample_offset=sample_offsets)
def agreement(noise, backend, words=EDGES, key=(1, 0), sample_offset=0, ops=own_ops):
    """Words and uniform numbers are NumPy's to the bit; entries too if the noise is exact, else up to rounding."""
    where = {"key": key, "shape": (4, 3, 5), "sample_offset": sample_offset}
    bits, truth = (ops.random_bits(**where, backend=name).ravel().tolist() for name in (backend, "numpy"))
    expect(bits == truth, "words are not those of NumPy", bits[:4], truth[:4])
    words = evaluate.many(noise, words)
    u, truth = (evaluate.uniforms(name, words) for name in (backend, "numpy"))
    expect_equal(u, truth, 0, "uniform numbers are not those of NumPy")
    m, truth = (evaluate.entries(noise, name, words) for name in (backend, "numpy"))
    expect_same_entries(noise, m, truth, "entries are not those of NumPy")


@claim("agreement", of="other backend", most=1)
def everywhere(noise, backend):
    """Its entries are NumPy's at every uniform number."""
    for words in integration.chunks(noise):
        m, truth = (evaluate.entries(noise, name, words) for name in (backend, "numpy"))
        expect_same_entries(noise, m, truth, f"entries are not those of NumPy, of words from {words[0, 0]} on")


@claim("elementwise", of="other backend", most=2, words=some_words)
def compilation(noise, backend, words=EDGES):
    """It compiles, and compiled entries are the eager ones."""
    words = evaluate.many(noise, words)
    compiled, eager = (evaluate.entries(noise, backend, words, compiled=how) for how in (True, False))
    expect_same_entries(noise, compiled, eager, "entries change when compiled")


@claim("numbers", "agreement", key=keys, sample_offset=sample_offsets)
def masks(noise, backend, key=(1, 0), sample_offset=0, ops=own_ops):
    """A mask is the noise of the generator's words at its coordinates, whatever is shared."""
    shape = (4, 3, 5, 2)
    for sharing in SHARINGS:
        m = evaluate.mask(noise, backend, key, shape, ops, sharing=sharing, sample_offset=sample_offset)
        wanted = evaluate.reference_mask(noise, key, shape, sharing, sample_offset)
        expect_same_entries(noise, m, wanted, f"with sharing={sharing!r} a mask is not the noise at its coordinates")


@claim("masks", most=2, key=keys, sample_offset=sample_offsets)
def coordinates(noise, backend, key=(1, 0), sample_offset=0, ops=own_ops):
    """A mask is right at large coordinates too: along none of them does it repeat."""
    for shape in SHAPES:
        m = evaluate.mask(noise, backend, key, shape, ops, sharing=(), sample_offset=sample_offset)
        wanted = evaluate.reference_mask(noise, key, shape, (), sample_offset)
        what = f"a mask of shape {shape} is not the noise at its coordinates"
        expect_same_entries(noise, m, wanted, what)


@claim("masks", key=keys, sample_offset=sample_offsets, start=st.sampled_from([1, 2, 3, 4, 0]))
def blocks(noise, backend, key=(1, 0), sample_offset=0, start=1, ops=own_ops):
    """A part of a mask is the mask of that part: no block, no padding and no size of the batch changes it."""
    arguments = {"noise": noise, "backend": backend, "key": key, "ops": ops}
    whole = evaluate.mask(shape=(8, 6, 5), sample_offset=sample_offset, **arguments)
    part = evaluate.mask(shape=(4, 3, 2), sample_offset=(sample_offset + start) % 2**32, **arguments)
    what = f"the mask of samples {start} to {start + 3} changes with what is around them"
    expect_same_entries(noise, part, whole[start : start + 4, :3, :2], what)
    x, w = _operands("rows")
    arguments |= {"method": "recomputed", "sample_offset": sample_offset}
    y = evaluate.product(x=x, w=w, **arguments)
    parts = [
        evaluate.product(x=x[:, half], w=w[half], in_offset=half.start, **arguments)
        for half in (slice(0, 3), slice(3, 6))
    ]
    size = (abs(x) @ abs(w)).max() * (1 + abs(whole).max())
    expect_equal(sum(parts), y, size, "the products of the two parts of a kernel do not sum to the product")


@claim("masks", most=2, key=keys, sample_offset=sample_offsets, in_offset=in_offsets)
def product(noise, backend, key=(1, 0), sample_offset=0, in_offset=0, ops=own_ops):
    """`masked_dense` is the product with the mask, by every method, in one block or several."""
    for method, sharing, which in PRODUCTS:
        x, w = _operands(which)
        m = evaluate.reference_mask(noise, key, _mask_shape(x, w), sharing, sample_offset, in_offset)
        arguments = {"sharing": sharing, "method": method, "sample_offset": sample_offset, "in_offset": in_offset}
        y = evaluate.product(noise, backend, key, x, w, ops, **arguments)
        wanted, size = _einsum("bti,io,btio->bto", _with_time(x), w, m)
        what = f"with method={method!r} and sharing={sharing!r} the product of {which} is not that with the mask"
        expect_equal(_with_time(y), wanted, size, what)


@claim("product", of="differentiable backend", most=2, key=keys, sample_offset=sample_offsets)
def gradients(noise, backend, key=(1, 0), sample_offset=0, ops=own_ops):
    """The gradients of `masked_dense` are those of the mask that it applied."""
    for method, sharing, which in PRODUCTS:
        x, w = _operands(which)
        dx, dw, dy = _gradients(noise, backend, key, x, w, sharing, method, sample_offset, ops)
        m = evaluate.reference_mask(noise, key, _mask_shape(x, w), sharing, sample_offset)
        what = f"with method={method!r} and sharing={sharing!r} the gradient of {which} to {{}} is not that of the mask"
        wanted, size = _einsum("bto,io,btio->bti", _with_time(dy), w, m)
        expect_equal(_with_time(dx), wanted, size, what.format("x"))
        wanted, size = _einsum("bto,bti,btio->io", _with_time(dy), _with_time(x), m)
        expect_equal(dw, wanted, size, what.format("w"))


@claim("moments", "product", most=4, key=keys, made_of=lambda noise: at_rates(noise, [0.0]))
def rate_zero(noise, backend, key=(1, 0), ops=own_ops):
    """At rate 0 it is the plain layer."""
    noise = noise.with_rate(0.0)
    m = evaluate.entries(noise, backend, evaluate.many(noise, [0, 2**32 - 1]))
    expect((m == 1).all(), "entries at rate 0 are not 1", f"{m.min()} to {m.max()}", 1.0)
    x, w = _operands("rows")
    y = evaluate.product(noise, backend, key, x, w, ops)
    expect_equal(y, x @ w, abs(x) @ abs(w), "the product at rate 0 is not x @ w")


@claim("moments", "product", most=4, statistical=True, key=keys)
def expectation(noise, backend, key=(1, 0), alarm=1e-9, ops=own_ops):
    """`masked_dense` keeps the expectation: its mean over samples is x @ w."""
    expect(noise.mean == 1, "a noise of another mean than 1 changes what a layer computes", noise.mean, 1.0)
    reach = evaluate.moments(noise, "numpy").reach
    x = np.array([[1.0, -0.5, 0.25]], "float32")
    w = np.array([[1.0, 0.5], [-1.0, 1.0], [0.5, -0.25]], "float32")
    samples = 2**14
    y = evaluate.product(noise, backend, key, np.repeat(x, samples, axis=0), w, ops)
    for mean, term, claimed in zip(y.mean(axis=0), (x.T * w).T, (x @ w)[0], strict=True):
        limit = chance.bernstein(samples * noise.variance * (term**2).sum(), abs(term).max() * reach, alarm / 2)
        rounding = 1e-5 * abs(term).sum() * (1 + math.sqrt(noise.variance))
        what = f"the mean of an output over {samples} samples is not that of x @ w"
        expect_near(float(mean), float(claimed), limit / samples + rounding, what)


@claim(
    "moments",
    "masks",
    most=4,
    statistical=True,
    key=keys,
    step=st.sampled_from([1, 2, 2**16, 2**31]),
    made_of=_is_resolved,
)
def independence(noise, backend, key=(1, 0), step=1, side=34, alarm=1e-9, ops=own_ops):
    """Entries, and their squares, are uncorrelated over samples, times, inputs, outputs, calls and seeds."""

    def mask(seed, call):
        return evaluate.mask(noise, backend, (seed % 2**32, call % 2**32), (side,) * 4, ops, sharing=()) - noise.mean

    seed, call = key
    exact = evaluate.moments(noise, "numpy")
    reach = exact.reach + abs(noise.mean - 1)
    masks = [mask(seed, call), mask(seed, call + step), mask(seed + step, call)]
    found = [("entries", *row) for row in _correlations(*masks, step, noise.variance, reach)]
    spread = exact.fourth - noise.variance**2  # of a square
    if noise.lanes == 1 and spread > 1e-3 * noise.variance**2:  # else a square is nearly a constant
        squares = [m**2 - noise.variance for m in masks]
        rows = _correlations(*squares, step, spread, reach**2 + noise.variance)
        found += [("squared entries", *row) for row in rows]
    part = alarm / len(found)
    what, where, worst = max(found, key=lambda row: abs(row[-1].correlation) / row[-1].limit(part))
    expect_near(worst.correlation, 0, worst.limit(part), f"{what} of {where} are correlated")


@claim("normality", "product", most=4, statistical=True, key=keys, made_of=_is_resolved_gaussian)
def reparameterization(noise, backend, key=(1, 0), alarm=1e-9, ops=own_ops):
    """By local reparameterization and by a mask, outputs are normal, with the variance of the sum."""
    x, w = _operands("rows", batch=4096)
    mean, spread = x.astype("float64") @ w, np.sqrt(noise.variance * (x.astype("float64") ** 2 @ w**2))
    for method in ("local_reparameterization", "materialized"):
        y = evaluate.product(noise, backend, key, x, w, ops, method=method)
        uniform = special.ndtr((y - mean) / spread)
        limit = chance.kolmogorov_bound(uniform.size, alarm / 4) + 1e-4
        what = f"outputs with method={method!r} have a distance from their normal distribution"
        expect_near(chance.kolmogorov(uniform), 0, limit, what)
        what = f"outputs of neighbouring samples with method={method!r}"
        for one in _apart(uniform - 0.5, {0: 1}, 1 / 12, 0.5):
            expect_near(one.correlation, 0, one.limit(alarm / 8), f"{what} are correlated")


@claim(
    "reparameterization",
    of="differentiable backend",
    most=2,
    key=keys,
    sample_offset=sample_offsets,
    made_of=_is_resolved_gaussian,
)
def reparameterized_gradients(noise, backend, key=(1, 0), sample_offset=0, ops=own_ops):
    """The gradients by local reparameterization are those of x @ w + z * sqrt(variance * (x**2 @ w**2))."""
    x, w = _operands("rows")
    method = "local_reparameterization"
    y = evaluate.product(noise, backend, key, x, w, ops, method=method, sample_offset=sample_offset)
    dx, dw, dy = _gradients(noise, backend, key, x, w, None, method, sample_offset, ops)
    x, w = x.astype("float64"), w.astype("float64")
    size = x**2 @ w**2
    slope = dy * (y - x @ w) / size  # of y to size, twice: z * sqrt(variance / size)
    tolerance = 100 * (1 + noise.variance)  # y - x @ w has lost digits
    wanted = dy @ w.T + x * (slope @ (w**2).T)
    expect_equal(dx, wanted, tolerance * (1 + abs(wanted)), "the gradient to x is not that of the same normal numbers")
    wanted = x.T @ dy + ((x**2).T @ slope) * w
    expect_equal(dw, wanted, tolerance * (1 + abs(wanted)), "the gradient to w is not that of the same normal numbers")


def _finite(value):
    return checks.is_real(value) and math.isfinite(value)


def _kind(noise):
    """What of a noise is no float: its class, and fields such as a number of levels."""
    return type(noise), {name: value for name, value in noise.get_config().items() if not isinstance(value, float)}


def _accepted(noise, field, value):
    """The noise with another value of a field, or None where it refuses that by name."""
    wanted = f"a ValueError or TypeError that names `{field}`"
    try:
        return changed(noise, {field: value})
    except (TypeError, ValueError) as error:
        expect(field in str(error), f"{field}={value!r} is refused, but not by name", error, wanted)
    except Exception as error:
        raise Broken(f"{field}={value!r} is refused, but by another error", repr(error), wanted) from error


def _operands(which, batch=None):
    """x and w of the shapes `OPERANDS`, without any pattern, with one zero; x of another batch where it is given."""
    shape, outputs = OPERANDS[which]
    shape = shape if batch is None else (batch, *shape[1:])
    x = np.sin(1 + np.arange(math.prod(shape)) ** 1.3).astype("float32").reshape(shape)
    w = np.cos(np.arange(shape[-1] * outputs) ** 1.2).astype("float32").reshape(-1, outputs)
    w[0, 0] = 0
    return x, w


def _mask_shape(x, w):
    """The shape of the mask of a product, (batch, time, in, out)."""
    return (*_with_time(x).shape, w.shape[1])


def _with_time(x):
    return x if x.ndim == 3 else x[:, None]


def _gradients(noise, backend, key, x, w, sharing, method, sample_offset, ops):
    """The gradients to x and w, and the gradient to the product that they are of."""
    dy = np.cos(np.arange(x[..., 0].size * w.shape[1], dtype="float32")).reshape(*x.shape[:-1], w.shape[1])
    run = evaluate.masked_dense_of(noise, ops, sharing, method)
    constants = evaluate.constants(noise, backend, key, sample_offset=sample_offset)
    _, (dx, dw) = frameworks.value_and_gradients(backend, run, (x, w), dy, constants)
    expect(dx is not None and dw is not None, f"with method={method!r} there is no gradient", None, "a tensor")
    return dx, dw, dy


def _einsum(equation, *operands):
    """The sum over operands, of which the last is the mask, and the size of the numbers that its rounding goes with."""
    *others, m = (np.asarray(a, "float64") for a in operands)
    size = np.einsum(equation, *map(abs, others), 1 + abs(m - 1), optimize=True)  # an entry near 0 came of larger ones
    return np.einsum(equation, *others, m, optimize=True), size


class _Pairs(typing.NamedTuple):
    """Pairs of numbers of mean 0, no number in two of them: the sum of their products, and what that may be.

    Attributes:
        total: the sum.
        size: how many pairs.
        variance, reach: those of the numbers.
    """

    total: float
    size: int
    variance: float
    reach: float

    @property
    def correlation(self):
        return float(self.total / (self.size * self.variance))

    def limit(self, alarm):
        """What the correlation of independent numbers exceeds with a probability of at most `alarm`."""
        scale = self.size * self.variance
        return chance.bernstein(scale * self.variance, self.reach**2, alarm) / scale


def _correlations(here, next_call, next_seed, step, variance, reach):
    """Names and `_Pairs`: of entries some way apart in a mask, and of entries of masks whose keys are `step` apart."""
    axes = ("samples", "times", "inputs", "outputs")
    shifts = {f"{name} {lag} apart": {axis: lag} for axis, name in enumerate(axes) for lag in LAGS}
    for one, other in itertools.combinations(range(4), 2):
        shifts |= {f"{axes[one]} 1 and {axes[other]} {way} apart": {one: 1, other: way} for way in (1, -1)}
    for name, shift in shifts.items():
        for pairs in _apart(here, shift, variance, reach):
            yield name, pairs
    keys = {
        f"calls {step} apart": (here, next_call),
        f"seeds {step} apart": (here, next_seed),
        f"the next call and the next seed ({step} on)": (next_call, next_seed),
    }
    for name, (a, b) in keys.items():
        yield name, _Pairs((a * b).sum(), a.size, variance, reach)


def _apart(m, shift, variance, reach):
    """`_Pairs` of entries of one tensor that are so far apart: two halves, in each of which no entry is in two pairs.

    Args:
        m: host array, the numbers.
        shift: how far, by axis; the first axis named is at least 1 apart.
        variance, reach: of the numbers.
    """
    sizes = {axis: size - abs(shift.get(axis, 0)) for axis, size in enumerate(m.shape)}
    first, second = (
        m[tuple(slice(start := max(0, sign * shift.get(axis, 0)), start + size) for axis, size in sizes.items())]
        for sign in (-1, 1)
    )
    axis, lag = next(iter(shift.items()))
    letters = "abcd"[: m.ndim]
    totals = np.einsum(f"{letters},{letters}->{letters[axis]}", first, second)
    half = np.arange(len(totals)) // lag % 2
    for which in (0, 1):
        chosen = half == which
        if chosen.any():
            yield _Pairs(totals[chosen].sum(), chosen.sum() * first.size // len(totals), variance, reach)


__all__ = ["CLAIMS", *CLAIMS]
