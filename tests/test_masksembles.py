"""Masksembles: the masks against their exact distribution, and which sample has which."""

import collections
import fractions
import itertools
import math

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop import uncertainty
from pernodedrop.layers.activation.masksembles import Masksembles
from pernodedrop.members import draw_masks, log_ways, ones_of
from tests.frameworks import needs_training
from tests.reference import word

BACKEND = keras.backend.backend()
KNOWN = [[0, 1, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1], [1, 0, 1, 0, 0, 1, 1, 1, 1, 1, 1, 0]]
"""Masks of seed 1, for 2 members, scale 2 and 12 channels."""


def host(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def ones_of_the_authors(members, channels, scale):
    """Their number, from https://github.com/nikitadurasov/masksembles and torch-uncertainty, in exact numbers."""
    scale = fractions.Fraction(scale)
    return math.floor(channels / (scale * (1 - (1 - 1 / scale) ** members)))


def test_the_number_of_ones_is_rounded_as_the_authors_round_it():
    """Where it lets masks cover all channels. Of these settings the nearest number is another in many."""
    settings = list(itertools.product((2, 4, 8), (10, 12, 16, 30, 64, 100), (1.5, 2.0, 3.0, 4.0, 6.0)))
    differs = 0
    for members, channels, scale in settings:
        theirs, least = ones_of_the_authors(members, channels, scale), -(-channels // members)
        assert ones_of(members, channels, scale) == max(theirs, least)
        nearest = ones_of(members, channels, scale, "nearest")
        assert nearest in (max(theirs, least), max(theirs + 1, least))
        differs += nearest != max(theirs, least)
    assert (len(settings), differs) == (90, 41)
    assert [ones_of(4, 16, 2.0, rounding) for rounding in ("down", "nearest")] == [8, 9]


def test_rounding_is_saved_and_refused_by_name():
    layer = Masksembles(rounding="nearest", seed=1)
    layer(inputs(2, 16)), (again := Masksembles.from_config(layer.get_config()))(inputs(2, 16))
    assert set(host(layer.masks).sum(axis=1)) == {9}
    np.testing.assert_array_equal(host(layer.masks), host(again.masks))
    with pytest.raises(ValueError, match=r"`rounding`.*'down', 'nearest'"):
        Masksembles(rounding="up")


def masks_of(members, scale, channels, seed=1):
    return draw_masks(members, channels, ones_of(members, channels, scale), seed)


def overlap(masks):
    """Mean intersection over union of the pairs of masks."""
    pairs = list(itertools.combinations(masks.astype(bool), 2))
    return np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs])


def ways(members, channels, ones, free):
    """The number of `members` masks that cover `free` given ones of all channels, by inclusion and exclusion."""
    return sum((-1) ** k * math.comb(free, k) * math.comb(channels - k, ones) ** members for k in range(free + 1))


def overlaps(members, channels, ones):
    """{intersection of the first two masks: probability}, as exact fractions."""
    counts = {}
    for both in range(max(0, 2 * ones - channels), ones + 1):
        pairs = math.comb(channels, ones) * math.comb(ones, both) * math.comb(channels - ones, ones - both)
        counts[both] = pairs * ways(members - 2, channels, ones, channels - 2 * ones + both)
    total = sum(counts.values())
    assert total == ways(members, channels, ones, channels)
    return {both: fractions.Fraction(count, total) for both, count in counts.items()}


def expected_overlap(members, channels, ones):
    return float(sum(p * fractions.Fraction(n, 2 * ones - n) for n, p in overlaps(members, channels, ones).items()))


@pytest.mark.once
@pytest.mark.parametrize("channels", [*range(1, 60), 64, 97, 128, 236, 1000])
def test_masks_for_any_number_of_channels_cover_each_and_have_equally_many_ones(channels):
    for members, scale in ((4, 2.0), (1, 3.0), (2, 5.0), (7, 1.3), (5, 1e9), (3, 1.0)):
        masks = masks_of(members, scale, channels)
        kept = 1 / (scale * (1 - (1 - 1 / scale) ** members)) if scale < 1e8 else 1 / members
        assert set(np.unique(masks)) <= {0.0, 1.0}
        assert masks.any(axis=0).all()
        (ones,) = set(masks.sum(axis=1))
        assert ones == math.ceil(channels / members) or ones <= channels * kept + 1e-6
        assert ones >= channels * kept - 1


