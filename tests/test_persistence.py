"""Masks that change slowly: against a chain made step by step from the words, and against the distribution of one."""

import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop import generator
from tests.frameworks import NAME, array, compiled, needs_gradients, tensor, value_and_gradients

KEY = (1, 0)
BERNOULLI, GAUSSIAN = pnd.Bernoulli(0.4), pnd.Gaussian(0.3)
SHARINGS = [(), "sample", "in", "out", "sample+out", "in+out"]


def mask(noise, shape, persistence, **kwargs):
    return array(pnd.ops.sample_mask(noise, KEY, shape, persistence=persistence, backend=NAME, **kwargs))


def mask_of_numpy(noise, shape, persistence):
    return pnd.ops.sample_mask(noise, KEY, shape, persistence=persistence, backend="numpy")


def chain(noise, shape, persistence, sharing=()):
    """The mask as it is defined: at each position the entry of before, or the one of that position."""
    xp = pnd.backends.get("numpy")
    key = tuple(np.array([word], "uint32") for word in KEY)
    batch, times, inputs, outputs = (np.arange(size, dtype="uint32") for size in shape)
    shared = {name: np.zeros(1, "uint32") for name in np.atleast_1d(sharing.split("+") if sharing else [])}
    sample, in_, out = (shared.get(n, c) for n, c in {"sample": batch, "in": inputs, "out": outputs}.items())
    lane = np.array([2**32 - 1], "uint32")
    words = generator.words(key, lane, times[:, None, None], sample[:, None, None, None], in_[:, None], out, xp)
    kept = np.broadcast_to((words >> 8) < round(persistence * 2**24), shape)
    m = np.array(pnd.ops.sample_mask(noise, KEY, shape, sharing=sharing, backend="numpy"))
    for t in range(1, shape[1]):
        m[:, t] = np.where(kept[:, t], m[:, t - 1], m[:, t])
    return m


@pytest.mark.parametrize(
    ("noise", "sharing", "rounding"),
    [*((BERNOULLI, sharing, 0) for sharing in SHARINGS), (GAUSSIAN, (), 1e-5)],
)
def test_an_entry_is_that_of_before_or_is_drawn_anew(noise, sharing, rounding):
    m = mask(noise, (3, 17, 4, 5), 0.7, sharing=sharing)
    np.testing.assert_allclose(m, chain(noise, (3, 17, 4, 5), 0.7, sharing), rtol=0, atol=rounding)


def test_the_ends_are_a_mask_for_every_position_and_one_for_all():
    shape = (2, 9, 3, 4)
    for persistence, sharing in ((0, ()), (1, "time")):
        plain = pnd.ops.sample_mask(BERNOULLI, KEY, shape, sharing=sharing, backend=NAME)
        np.testing.assert_array_equal(mask(BERNOULLI, shape, persistence), array(plain))


def test_what_comes_later_changes_nothing_before():
    whole = mask(BERNOULLI, (3, 20, 4, 5), 0.9)
    np.testing.assert_array_equal(mask(BERNOULLI, (2, 8, 3, 4), 0.9), whole[:2, :8, :3, :4])


@pytest.mark.parametrize("sharing", SHARINGS)
def test_a_part_of_a_sequence_has_the_masks_of_the_whole(sharing):
    shape = (3, 20, 4, 5)
    m = chain(BERNOULLI, shape, 0.9, sharing)
    for start, stop in ((0, 7), (7, 8), (8, 20)):
        part = mask(BERNOULLI, (3, stop - start, 4, 5), 0.9, sharing=sharing, time_offset=start)
        np.testing.assert_array_equal(part, m[:, start:stop])
        w = np.ones(part.shape, "float32")
        masked = pnd.ops.masked(tensor(w), BERNOULLI, KEY, sharing=sharing, persistence=0.9, time_offset=start)
        np.testing.assert_array_equal(array(masked), m[:, start:stop])
    alone = mask(BERNOULLI, (3, 4, 5), 0.9, sharing=sharing, time_offset=13)  # one position, without an axis of its own
    np.testing.assert_array_equal(alone, m[:, 13])
    np.testing.assert_array_equal(mask(BERNOULLI, (3, 4, 5), 0.9, sharing=sharing), m[:, 0])


