"""The contract of a noise: each claim is a function that raises `Broken` where a noise does not keep it.

`check_noise` calls them with the examples that Hypothesis finds. By hand a claim is called with the noise, a backend
and an example, which is how the smallest example that broke is repeated:

>>> import pernodedrop as pnd
>>> from pernodedrop.testing import claims
>>> claims.moments(pnd.Gaussian(0.5), "numpy")
>>> claims.elementwise(pnd.Gaussian(0.5), "numpy", words=[0, 2**32 - 1])
"""

import contextlib
import copy
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
from pernodedrop.testing.verdict import Broken, expect, expect_equal, expect_near, expect_same_entries


class _Claim(typing.NamedTuple):
    """A claim and how it is searched.

    Attributes:
        check: the function; the first line of its documentation says what is claimed.
        of: "noise": of the noise itself. "backend": on every backend. "other backend": on every backend but NumPy,
            which is the truth. "differentiable backend": on those that have gradients.
        most: the most examples that a search tries, for a claim that costs much; None where it does not.
        statistical: whether it takes `alarm`, the probability of a false one.
        made_of: whether it is made of a noise at all, a predicate.
        strategies: where the other arguments come from, by name.
    """

    check: typing.Callable
    of: str
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


def claim(of="backend", most=None, statistical=False, made_of=lambda noise: True, **strategies):
    """Put a function among `CLAIMS`."""

    def register(check):
        CLAIMS[check.__name__] = _Claim(check, of, most, statistical, made_of, strategies)
        return check

    return register


def has_rate(noise):
    """Whether the noise has a drop rate."""
    return getattr(noise, "rate", None) is not None


def at_rates(noise, rates):
    """The noise at other drop rates, without those that it refuses."""
    found = []
    for rate in rates if has_rate(noise) else ():
        with contextlib.suppress(ValueError):
            found.append(noise.with_rate(rate))
    return found


def _is_resolved(noise):
    """Whether the spread of entries is far above the rounding of float32 numbers at 1, which would hide them."""
    return noise.variance >= 1e-6


RATES = (0.05, 0.25, 0.5, 0.75, 0.9, 0.95)
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
    ("auto", "sample+time", "rows"),
    ("auto", "sample+time", "times"),
    ("auto", "out", "times"),
    ("auto", "in", "rows"),
)
"""Products with a mask that are tried: method, sharing and which operands, see `_operands`."""

word = st.one_of(st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]), st.integers(0, 2**32 - 1))
some_words = st.lists(word, min_size=1, max_size=16)
keys = st.tuples(word, word)


@claim(of="noise")
def declaration(noise):
    """It declares its mean, variance, lanes and numbers, and compares by its values."""
    expect(type(noise.lanes) is int and noise.lanes >= 1, "`lanes` is no count", noise.lanes, "an int from 1")
    expect(_finite(noise.mean), "`mean` is no number", noise.mean, "a finite float")
    expect(_finite(noise.variance), "`variance` is no number", noise.variance, "a finite float")
    expect(noise.variance >= 0, "`variance` is negative", noise.variance, "a float from 0")
    for name, value in noise.params().items():
        scalar = isinstance(value, np.generic) and _finite(value)
        expect(scalar, f"`params()[{name!r}]` is no finite NumPy scalar", value, "such as np.float32(0.5)")
    again = noise.with_params(noise.params())
    expect(again == noise, "`with_params(params())` is another noise", again, noise)
    twin = copy.deepcopy(noise)
    expect(twin == noise and hash(twin) == hash(noise), "equal fields make unequal noises", twin, noise)


@claim(of="noise")
def bad_input(noise):
    """It refuses invalid numbers, by an error that names the field."""
    config = noise.get_config()
    for field, value in config.items():
        if not checks.is_real(value):
            continue
        outside = [-0.25, 1.0, 2.0] if field == "rate" else []
        for bad in [math.nan, math.inf, -math.inf, str(value), [value], *outside]:
            wanted = f"a ValueError or TypeError that names `{field}`"
            try:
                received = type(noise).from_config({**config, field: bad})
            except (TypeError, ValueError) as error:
                expect(field in str(error), f"{field}={bad!r} is refused, but not by name", error, wanted)
            else:
                raise Broken(f"{field}={bad!r} is accepted", received, wanted)