def test_masks_of_scale_1_are_ones():
    assert (masks_of(4, 1.0, 30) == 1).all()
    x = inputs(3, 5)
    np.testing.assert_array_equal(host(Masksembles(scale=1)(x, training=True)), x)


@pytest.mark.slow
@pytest.mark.once
def test_every_choice_of_masks_is_equally_probable():
    """Chi-square over the 114 choices of 3 masks with 2 of 4 channels; false-alarm rate 1e-6, with fixed seeds."""
    from scipy import stats

    choices = list(itertools.combinations(range(4), 2))
    covers = [c for c in itertools.product(choices, repeat=3) if set(itertools.chain(*c)) == set(range(4))]
    assert len(covers) == ways(3, 4, 2, 4) == 114
    drawn = 40 * len(covers)
    found = collections.Counter(
        tuple(tuple(np.flatnonzero(mask)) for mask in draw_masks(3, 4, 2, seed)) for seed in range(drawn)
    )
    assert set(found) <= set(covers)
    statistic = sum((found[cover] - 40) ** 2 / 40 for cover in covers)
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], len(covers) - 1)
    assert low < statistic < high


@pytest.mark.parametrize(
    ("members", "channels", "ones"), [(4, 64, 34), (8, 100, 21), (3, 20, 8), (2, 16, 9), (5, 7, 7)]
)
def test_ways_of_completing_the_masks_are_counted_exactly(members, channels, ones):
    """Against integers, by inclusion and exclusion, to a constant factor for each mask."""
    choices, completions = log_ways(members, channels, ones)
    np.testing.assert_allclose(choices, [math.log(math.comb(ones, j)) for j in range(ones + 1)], atol=1e-10)
    assert len(completions) == members
    for n, completion in enumerate(completions):
        differences = []
        for used in range(channels + 1):
            exact = ways(members - n - 1, channels, ones, channels - used)
            if not exact or not ones <= used <= (n + 1) * ones:
                assert completion[used] == -np.inf
            else:
                weight = math.log(math.factorial(channels - used)) + math.log(math.factorial(used - ones))
                differences.append(math.log(exact) - weight - completion[used])
        np.testing.assert_allclose(differences, differences[0], atol=1e-9)
        assert (completion[channels + 1 :] == -np.inf).all()


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize(
    ("channels", "members", "scale", "ones", "kept", "iou"),
    [(64, 4, 2.0, 34, 0.531, 0.321), (128, 4, 3.0, 53, 0.414, 0.202), (100, 8, 6.0, 21, 0.210, 0.089)],
)
def test_overlap_is_the_one_measured_on_the_authors_code_and_the_closed_form(channels, members, scale, ones, kept, iou):
    """Theirs was measured on some masks, expectations here are exact. The mean of 100 draws is within 6 of its standard
    deviations: false alarms below 1e-6, fixed seeds.
    """
    assert ones / channels == pytest.approx(kept, abs=0.0005)
    assert ones_of(members, channels, scale) == ones
    expected = expected_overlap(members, channels, ones)
    assert expected == pytest.approx(iou, abs=0.02)
    ours = expected_overlap(members, channels, ones_of(members, channels, scale))
    assert ours == pytest.approx(1 / (2 * scale - 1), abs=0.012)
    drawn = [overlap(draw_masks(members, channels, ones, seed)) for seed in range(100)]
    assert abs(np.mean(drawn) - expected) < 6 * np.std(drawn) / 10


@pytest.mark.parametrize(("channels", "members", "scale"), [(12, 4, 6.0), (16, 2, 5.0), (236, 4, 3.0)])
def test_masks_that_fail_or_take_long_in_the_authors_code_are_drawn_at_once(channels, members, scale):
    assert masks_of(members, scale, channels).any(axis=0).all()
    masks = draw_masks(members, channels, ones_of(members, channels, scale, "nearest"), 1)
    assert masks.any(axis=0).all()
    assert len(set(masks.sum(axis=1))) == 1
    expected = expected_overlap(members, channels, int(masks[0].sum()))
    assert expected == pytest.approx(1 / (2 * scale - 1), abs=0.03)


