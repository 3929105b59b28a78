"""The generator: its words are the same everywhere, for ever, and unrelated to each other."""

import hashlib
import importlib.util
import json
import math
import pathlib
import shutil
import subprocess

import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop import generator
from tests import known_answers, reference
from tests.frameworks import XP, compiled, quick

ANSWERS = json.loads(known_answers.PATH.read_text())
EDGES = (0, 1, 2, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)
NAMES = ("seed", "call", "lane", "time", "sample", "in", "out")


def words_of(run, coordinates):
    """Words of the backend under test at seven host coordinates that broadcast, as uint32."""
    tensors = [XP.as_word(XP.asarray(np.array(c, "uint32"))) for c in coordinates]
    return XP.to_numpy(run(*tensors)).view("uint32")


def generate(seed, call, *rest):
    return generator.words((seed, call), *rest, XP)


quickly = quick(generate)


def deviation(n, trials, false_alarm=1e-9):
    """How far the mean of n numbers in [0, 1] strays in any of so many trials, at that false alarm (Hoeffding)."""
    return math.sqrt(math.log(2 * trials / false_alarm) / (2 * n))


def test_words_equal_the_reference_at_near_and_far_coordinates():
    rng = np.random.default_rng(0)
    random = rng.integers(0, 2**32, (64, 7))
    near = rng.integers(0, 64, (64, 7))
    edges = rng.choice(EDGES, (64, 7))
    coordinates = np.concatenate([random, near, edges])
    np.testing.assert_array_equal(words_of(quickly, coordinates.T), reference.words(coordinates))


@pytest.mark.parametrize("sample_offset", [0, 2**31 - 1, 2**32 - 2])
@pytest.mark.parametrize("key", [(0, 0), (1, 2**32 - 1), (2**32 - 1, 3)], ids=str)
@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 2, 3, 5)], ids=str)
def test_random_bits_equal_the_reference(shape, key, sample_offset):
    bits = pnd.ops.random_bits(key, shape, sample_offset=sample_offset)
    assert isinstance(bits, np.ndarray)
    assert bits.dtype == "uint32"
    np.testing.assert_array_equal(bits, reference.bits(*key, shape, sample_offset))


def test_a_seed_of_32_bits_is_itself_and_any_other_has_a_digest():
    assert [generator.seed_word(seed) for seed in EDGES] == list(EDGES)
    seeds = [*range(-500, 500), *(2**32 + n for n in range(500)), *(s * 10**n for n in range(10, 200) for s in (-1, 1))]
    digests = {generator.seed_word(seed) for seed in seeds}
    assert all(0 <= digest < 2**32 for digest in digests)
    assert len(digests) == len(set(seeds))
    assert generator.seed_word(np.int64(-3)) == generator.seed_word(-3)


@pytest.mark.parametrize("seed", [-1, 2**32, -(10**30)])
def test_a_seed_beyond_32_bits_gives_the_words_of_its_digest(seed):
    bits = pnd.ops.random_bits((seed, 5), (4, 3, 5))
    np.testing.assert_array_equal(bits, reference.bits(generator.seed_word(seed), 5, (4, 3, 5)))


SIBLINGS = {(1, 0): 3175587914, (1, 1): 2805692202, (1, 12): 1701173391, (-5, 0): 2886609303, (2**40, 0): 800969343}


@pytest.mark.parametrize(("seed", "number"), SIBLINGS)
def test_the_seed_of_a_sibling_is_a_digest_of_both_numbers(seed, number):
    """BLAKE2s of "seed/number", 4 bytes, the lowest first; the numbers above stay as they are for ever."""
    digest = hashlib.blake2s(b"%d/%d" % (seed, number), digest_size=4).digest()
    assert (
        generator.sibling_seed(seed, number) == SIBLINGS[seed, number] == sum(b << 8 * n for n, b in enumerate(digest))
    )


def test_known_words():
    table = ANSWERS["words at seed call lane time sample in out"]
    coordinates = [list(map(int, row.split())) for row in table]
    coordinates = [(generator.seed_word(seed), *rest) for seed, *rest in coordinates]
    assert words_of(quickly, np.array(coordinates).T).tolist() == list(table.values())


@pytest.mark.parametrize("answer", ANSWERS["arrays"], ids=lambda answer: str(answer["shape"]))
def test_known_arrays(answer):
    bits = pnd.ops.random_bits(tuple(answer["key"]), answer["shape"], sample_offset=answer["sample_offset"])
    assert known_answers.digest(bits) == answer["sha256"]


def test_known_answers_are_those_of_the_script():
    assert json.loads(json.dumps(known_answers.answers())) == ANSWERS


def test_words_are_the_same_whole_and_in_blocks_eager_and_compiled():
    sample, in_, out = np.arange(4)[:, None, None], np.arange(12)[:, None], np.arange(10)
    whole = words_of(generate, (1, 2, 0, 0, sample, in_, out))
    np.testing.assert_array_equal(words_of(compiled(generate), (1, 2, 0, 0, sample, in_, out)), whole)
    for rows, columns in ((slice(0, 6), slice(5, 10)), (slice(6, 12), slice(0, 5))):
        block = words_of(quickly, (1, 2, 0, 0, sample, in_[rows], out[columns]))
        np.testing.assert_array_equal(block, whole[:, rows, columns])