@claim(of="noise", most=1, made_of=lambda noise: frameworks.has_keras())
def saving(noise):
    """It saves and loads, by itself and in a model, and is the same noise."""
    import keras

    from pernodedrop.layers import PerNodeDrop

    for one in (noise, *_others(noise)):
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


@claim(words=some_words)
def entries(noise, backend, words):
    """Entries are finite float32 numbers, one for each word."""
    words = evaluate.many(noise, words)
    m = evaluate.entries(noise, backend, words)
    expect(m.dtype == np.float32, "entries have another dtype", m.dtype.name, "float32")
    expect(m.shape == words.shape[1:], "entries have another shape than the words", m.shape, words.shape[1:])
    bad = np.flatnonzero(~np.isfinite(m))
    if len(bad):
        raise Broken(f"an entry is not finite, of words {words[:, bad[0]].tolist()}", m[bad[0]], "a finite float")


@claim(words=some_words, shift=st.integers(1, 8))
def elementwise(noise, backend, words, shift=1):
    """An entry depends on its own words and nothing else: no neighbour, no place in the tensor, no earlier call."""
    words = evaluate.many(noise, words)
    m = evaluate.entries(noise, backend, words)
    again = evaluate.entries(noise, backend, words)
    expect(np.array_equal(again, m), "a second evaluation differs", "other entries", "the same")
    moved = np.roll(evaluate.entries(noise, backend, np.roll(words, shift, axis=1)), -shift)
    expect_same_entries(noise, moved, m, f"entries change when their words stand {shift} places on")
    few = evaluate.entries(noise, backend, words[:, :64])
    expect_same_entries(noise, few, m[:64], "entries change when there are fewer of them")
    rows = evaluate.entries(noise, backend, words.reshape(len(words), 8, -1))
    expect_same_entries(noise, rows.ravel(), m, "entries change when they stand in rows, as those of samples do")


@claim(words=some_words)
def numbers(noise, backend, words):
    """Its numbers are those in `params`, so that one that changes during training reaches the entries."""
    words = evaluate.many(noise, words)
    for other in _others(noise):
        wanted, found = other.params(), noise.with_params(other.params()).params()
        expect(found == wanted, f"`with_params` of {noise!r} does not take the params of {other!r}", found, wanted)
        through_params = evaluate.entries(noise, backend, words, wanted)
        what = f"{noise!r} with the params of {other!r} is not {other!r}"
        expect_same_entries(other, through_params, evaluate.entries(other, backend, words), what)


@claim(most=2)
def moments(noise, backend):
    """Its mean and variance are as declared, by integration over all uniform numbers."""
    rates = RATES if backend == "numpy" else RATES[-1:]
    for one in (noise, *at_rates(noise, rates)):
        found = evaluate.moments(one, backend)
        mean_error = variance_error = 0.0
        if one.lanes > 1:
            count, reach = 2 ** integration.bits(one), found.reach
            mean_error = chance.bernstein(count * one.variance, reach, 1e-10) / count
            variance_error = chance.bernstein(count * one.variance * reach**2, reach**2, 1e-10) / count
        at = f" of {one!r} is not the declared one"
        tolerance = 2e-5 * (abs(one.mean) + math.sqrt(one.variance)) + mean_error
        expect_near(found.mean, one.mean, tolerance, f"the mean of an entry{at}")
        tolerance = 1e-3 * one.variance + 1e-9 + variance_error
        expect_near(found.variance, one.variance, tolerance, f"the variance of an entry{at}")


@claim(most=1, made_of=lambda noise: noise.gaussian and _is_resolved(noise))
def normality(noise, backend):
    """A noise that says it is Gaussian is: its entries are 1 + stddev times a standard normal number."""
    stddev = float(noise.params()["stddev"])
    expect_near(stddev**2, noise.variance, 1e-5 * noise.variance, "`params()['stddev']` squared is not the variance")
    m = np.concatenate([evaluate.entries(noise, backend, words) for words in integration.chunks(noise)])
    distance = chance.kolmogorov(special.ndtr((m.astype("float64") - 1) / stddev))
    limit = 1e-4 + (chance.kolmogorov_bound(m.size, 1e-9) if noise.lanes > 1 else 0)
    expect_near(distance, 0, limit, "the distribution of entries has a distance from the normal one")