@pytest.mark.slow
@pytest.mark.once
def test_masks_of_very_many_channels_cover_each_and_overlap_by_the_distribution():
    """The code of the paper takes 25 s for 47236 channels. The overlap's standard deviation is below 0.002 here, by
    the hypergeometric distribution of two masks of so many ones: its distance is 6 of them at most; one fixed seed.
    """
    masks = masks_of(4, 2.0, 47236)
    assert masks.sum(axis=1).tolist() == [25192] * 4  # 47236 * 8 / 15 is 25192.5...
    assert masks.any(axis=0).all()
    assert abs(overlap(masks) - 1 / 3) < 0.012


def test_few_masks_of_many_channels_are_counted_exactly_where_terms_are_left_out():
    """The last mask but one has sums of up to 600 terms, of which some 100 count: against integers."""
    members, channels, ones = 4, 1100, 600
    _, completions = log_ways(members, channels, ones)
    differences = []
    for used in range(ones, channels + 1, 20):
        exact = ways(2, channels, ones, channels - used)
        weight = sum(math.lgamma(n + 1) for n in (channels - used, used - ones))
        differences.append(math.log(exact) - weight - completions[1][used])
    np.testing.assert_allclose(differences, differences[0], atol=1e-8)


def test_masks_are_the_same_on_every_backend_and_others_with_another_seed():
    layers = [Masksembles(members=2, scale=2.0, seed=seed) for seed in (1, 1, 2)]
    for layer in layers:
        layer.build((None, 12))
    one, same, other = (host(layer.masks) for layer in layers)
    np.testing.assert_array_equal(one, KNOWN)
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


@pytest.mark.parametrize(("axis", "shape"), [(-1, (6, 8)), (-1, (6, 3, 8)), (1, (6, 8, 3, 2)), (3, (6, 2, 3, 8))])
@pytest.mark.parametrize("train_assignment", ["random", "contiguous", "repeat"])
def test_samples_have_members_in_turn_at_inference_or_those_named(axis, shape, train_assignment):
    layer, x = Masksembles(4, 2.0, train_assignment, axis=axis, seed=1), inputs(*shape)
    layer.build(x.shape)
    masks = np.moveaxis(np.ones(shape) * 1.0, axis, -1)
    for member, kwargs in (
        ([0, 1, 2, 3, 0, 1], {}),
        ([2, 2, 3, 0, 1, 3], {"sample_ids": np.array([2, 6, 3, 0, 2**32 + 1, 7])}),
        ([2, 2, 3, 0, 1, 3], {"sample_ids": np.array([2, 6, 3, 0, 2**32 + 1, 7]), "training": True}),
    ):
        rows = host(layer.masks)[member].reshape(6, *[1] * (len(shape) - 2), 8)
        expected = x * np.moveaxis(masks * rows, -1, axis)
        np.testing.assert_array_equal(host(layer(x, **kwargs)), expected)


def test_training_assignments_are_the_documented_ones():
    x = np.ones((7, 16), "float32")
    for train_assignment, member in (("contiguous", [0, 0, 1, 1, 2, 2, 3]), ("repeat", [0, 1, 2, 3, 0, 1, 2])):
        layer = Masksembles(4, 2.0, train_assignment, seed=1)
        layer.build(x.shape)
        np.testing.assert_array_equal(host(layer(x, training=True)), host(layer.masks)[member])
        assert layer.updates == 0


def test_random_assignment_is_that_of_the_words_of_the_key():
    layer, x = Masksembles(3, 2.0, seed=7), np.ones((40, 16), "float32")
    layer.build(x.shape)

    def members(seed, call):
        return [int(((word(seed, call, 0, 0, sample, 0, 0) >> 9) + 0.5) / 2**23 * 3) for sample in range(40)]

    for call in range(2):
        member = members(7, call)
        assert len(set(member)) == 3
        np.testing.assert_array_equal(host(layer(x, training=True)), host(layer.masks)[member])
    assert layer.updates == 2
    np.testing.assert_array_equal(host(layer(x, training=True, key=(5, 9))), host(layer.masks)[members(5, 9)])
    assert layer.updates == 2