def test_a_part_without_positions_is_empty():
    x, w = tensor(np.ones((2, 0, 7), "float32")), tensor(np.ones((7, 4), "float32"))
    y = pnd.ops.masked_dense(x, w, BERNOULLI, KEY, persistence=0.5, time_offset=4)
    assert tuple(y.shape) == (2, 0, 4)
    assert mask(BERNOULLI, (2, 0, 7, 4), 0.5, time_offset=4).shape == (2, 0, 7, 4)


@needs_gradients
@pytest.mark.parametrize("sharing", [(), "sample"])
def test_products_and_gradients_of_the_parts_are_those_of_the_whole(sharing):
    rng = np.random.default_rng(0)
    x, w, dy = (rng.normal(size=shape).astype("float32") for shape in ((3, 9, 4), (4, 5), (3, 9, 5)))
    m = chain(BERNOULLI, (3, 9, 4, 5), 0.8, sharing)

    def run(start, stop):
        def product(x, w):
            given = {"sharing": sharing, "persistence": 0.8, "time_offset": start}
            if stop - start > 1:
                return pnd.ops.masked_dense(x, w, BERNOULLI, KEY, **given)
            return pnd.ops.masked_dense(x[:, 0], w, BERNOULLI, KEY, **given)[:, None]

        return value_and_gradients(product, x[:, start:stop], w, upstream=dy[:, start:stop])

    y, gradients = zip(run(0, 4), run(4, 5), run(5, 9), strict=True)
    dx, dw = (np.concatenate([g[0] for g in gradients], axis=1), sum(g[1] for g in gradients))
    np.testing.assert_allclose(np.concatenate(y, axis=1), np.einsum("bti,io,btio->bto", x, w, m), atol=1e-5)
    np.testing.assert_allclose(dx, np.einsum("bto,io,btio->bti", dy, w, m), atol=1e-5)
    np.testing.assert_allclose(dw, np.einsum("bto,bti,btio->io", dy, x, m), atol=1e-5)


@needs_gradients
@pytest.mark.parametrize(
    ("sharing", "method"), [((), "auto"), ((), "materialized"), ("sample", "recomputed"), ("out", "auto")]
)
def test_products_and_gradients_are_those_of_the_mask(sharing, method):
    rng = np.random.default_rng(0)
    x, w, dy = (rng.normal(size=shape).astype("float32") for shape in ((3, 6, 4), (4, 5), (3, 6, 5)))
    m = chain(BERNOULLI, (3, 6, 4, 5), 0.6, sharing)

    def product(x, w):
        return pnd.ops.masked_dense(x, w, BERNOULLI, KEY, sharing=sharing, persistence=0.6, method=method)

    y, gradients = value_and_gradients(product, x, w, upstream=dy)
    subscripts = {"bti,io,btio->bto": (x, w, m), "bto,io,btio->bti": (dy, w, m), "bto,bti,btio->io": (dy, x, m)}
    for got, (sums, operands) in zip((y, *gradients), subscripts.items(), strict=True):
        np.testing.assert_allclose(got, np.einsum(sums, *operands), atol=1e-5)


@pytest.mark.parametrize("sharing", [None, "sample", "in", "out"])
@pytest.mark.parametrize("method", ["auto", "materialized", "recomputed"])
def test_without_positions_samples_have_the_masks_of_one_position(sharing, method):
    x, w = (tensor(np.random.default_rng(0).normal(size=size).astype("float32")) for size in ((4, 5), (5, 6)))
    given = {"persistence": 0.5, "sharing": sharing, "method": method}
    y = array(pnd.ops.masked_dense(x, w, BERNOULLI, KEY, **given))
    wanted = np.einsum("bi,bio->bo", array(x), mask(BERNOULLI, (4, 1, 5, 6), 0.5, sharing=sharing)[:, 0] * array(w))
    np.testing.assert_allclose(y, wanted, atol=1e-5)


def test_a_kernel_of_every_position_is_masked_as_products_are():
    w = np.ones((2, 6, 3, 4), "float32")
    m = array(pnd.ops.masked(tensor(w), BERNOULLI, KEY, sharing="sample", persistence=0.8))
    np.testing.assert_array_equal(m, chain(BERNOULLI, w.shape, 0.8, "sample"))