@claim(of="other backend", words=some_words, key=keys, sample_offset=word)
def agreement(noise, backend, words, key=(1, 0), sample_offset=0, ops=own_ops):
    """Words and uniform numbers are NumPy's to the bit; entries too if the noise is exact, else up to rounding."""
    where = {"key": key, "shape": (4, 3, 5), "sample_offset": sample_offset}
    bits, truth = (ops.random_bits(**where, backend=name).ravel().tolist() for name in (backend, "numpy"))
    expect(bits == truth, "words are not those of NumPy", bits[:4], truth[:4])
    words = evaluate.many(noise, words)
    u, truth = (evaluate.uniforms(name, words) for name in (backend, "numpy"))
    expect_equal(u, truth, 0, "uniform numbers are not those of NumPy")
    m, truth = (evaluate.entries(noise, name, words) for name in (backend, "numpy"))
    expect_same_entries(noise, m, truth, "entries are not those of NumPy")


@claim(of="other backend", most=1)
def everywhere(noise, backend):
    """Its entries are NumPy's at every uniform number."""
    for words in integration.chunks(noise):
        m, truth = (evaluate.entries(noise, name, words) for name in (backend, "numpy"))
        expect_same_entries(noise, m, truth, f"entries are not those of NumPy, of words from {words[0, 0]} on")


@claim(of="other backend", most=2, words=some_words)
def compilation(noise, backend, words):
    """It compiles, and compiled entries are the eager ones."""
    words = evaluate.many(noise, words)
    compiled, eager = (evaluate.entries(noise, backend, words, compiled=how) for how in (True, False))
    expect_same_entries(noise, compiled, eager, "entries change when compiled")


@claim(key=keys, sample_offset=word)
def masks(noise, backend, key=(1, 0), sample_offset=0, ops=own_ops):
    """A mask is the noise of the generator's words at its coordinates, whatever is shared."""
    shape = (4, 3, 5, 2)
    for sharing in SHARINGS:
        m = evaluate.mask(noise, backend, key, shape, ops, sharing=sharing, sample_offset=sample_offset)
        wanted = evaluate.reference_mask(noise, key, shape, sharing, sample_offset)
        expect_same_entries(noise, m, wanted, f"with sharing={sharing!r} a mask is not the noise at its coordinates")


@claim(key=keys, sample_offset=word, start=st.integers(0, 4))
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


@claim(most=2, key=keys, sample_offset=word)
def product(noise, backend, key=(1, 0), sample_offset=0, ops=own_ops):
    """`masked_dense` is the product with the mask, by every method, in one block or several."""
    for method, sharing, which in PRODUCTS:
        x, w = _operands(which)
        m = evaluate.reference_mask(noise, key, _mask_shape(x, w), sharing, sample_offset)
        arguments = {"sharing": sharing, "method": method, "sample_offset": sample_offset}
        y = evaluate.product(noise, backend, key, x, w, ops, **arguments)
        wanted, size = _einsum("bti,io,btio->bto", _with_time(x), w, m)
        what = f"with method={method!r} and sharing={sharing!r} the product of {which} is not that with the mask"
        expect_equal(_with_time(y), wanted, size, what)


@claim(of="differentiable backend", most=2, key=keys, sample_offset=word)
def gradients(noise, backend, key=(1, 0), sample_offset=0, ops=own_ops):
    """The gradients of `masked_dense` are those of the very mask that it applied."""
    for method, sharing, which in PRODUCTS:
        x, w = _operands(which)
        dx, dw, dy = _gradients(noise, backend, key, x, w, sharing, method, sample_offset, ops)
        m = evaluate.reference_mask(noise, key, _mask_shape(x, w), sharing, sample_offset)
        what = f"with method={method!r} and sharing={sharing!r} the gradient of {which} to {{}} is not that of the mask"
        wanted, size = _einsum("bto,io,btio->bti", _with_time(dy), w, m)
        expect_equal(_with_time(dx), wanted, size, what.format("x"))
        wanted, size = _einsum("bto,bti,btio->io", _with_time(dy), _with_time(x), m)
        expect_equal(dw, wanted, size, what.format("w"))