def test_bank_regime_of_per_node_drop_contains_masksembles():
    """A bank whose masks are shared over the outputs is Masksembles with the bank's masks before the inner layer."""
    bank = pnd.PerNodeDense(5, rate=0.5, regime="bank", sharing={"out", "time"}, bank_size=3, seed=4)
    layer, x = Masksembles(3, 2.0, train_assignment="repeat", seed=1), inputs(8, 6)
    bank.build(x.shape)
    layer.build(x.shape)
    masks = pnd.ops.sample_mask(pnd.Bernoulli(0.5), (4, 0), (3, 6, 1), backend="numpy")[:, :, 0]
    layer.masks.assign(masks)
    for kwargs in ({}, {"training": True}, {"sample_ids": np.array([5, 0, 1, 1, 2, 7, 3, 4])}):
        expected = host(bank(x, **kwargs))
        np.testing.assert_allclose(host(bank.layer(layer(x, **kwargs))), expected, atol=1e-5)
    assert np.abs(expected - host(bank.layer(x))).max() > 0.1


def test_repeated_samples_go_through_all_members():
    layer, x, y = Masksembles(3, 2.0, "repeat", seed=1), inputs(2, 8), np.array([5, 6])
    many, labels = layer.repeated((x, y))
    assert labels.tolist() == [5, 5, 5, 6, 6, 6]
    out = host(layer(many)).reshape(2, 3, 8)
    np.testing.assert_array_equal(out, x[:, None] * host(layer.masks))
    np.testing.assert_array_equal(host(layer(many, training=True)), host(layer(many)))
    np.testing.assert_array_equal(host(layer.repeated(keras.ops.convert_to_tensor(x))), many)


@needs_training
def test_uncertainty_averages_the_members():
    layer, x = Masksembles(3, 2.0, seed=1), inputs(4, 8)
    model = keras.Sequential([keras.Input((8,)), layer, keras.layers.Dense(2)])
    found = uncertainty.predict(model, x, keep=True, seed=1)
    assert found.samples == 3
    expected = [host(model.layers[1](x * mask)) for mask in host(layer.masks)]
    np.testing.assert_allclose(found.outputs, expected, atol=1e-5)


@needs_training
def test_fit_on_repeated_batches_trains_all_members():
    layer = Masksembles(3, 2.0, "repeat", seed=1)
    model = keras.Sequential([keras.Input((6,)), layer, keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.1), "mse", jit_compile=BACKEND == "jax")
    x = inputs(16, 6)
    batch = layer.repeated((x, x.sum(axis=1, keepdims=True)))
    losses = [float(host(model.train_on_batch(*batch))) for _ in range(150)]
    masked = np.concatenate([batch[0] * np.tile(host(layer.masks), (16, 1)), np.ones((48, 1))], axis=1)
    (squares,) = np.linalg.lstsq(masked, batch[1][:, 0])[1]
    assert losses[-1] == pytest.approx(squares / 48, rel=0.01)  # the least that one kernel can have with all members


def test_masks_are_saved_with_the_model(tmp_path):
    model = keras.Sequential([keras.Input((12,)), Masksembles(seed=None)])
    model.layers[0].masks.assign(np.arange(48).reshape(4, 12))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(host(again.layers[0].masks), np.arange(48).reshape(4, 12))


def test_fold_is_refused():
    layer = Masksembles(seed=1)
    layer.build((None, 6))
    with pytest.raises(ValueError, match=r"`members`.*one function at inference"):
        layer.fold()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Masksembles(members=0), r"`members`.*int from 1"),
        (lambda: Masksembles(members=2.0), r"`members`.*int from 1"),
        (lambda: Masksembles(scale=0.9), r"`scale`.*from 1.*0.9"),
        (lambda: Masksembles(scale=float("inf")), r"`scale`.*from 1"),
        (lambda: Masksembles(train_assignment="randm"), r"`train_assignment`.*did you mean 'random'"),
        (lambda: Masksembles(axis=0), r"`axis`.*not 0"),
        (lambda: Masksembles(axis=2).build((None, 6)), r"`axis`.*known size"),
        (lambda: Masksembles(axis=-2).build((None, 6)), r"`axis`.*from 1"),
        (lambda: Masksembles().build((None, None)), r"`axis`.*known size"),
        (lambda: Masksembles()(np.ones((2, 3), "int32")), r"`inputs`.*floating"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()
