"""The Triton kernels, in Triton's interpreter: NumPy's mask to the bit, the product and its gradients."""

import collections
import importlib.util
import itertools

import numpy as np
import pytest

import pernodedrop as pnd
from tests import reference
from tests.processes import child
from tests.products import FAR, KEY, bits_of, einsums

pytestmark = [
    pytest.mark.slow,
    pytest.mark.only_backend("torch", reason="the Triton kernels are torch's"),
    pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed"),
]

COORDINATES = ("time", "sample", "in", "out")
SHAPE = 5, 9, 7
SHAPES = [(1, 1, 1), SHAPE, (33, 3, 65), (37, 2, 5), (2, 67, 3), (3, 5, 131)]
RATES = [0.0, 2**-24, 0.4, 1 - 2**-24]
HALVES = ["float16", "bfloat16"]
TILES = [(2, 4, 8), (8, 64, 16)]  # rows, inputs, outputs
SHARED = {  # rows, positions, inputs, outputs
    "positions": (3, 5, 9, 7),
    "positions beyond a tile": (2, 70, 40, 70),
    "of one input": (3, 2, 1, 1),
}
PLACES = {
    "shared": {"time": [0], "sample": [9], "in": [2], "out": [0]},
    "samples near the end": {"sample": FAR + np.arange(5)},
    "inputs near the end": {"in": FAR + np.arange(9)},
    "outputs near the end": {"out": FAR + np.arange(7)},
    "times and samples": {"shape": (17, 3, 5), "time": np.arange(17) % 5, "sample": 2**31 + np.arange(17) // 3},
    "permuted": {"sample": [3, 1, 4, 1, 5], "in": np.arange(9)[::-1], "out": [5, 0, 6, 2, 2, 1, 4]},
    "no small word in the key": {"seed": [2**32 - 1], "call": [2**31]},
}


def case(shape=SHAPE, rate=0.4, order="C", tiles=None, **coordinates):
    """The arguments of a product of random operands."""
    rows, inputs, outputs = shape
    rng = np.random.default_rng(0)
    sizes = {"x": (rows, inputs), "w": (inputs, outputs), "dy": (rows, outputs)}
    arrays = {name: np.asarray(rng.normal(size=size), "float32", order=order) for name, size in sizes.items()}
    plain = {"time": [0], "sample": range(rows), "in": range(inputs), "out": range(outputs)}
    words = {"seed": [KEY[0]], "call": [KEY[1]], **plain, **coordinates}
    arrays |= {name: np.array([int(n) % 2**32 for n in numbers], "uint32") for name, numbers in words.items()}
    arrays["threshold"] = np.array(pnd.Bernoulli(rate).threshold, "int32")
    return arrays if tiles is None else {**arrays, "tiles": np.array(tiles)}


def shared_case(shape, order="C", dtype="float32", **kwargs):
    """The same where positions share a mask, of operands that the dtype has."""
    rows, positions, inputs, outputs = shape
    arrays = case((rows, inputs, outputs), **kwargs)
    rng = np.random.default_rng(0)
    sizes = {"x": (rows, positions, inputs), "w": (inputs, outputs), "dy": (rows, positions, outputs)}
    for name, size in sizes.items():
        array = rng.normal(size=size)
        if dtype != "float32":
            array = np.round(array * 2**6) / 2**6  # at most 8 bits
        arrays[name] = np.asarray(array.clip(-3.5, 3.5), "float32", order=order)
    return {**arrays, "dtype": np.array(dtype)}


def probe(of, tiles=None):
    """A product whose `of` shows the mask of 2 samples, 5 inputs and 7 outputs itself: one term a sum, of ones."""
    shown, hidden = {"y": (5, "x"), "dx": (7, "dy")}.get(of, (1, ""))
    arrays = case((2 * shown, 5, 7), rate=0.75, tiles=tiles, sample=np.repeat(np.arange(2), shown))
    ones = {name: np.ones_like(arrays[name]) for name in ("x", "w", "dy")}
    if hidden:
        ones[hidden] = np.tile(np.eye(shown, dtype="float32"), (2, 1))
    else:
        ones["x"][0] = 0  # dw is the mask of the last row
    return {**arrays, **ones}


def at_the_edge(rate):
    """Two outputs whose words are the last that is kept and the next."""
    last = pnd.Bernoulli(rate).threshold * 2**8 - 1
    outs = [out_of_word(word % 2**32, *reference.row_key(*KEY, 0, 0, 0, 0)) for word in (last, last + 1)]
    return case((1, 1, 2), rate=rate, out=outs)


def out_of_word(word, k0, k1):
    """The out coordinate at which a row has this word: triple32 backwards."""

    def unshift(x, n):
        result = x
        for _ in range(32 // n):
            result = x ^ result >> n
        return result

    x = unshift(word, 14) * pow(0x31848BAB, -1, 2**32) % 2**32
    x = unshift(x, 15) * pow(0xAC4C1B51, -1, 2**32) % 2**32
    x = unshift(x ^ k1, 11) * pow(0xED5AD4BB, -1, 2**32) % 2**32
    return unshift(x, 17) ^ k0


CASES = {
    **{f"shape {shape}": case(shape) for shape in SHAPES},
    **{f"rate {rate}": case(rate=rate) for rate in RATES if rate != 0.4},  # which all others have
    **{f"edge {rate}": at_the_edge(rate) for rate in RATES},
    **{f"at {name}": case(**words) for name, words in PLACES.items()},
    **{f"tiles {tiles}": case((5, 7, 11), tiles=tiles) for tiles in TILES},
    **{f"{of} in tiles {tiles}": probe(of, tiles) for of in ("y", "dx", "dw") for tiles in [None, *TILES]},
    "columns first": case(order="F"),
    "again": case(),
}
KEPT = [
    *(f"shape {shape}" for shape in (SHAPE, (33, 3, 65), (3, 5, 131))),
    *("rate 0.0", "tiles (8, 64, 16)", "columns first", "again"),
    *(f"{of} in tiles {tiles}" for of in ("y", "dx", "dw") for tiles in (None, *TILES)),
]
"""Those whose decisions are kept as well."""

SHARED_CASES = {
    **{name: shared_case(shape) for name, shape in SHARED.items()},
    "positions at rate 0": shared_case((2, 3, 5, 4), rate=0.0),
    "positions near the end": shared_case(
        (5, 2, 9, 7), sample=FAR + np.arange(5), time=range(5), out=FAR + np.arange(7), **{"in": FAR + np.arange(9)}
    ),
    "positions in small tiles": shared_case((2, 20, 20, 35), tiles=(16, 16, 32)),
    "positions, columns first": shared_case((3, 5, 9, 7), order="F"),
    **{f"positions in {dtype}": shared_case((3, 37, 40, 35), dtype=dtype) for dtype in HALVES},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the kernels make of all cases: by case, a dict of y, dx, dw and what else there is."""
    folder = tmp_path_factory.mktemp("triton")
    cases = {**CASES, **{name: {**CASES[name], "kept": np.array(True)} for name in KEPT}, **SHARED_CASES}
    arrays = {f"{name}/{argument}": a for name, arguments in cases.items() for argument, a in arguments.items()}
    np.savez(folder / "cases.npz", **arrays)
    child("triton_products.py", folder / "cases.npz", folder / "results.npz", TRITON_INTERPRET="1")
    with np.load(folder / "results.npz") as found:
        made = collections.defaultdict(dict)
        for name, array in found.items():
            case, _, of = name.rpartition("/")
            made[case][of] = array
    return made


def mask_of(arguments):
    """The mask of a case as (rows, in, out), from the generator in Python's own integers."""
    rows, inputs, outputs = len(arguments["x"]), *arguments["w"].shape
    sizes = {"time": rows, "sample": rows, "in": inputs, "out": outputs}
    time, sample, in_, out = (np.broadcast_to(arguments[name], size).tolist() for name, size in sizes.items())
    key = int(arguments["seed"][0]), int(arguments["call"][0]), 0
    entries = ((t, s, i, o) for (t, s), i, o in itertools.product(zip(time, sample, strict=True), in_, out))
    words = np.array([reference.word(*key, *entry) for entry in entries], "uint32")
    threshold = arguments["threshold"]
    kept = (words >> np.uint32(8)) < threshold
    return (kept * (np.float32(2**24) / threshold.astype("float32"))).reshape(rows, inputs, outputs)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        (name, kept)
        for kept, names in {"": CASES, "kept ": KEPT}.items()
        for name in names
        if not name.startswith(("y ", "dx ", "dw "))
    ],
)
def test_product_and_gradients_agree_with_float64_sums_over_the_mask(results, name, kept):
    """Relative to the sums of absolute terms, with which errors of rounding grow."""
    x, w, dy = (CASES[name][operand].astype("float64") for operand in ("x", "w", "dy"))
    mask = mask_of(CASES[name])[:, None].astype("float64")
    sizes = einsums(abs(x), abs(w), abs(dy), mask)
    for of, wanted, size in zip(("y", "dx", "dw"), einsums(x, w, dy, mask), sizes, strict=True):
        got = results[name][kept + of]
        assert got.dtype == "float32"
        assert got.shape == wanted.shape
        assert (abs(got - wanted) <= 1e-6 * size).all()


@pytest.mark.parametrize("name", SHARED_CASES)
def test_where_positions_share_a_mask_products_agree_with_float64_sums_over_it(results, name):
    """In halves they are those sums rounded once, which for bfloat16 the interpreter does towards 0."""
    arguments = SHARED_CASES[name]
    x, w, dy = (arguments[operand].astype("float64") for operand in ("x", "w", "dy"))
    mask = mask_of(arguments)[:, None].astype("float64")
    mask = np.broadcast_to(mask, (len(x), x.shape[1], *mask.shape[2:]))
    sizes = einsums(abs(x), abs(w), abs(dy), mask)
    rounded = {"float32": 0, "float16": 2**-11, "bfloat16": 2**-7}[str(arguments["dtype"])]
    for of, wanted, size in zip(("y", "dx", "dw"), einsums(x, w, dy, mask), sizes, strict=True):
        assert results[name][of].shape == wanted.shape
        assert (abs(results[name][of] - wanted) <= 1e-6 * size + rounded * abs(wanted)).all()


@pytest.mark.parametrize("name", KEPT)
def test_decisions_are_kept_to_the_bit_as_the_kernels_on_a_cpu_keep_them(results, name):
    mask = mask_of(CASES[name])
    np.testing.assert_array_equal(bits_of(results[name]["bits"], mask.shape), mask != 0)


@pytest.mark.parametrize("tiles", [None, *TILES])
@pytest.mark.parametrize("of", ["y", "dx", "dw"])
@pytest.mark.parametrize("kept", ["", "kept "])
def test_the_mask_is_numpys_to_the_bit_in_any_tiles(results, of, tiles, kept):
    mask = pnd.ops.sample_mask(pnd.Bernoulli(0.75), KEY, (2, 5, 7), backend="numpy")
    shown = {"y": mask.reshape(10, 7), "dx": mask.transpose(0, 2, 1).reshape(14, 5), "dw": mask[1]}[of]
    np.testing.assert_array_equal(results[f"{of} in tiles {tiles}"][kept + of], shown)


def test_the_mask_of_the_other_tests_is_numpys():
    """They take it at coordinates that `sample_mask` does not reach."""
    for rate in RATES:
        mask = pnd.ops.sample_mask(pnd.Bernoulli(rate), KEY, SHAPE, backend="numpy")
        np.testing.assert_array_equal(mask_of(case(rate=rate)), mask)
    far = pnd.ops.sample_mask(pnd.Bernoulli(0.4), KEY, SHAPE, sample_offset=FAR, backend="numpy")
    np.testing.assert_array_equal(mask_of(CASES["at samples near the end"]), far)


@pytest.mark.parametrize("rate", RATES)
def test_the_edge_of_the_threshold_is_a_single_word(results, rate):
    """A word of the last level is kept and the next is not; at rate 0 the next is word 0, kept as all are."""
    kept = results[f"edge {rate}"]["y"] != 0
    assert kept.tolist() == [[True, rate == 0]]


def test_two_runs_are_equal_to_the_bit(results):
    for of in ("y", "dx", "dw", "kept y", "kept dx", "kept dw"):
        np.testing.assert_array_equal(results[f"shape {SHAPE}"][of], results["again"][of])


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_for_a_gpu_that_is_not_there(capability, tmp_path):
    """What a lane holds fits its registers, and no sum depends on the order in which programs end."""
    seen = child("triton_compile.py", capability, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    rows = ("_y_kernel", "_y_kernel keeping", "_dx_kernel", "_dw_kernel", "_kept_dx_kernel", "_kept_dw_kernel")
    shared = [f"{name} {dtype}" for name in ("_y_kernel", "_dx_kernel", "_dw_kernel") for dtype in ("fp32", "bf16")]
    assert set(seen) == {*shared, *((*rows, "_words_kernel") if capability == 90 else ())}
    assert all(code["spills"] == code["atomics"] == 0 for code in seen.values())