@pytest.mark.slow
def test_compiled_it_is_the_same_and_takes_another_persistence():
    x, w = np.ones((2, 7, 3), "float32"), np.eye(3, dtype="float32")
    m = chain(BERNOULLI, (2, 7, 3, 3), 0.5)
    once = compiled(lambda x, w: pnd.ops.masked_dense(x, w, BERNOULLI, KEY, persistence=0.5))
    np.testing.assert_allclose(array(once(tensor(x), tensor(w))), np.diagonal(m, axis1=2, axis2=3), rtol=1e-6)
    part = compiled(lambda x, w: pnd.ops.masked_dense(x, w, BERNOULLI, KEY, persistence=0.5, time_offset=4))
    y = array(part(tensor(x[:, 4:]), tensor(w)))
    np.testing.assert_allclose(y, np.diagonal(m, axis1=2, axis2=3)[:, 4:], rtol=1e-6)
    run = compiled(
        lambda x, w, threshold, persistence: pnd.ops.masked_dense(
            x, w, BERNOULLI, KEY, persistence=0.5, params={"threshold": threshold, "persistence": persistence}
        )
    )
    for persistence in (0.25, 1.0):
        numbers = pnd.Mask(BERNOULLI, persistence=persistence).params()
        y = array(run(tensor(x), tensor(w), *(tensor(numbers[name]) for name in ("threshold", "persistence"))))
        m = chain(BERNOULLI, (2, 7, 3, 3), persistence)
        np.testing.assert_allclose(y, np.diagonal(m, axis1=2, axis2=3), rtol=1e-6)


# the distribution: a renewal with probability 1 - p, an entry of the noise at each


@pytest.mark.once
@pytest.mark.parametrize("persistence", [0.0, 0.5, 0.9])
def test_each_position_has_the_distribution_of_the_noise(persistence):
    m = mask_of_numpy(BERNOULLI, (100, 400, 5, 5), persistence)
    kept = (m != 0).mean(axis=(0, 2, 3))  # of 2,500 chains, which are independent
    z = (kept - 0.6) / np.sqrt(0.24 / 2500)
    assert abs(z).max() < 6.5  # P(|z| > 6.5) = 8e-11, of 400 positions


@pytest.mark.once
@pytest.mark.parametrize("persistence", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("noise", [BERNOULLI, GAUSSIAN], ids=["bernoulli", "gaussian"])
def test_correlations_fall_as_powers_of_the_persistence(noise, persistence):
    m = mask_of_numpy(noise, (200, 60, 5, 5), persistence).transpose(1, 0, 2, 3).reshape(60, -1)
    deviation = (m - 1) / np.sqrt(noise.variance)
    for lag in (1, 2, 5, 20):
        of_chains = (deviation[lag:] * deviation[:-lag]).mean(axis=0)  # one number a chain, of 5,000
        error = of_chains.std() / np.sqrt(len(of_chains))
        assert abs(of_chains.mean() - persistence**lag) < 6.5 * error


@pytest.mark.once
def test_runs_have_geometric_lengths():
    m = mask_of_numpy(GAUSSIAN, (100, 200, 5, 5), 0.8)  # two equal normal numbers are one entry
    renewed = m[:, 1:] != m[:, :-1]
    after = renewed[:, :-11].astype(bool)
    n, alive = after.sum(), after
    for length in range(1, 11):  # how many runs that begin are that long at least: p ** (length - 1)
        expected = 0.8 ** (length - 1)
        assert abs(alive.sum() / n - expected) <= 6.5 * np.sqrt(expected * (1 - expected) / n)
        alive = alive & ~renewed[:, length : length + after.shape[1]]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"persistence": 1.5}, r"`persistence`. Expected a float in \[0, 1\].*1.5"),
        ({"persistence": "slow"}, r"`persistence`. Expected a float in \[0, 1\].*'slow'"),
        ({"persistence": 0.5, "sharing": "time"}, r"`sharing`. Expected one without 'time' beside `persistence`"),
        ({"persistence": 0.5, "method": "kernel"}, r"`method`. Expected another one than \"kernel\""),
        ({"persistence": 0.5, "method": "local_reparameterization"}, r"`method`. Expected another method"),
    ],
)
def test_what_cannot_persist_is_refused(kwargs, words):
    x, w = tensor(np.ones((2, 6, 3), "float32")), tensor(np.ones((3, 4), "float32"))
    with pytest.raises((TypeError, ValueError), match=words):
        pnd.ops.masked_dense(x, w, GAUSSIAN, KEY, **kwargs)