@claim(most=4, key=keys, made_of=has_rate)
def rate_zero(noise, backend, key=(1, 0), ops=own_ops):
    """At rate 0 it is the plain layer."""
    noise = noise.with_rate(0.0)
    m = evaluate.entries(noise, backend, evaluate.many(noise, [0, 2**32 - 1]))
    expect((m == 1).all(), "entries at rate 0 are not 1", f"{m.min()} to {m.max()}", 1.0)
    x, w = _operands("rows")
    y = evaluate.product(noise, backend, key, x, w, ops)
    expect_equal(y, x @ w, abs(x) @ abs(w), "the product at rate 0 is not x @ w")


@claim(most=4, statistical=True, key=keys)
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
    most=6,
    statistical=True,
    key=keys,
    step=st.sampled_from([1, 2, 2**16, 2**31]),
    lag=st.sampled_from([1, 2, 3, 8]),
    start=st.sampled_from([0, 1]),
    made_of=_is_resolved,
)
def independence(noise, backend, key=(1, 0), step=1, lag=1, start=0, alarm=1e-9, ops=own_ops):
    """Entries, and their squares, are uncorrelated over samples, times, inputs, outputs, calls and seeds."""
    shape = (17, 17, 17, 17)

    def mask(seed, call):
        return evaluate.mask(noise, backend, (seed % 2**32, call % 2**32), shape, ops, sharing=()) - 1

    seed, call = key
    here, next_call, next_seed = mask(seed, call), mask(seed, call + step), mask(seed + step, call)
    pairs = {
        f"{axis} {lag} apart": _apart(here, n, lag, start)
        for n, axis in enumerate(("samples", "times", "inputs", "outputs"))
    }
    pairs |= {
        f"calls {step} apart": (here, next_call),
        f"seeds {step} apart": (here, next_seed),
        f"the next call and the next seed ({step} on)": (next_call, next_seed),
    }
    exact = evaluate.moments(noise, "numpy")
    for name, (one, other) in pairs.items():
        part = alarm / (2 * len(pairs))
        _expect_uncorrelated(one, other, noise.variance, exact.reach, part, f"entries of {name}")
        squares = (one**2 - noise.variance, other**2 - noise.variance)
        spread = exact.fourth - noise.variance**2  # of a square
        if noise.lanes == 1 and spread > 1e-3 * noise.variance**2:  # else a square is nearly a constant
            reach = exact.reach**2 + noise.variance
            _expect_uncorrelated(*squares, spread, reach, part, f"squared entries of {name}")


@claim(most=4, statistical=True, key=keys, made_of=lambda noise: noise.gaussian and _is_resolved(noise))
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
        _expect_uncorrelated(*_apart(uniform - 0.5, 0, 1, 0), 1 / 12, 0.5, alarm / 4, what)


@claim(
    of="differentiable backend",
    most=2,
    key=keys,
    sample_offset=word,
    made_of=lambda noise: noise.gaussian and _is_resolved(noise),
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


def _others(noise):
    """The same distribution with other numbers: half of each float one, and another rate."""
    halves = {n: value / 2 if value.dtype.kind == "f" else value for n, value in noise.params().items()}
    others = at_rates(noise, [0.25])
    with contextlib.suppress(TypeError, ValueError):
        others.append(noise.with_params(halves))
    return others


def _operands(which, batch=8):
    """x and w without any pattern, with one zero.

    Args:
        which: "rows": x (batch, in). "times": x (batch, time, in). "blocks": so large that the mask has several blocks.
        batch: of x, where it has one block.
    """
    shape, outputs = {"rows": ((batch, 6), 5), "times": ((batch, 3, 6), 5), "blocks": ((64, 600), 32)}[which]
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


def _apart(m, axis, lag, start):
    """Two arrays of entries whose places on an axis are `lag` apart: disjoint pairs, from `start` on."""
    m = np.moveaxis(m, axis, 0)[start:]
    pairs = m[: len(m) // (2 * lag) * 2 * lag].reshape(-1, 2, lag, *m.shape[1:])
    return pairs[:, 0], pairs[:, 1]


def _expect_uncorrelated(one, other, variance, reach, alarm, what):
    """Raise `Broken` if pairs of numbers of mean 0 are correlated; they have that variance and reach."""
    scale = one.size * variance
    limit = chance.bernstein(scale * variance, reach**2, alarm) / scale
    expect_near(float((one * other).sum() / scale), 0, limit, f"{what} are correlated")


__all__ = ["CLAIMS", *CLAIMS]