def test_no_two_rows_of_nearby_coordinates_are_alike():
    """Two of 2**15 rows of 96 random bits are alike by chance with probability 2**-67."""
    few = np.arange(8)
    seed, call, lane, time, sample, in_ = np.meshgrid(few, few, few[:2], few[:4], few, few, indexing="ij")
    rows = np.stack([words_of(quickly, (seed, call, lane, time, sample, in_, out)).ravel() for out in range(3)])
    assert len(np.unique(rows.T.copy().view("V12"))) == rows.shape[1] == 2**15


BASE = {"seed": 7, "call": 3, "lane": 0, "time": 1, "sample": 5, "in": 9, "out": 4}
NEIGHBOURS = {
    "next seed": {"seed": 8},
    "next call": {"call": 4},
    "next seed, call before": {"seed": 8, "call": 2},
    "seed and call swapped": {"seed": 3, "call": 7},
    "next lane": {"lane": 1},
    "next time": {"time": 2},
    "next sample": {"sample": 6},
    "next sample, call before": {"sample": 6, "call": 2},
    "next in": {"in": 10},
    "next in, sample before": {"in": 10, "sample": 4},
    "in and sample swapped": {"in": 5, "sample": 9},
    "next out": {"out": 5},
    "in and out swapped": {"in": 4, "out": 9},
    "lane and time swapped": {"lane": 1, "time": 0},
}


@pytest.mark.parametrize("change", NEIGHBOURS.values(), ids=NEIGHBOURS)
def test_neighbouring_streams_are_unrelated(change):
    """Each of the 1024 pairs of bits, and the masks at rate 0.3: false alarm 1e-9 in all streams together."""
    free = [name for name in ("out", "in", "sample", "time") if name not in change][:2]
    first, second = dict(BASE), {**BASE, **change}
    for name, values in zip(free, (np.arange(256), np.arange(128)[:, None]), strict=True):
        first[name] = second[name] = values
    a, b = (words_of(quickly, stream.values()).ravel() for stream in (first, second))
    assert not (a.reshape(128, 256) == b.reshape(128, 256)).all(axis=1).any()
    bound = deviation(a.size, trials=1025 * len(NEIGHBOURS))
    bits = [np.unpackbits(words.view("uint8").reshape(-1, 4), axis=1).astype("float32") * 2 - 1 for words in (a, b)]
    correlations = bits[0].T @ bits[1] / a.size
    assert abs(correlations).max() / 2 < bound
    kept = [(words >> 8) < round(0.7 * 2**24) for words in (a, b)]
    assert abs((kept[0] & kept[1]).mean() - 0.49) < bound


@pytest.mark.parametrize("name", NAMES)
def test_flipping_any_bit_of_a_coordinate_flips_every_output_bit_half_the_time(name):
    """Over 8192 small coordinates; false alarm 1e-9 in all coordinates together."""
    n = 8192
    base = dict(zip(NAMES, np.random.default_rng(1).integers(0, 256, (7, n)), strict=True))
    flipped = {**base, name: base[name] ^ (1 << np.arange(32))[:, None]}
    same = {**base, name: base[name] ^ np.zeros((32, 1), int)}
    difference = words_of(quickly, flipped.values()) ^ words_of(quickly, same.values())
    frequencies = np.stack([(difference >> bit & 1).mean(axis=1) for bit in range(32)])
    assert abs(frequencies - 0.5).max() < deviation(n, trials=1024 * len(NAMES))


def test_bits_are_balanced_and_bernoulli_masks_have_their_rate():
    """False alarm 1e-9."""
    words = words_of(quickly, (11, 0, 0, 0, np.arange(256)[:, None], 0, np.arange(256))).ravel()
    bound = deviation(words.size, trials=33)
    assert abs(np.stack([(words >> bit & 1).mean() for bit in range(32)]) - 0.5).max() < bound
    assert abs(((words >> 8) < round(0.7 * 2**24)).mean() - 0.7) < bound


@pytest.mark.only_backend("torch", reason="torch alone has no uint32 arithmetic")
def test_torch_words_are_int32_with_the_same_bits():
    assert XP.dtype(XP.as_word(2**32 - 1)) == "int32"
    assert int(XP.as_word(2**32 - 1)[0]) == -1


GENERATOR = pathlib.Path(__file__).parent.parent / "benchmarks" / "generator"


@pytest.mark.once
@pytest.mark.skipif(not GENERATOR.exists(), reason="the batteries are in the checkout, not beside a wheel")
@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler here")
def test_what_batteries_read_fast_are_the_words_of_the_library(tmp_path):
    """Of the orders whose streams NumPy begins quickly; benchmarks/generator/run.py compares more of every one."""
    spec = importlib.util.spec_from_file_location("stream", GENERATOR / "stream.py")
    stream = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stream)
    subprocess.run(["cc", "-O1", GENERATOR / "words.c", "-o", tmp_path / "words"], check=True)
    for order, count in {"out": 70_000, "in": 70_000, "time": 1_100_000, "lane": 20_000}.items():
        command = [tmp_path / "words", order, "7", str(count)]
        words = np.frombuffer(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout, "uint32")
        chunks = stream.chunks(order, 7)
        expected = np.concatenate([next(chunks).reshape(-1) for _ in range(3)])
        np.testing.assert_array_equal(words, expected[:count])
