"""What the machine could do at best: memory, products, words of the generator; and which of them binds a case."""

import concurrent.futures
import time
import typing

import numpy as np

from pernodedrop.commands.bench import matrix
from pernodedrop.report.environment import cores

COPY_BYTES = 2**28
PRODUCT_SIZE = 2048
WORDS = 2**27  # of one thread
REPEATS = 5


class Limit(typing.NamedTuple):
    """The least time of a case.

    Attributes:
        seconds: how long the machine would take if it did nothing but what binds.
        binds: "memory", "products" or "words".
    """

    seconds: float
    binds: str


def of_case(case: matrix.Case, rates: dict[str, float | None]) -> Limit:
    """The least time that one step of a case could take.

    It reads x, w and dy once and writes y, dx and dw once for each pass that has them, multiplies and adds as often as
    the distribution asks for, and generates each word of the mask once in each pass. How a row does it does not matter,
    so rows of one distribution have one limit.

    Args:
        case: a `Case`.
        rates: what `measure` gives.
    """
    work = work_of(case)
    needs = {
        name: work[unit] / rate
        for name, unit in (("memory", "bytes"), ("products", "flops"), ("words", "words"))
        if (rate := rates[unit])
    }
    binds = max(needs, key=lambda name: needs[name])
    return Limit(needs[binds], binds)


def work_of(case: matrix.Case) -> dict[str, int]:
    """The bytes, floating operations and words of one step."""
    size = matrix.sizes(case.shape)
    batch, time, inputs, outputs = (size[name] for name in ("sample", "time", "in", "out"))
    rows, read = batch * time, case.listed or inputs  # of a sparse row only what it lists is read, and has a mask
    x, w, y = rows * read, inputs * outputs, rows * outputs
    used = min(rows * read, inputs) * outputs  # of w, whose other rows a sparse x does not ask for
    forward_only = matrix.PASSES.get(case.backend, 2) == 1 or case.mode.endswith(matrix.FORWARD)
    numbers = x + used + y if forward_only else 3 * x + 2 * used + w + 2 * y
    products = 1 if forward_only else 3
    if case.row == "gaussian":
        products *= 2  # of x and w, and of their squares
    entries = matrix.ROWS[case.row].entries
    if entries and "sample" in entries:
        size["in"] = read
    words = int(np.prod([size[name] for name in entries])) if entries else 0
    return {
        "bytes": numbers * matrix.ITEMSIZE[case.dtype],
        "flops": products * 2 * rows * read * outputs,
        "words": words * (1 if forward_only else 2),
    }


def measure() -> dict[str, float | None]:
    """The rates of this machine on all its cores, without a framework.

    Returns:
        "bytes", "flops" and "words" a second; words is None where numba is not installed.
    """
    return {"bytes": bandwidth(), "flops": product_rate(), "words": word_rate()}


def bandwidth() -> float:
    """Bytes read and written a second by copying more than caches hold."""
    pairs = [(np.ones(COPY_BYTES // 4, "float32"), np.empty(COPY_BYTES // 4, "float32")) for _ in range(cores())]
    return 2 * COPY_BYTES * len(pairs) / best(lambda: on_all_cores(lambda n: np.copyto(pairs[n][1], pairs[n][0])))


def product_rate() -> float:
    """Operations a second of a product of large float32 matrices."""
    a = np.ones((PRODUCT_SIZE, PRODUCT_SIZE), "float32")
    return 2 * PRODUCT_SIZE**3 / best(lambda: a @ a)


def word_rate() -> float | None:
    """Words a second of the generator, made in registers and folded; None without numba."""
    try:
        import numba
    except ModuleNotFoundError:
        return None
    fold = numba.njit(nogil=True)(folded_words)
    return WORDS * cores() / best(lambda: on_all_cores(lambda n: fold(np.uint32(n), np.uint32(~n & 0xFF), WORDS)))


def folded_words(k0: typing.Any, k1: typing.Any, count: int) -> typing.Any:
    """The exclusive or of a row's first words: the thirteen operations of `generator.words` inside a row.

    Numba widens what two words give to 64 bits, at less than half the speed, so each is made a word again.
    """
    word = np.uint32
    folded = word(0)
    for out in range(count):
        x = word(word(out) ^ k0)
        x = word(x ^ word(x >> word(17)))
        x = word(x * word(0xED5AD4BB))
        x = word(x ^ word(x >> word(11)))
        x = word(x ^ k1)
        x = word(x * word(0xAC4C1B51))
        x = word(x ^ word(x >> word(15)))
        x = word(x * word(0x31848BAB))
        folded = word(folded ^ word(x ^ word(x >> word(14))))
    return folded


def on_all_cores(work: typing.Callable[[int], typing.Any]) -> None:
    """Call a function with each core's number, each in a thread of its own."""
    with concurrent.futures.ThreadPoolExecutor(cores()) as pool:
        list(pool.map(work, range(cores())))


def best(function: typing.Callable[[], typing.Any]) -> float:
    """The shortest time of a few calls, after one that does not count."""
    function()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)
