"""What is measured: rows, modes, shapes and dtypes, and the profiles that pick some of them."""

import dataclasses
import typing

RATE = 0.5  # of every noise
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}  # bytes


class Row(typing.NamedTuple):
    """A way to multiply x by w.

    Attributes:
        title: what a person reads.
        entries: the coordinates that its random numbers depend on, of "sample", "in" and "out".
        ours: whether it is this library's.
        materializes: whether it has an entry for every sample and connection in memory.
    """

    title: str
    entries: tuple[str, ...]
    ours: bool = True
    materializes: bool = False


EACH = ("sample", "in", "out")

ROWS = {
    "dense": Row("Dense", (), ours=False),
    "dropout": Row("Dropout + Dense", ("sample", "in")),
    "gaussian_dropout": Row("GaussianDropout + Dense", ("sample", "in")),
    "drop_connect": Row("DropConnect, a batch", ("in", "out")),
    "drop_connect_sample": Row("DropConnect, a sample", EACH),
    "fixed": Row("PerNodeDrop fixed", ("in", "out")),
    "gaussian": Row("PerNodeDrop Gaussian", ("sample", "out")),
    "gaussian_recomputed": Row("… recomputed", EACH),
    "uniform": Row("PerNodeDrop Uniform", EACH),
    "bernoulli": Row("PerNodeDrop Bernoulli", EACH),
    "bernoulli_recomputed": Row("… recomputed", EACH),
    "bernoulli_materialized": Row("… materialized", EACH, materializes=True),
    "bernoulli_kernel": Row("… by a kernel", EACH),
    "by_hand": Row("… by hand", EACH, ours=False, materializes=True),
    "keras_dropout": Row("keras Dropout + Dense", ("sample", "in"), ours=False),
    "keras_gaussian_dropout": Row("keras GaussianDropout + Dense", ("sample", "in"), ours=False),
    "torch_dropout": Row("torch Dropout + linear", ("sample", "in"), ours=False),
}
"""The rows by name, in the order in which they are shown."""

METHODS = ("bernoulli_recomputed", "bernoulli_materialized", "bernoulli_kernel")
"""Rows that are the row "bernoulli", which takes the method that "auto" picks, by one method each."""

REFERENCES = ("dense", "dropout")
"""Rows that the others are compared with, so they are timed beside any other."""

ONLY_ON = {"torch_dropout": "torch"}

VARIANTS = {
    "none": "no regularizer",
    "dropout": "Dropout",
    "gaussian": "PerNodeDrop Gaussian",
    "fixed": "PerNodeDrop fixed",
    "bernoulli": "PerNodeDrop Bernoulli",
    "bernoulli_materialized": "… materialized",
}
"""Titles of the variants of the CIFAR-10 network."""

BASELINE = "dropout"  # the variant that the others are compared with

MODES = {"jax": ("jit",), "tensorflow": ("graph", "xla"), "torch": ("eager",), "numpy": ("eager",)}
"""How people run each framework, in the order in which they are shown; the first mode is the usual one."""

EXTRA_MODES = {"jax": "eager", "tensorflow": "eager", "torch": "compiled"}

FORWARD = "forward"
"""Ends the name of a mode whose steps have no backward pass, "jit forward", as predictions have none."""

PASSES = {"numpy": 1}
"""1 where there is a forward pass only; 2 elsewhere, as of a backward pass that makes the mask again, which one that
reads kept decisions does not: a share of the limit of such a step is up to twice too high."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One figure of the matrix.

    Attributes:
        backend, row, mode, dtype: names.
        shape: (batch, in, out) or (batch, time, in, out); of a convolution (batch, height, width, in, out).
        listed: how many entries of a row a sparse x lists; 0 where x is dense.
    """

    backend: str
    row: str
    shape: tuple[int, ...]
    dtype: str
    mode: str
    listed: int = 0

    @property
    def key(self) -> str:
        """What tells it from the others, as text."""
        listed = [f"{self.listed} listed"] if self.listed else []
        return "/".join([self.backend, self.mode, shape_text(self.shape), *listed, self.dtype, self.row])

    @property
    def entries(self) -> int:
        """How many entries a mask has that differs for every sample and connection."""
        size = sizes(self.shape)
        return size["sample"] * (self.listed or size["in"]) * size["out"]

    def plain(self) -> dict[str, typing.Any]:
        """The case as JSON has it."""
        return {**vars(self), "shape": list(self.shape)}

    @classmethod
    def of(cls, plain: dict[str, typing.Any]) -> typing.Self:
        """The case that JSON has."""
        return cls(**{**plain, "shape": tuple(plain["shape"])})


class Part(typing.NamedTuple):
    """Cases of one shape and dtype, which are timed in turn.

    Attributes:
        shape, dtype: those of its cases.
        rows: names.
        extra: the names of backends on which some rows are timed in the mode of `EXTRA_MODES` too.
        extra_rows: names of these rows.
        one_mode: whether the usual mode is the only one of the others.
        backends: names of those that it is for; none for all.
        listed: that of its cases.
    """

    shape: tuple[int, ...]
    rows: tuple[str, ...]
    dtype: str = "float32"
    extra: tuple[str, ...] = ()
    extra_rows: tuple[str, ...] = tuple(ROWS)
    one_mode: bool = False
    backends: tuple[str, ...] = ()
    listed: int = 0

    def cases(self, backend: str) -> list[Case]:
        """The cases on one backend, those to be timed in turn."""
        if self.backends and backend not in self.backends:
            return []
        modes = MODES[backend][: 1 if self.one_mode else None]
        rows = [name for name in ROWS if name in self.rows and ONLY_ON.get(name, backend) == backend]
        pairs = [(mode, row) for mode in modes for row in rows]
        if backend in self.extra:
            pairs += [(EXTRA_MODES[backend], row) for row in rows if row in self.extra_rows]
        return [Case(backend, row, self.shape, self.dtype, mode, self.listed) for mode, row in pairs]


class Network(typing.NamedTuple):
    """How the CIFAR-10 network is trained: its variants, steps of an epoch, images of a step."""

    variants: tuple[str, ...]
    steps: int
    batch: int = 128


class Profile(typing.NamedTuple):
    """What a run measures.

    Attributes:
        parts: the cases.
        rounds: how often the cases of a part are timed, and how many epochs of the network.
        seconds: a part is not begun another round after so long, once it has had three.
        memory: whether peaks are measured, in the usual mode of each backend, of the first `memory` parts.
        network: a `Network`, or None.
    """

    parts: tuple[Part, ...]
    rounds: int
    seconds: float
    memory: int
    network: Network | None


EVERY = tuple(name for name in ROWS if name != "bernoulli_kernel")  # which is the row "bernoulli" where it can be had
USUAL = tuple(name for name in EVERY if name not in ("drop_connect_sample", "gaussian_recomputed", "uniform"))
OVER_TIME = (*REFERENCES, "bernoulli", "bernoulli_recomputed", "bernoulli_materialized", "by_hand")
WORTH_COMPILING = (*REFERENCES, "gaussian", "bernoulli", "by_hand", "torch_dropout")  # torch.compile: 10 s a row
GROWING = (*REFERENCES, "bernoulli")
PAPER = (128, 4096, 64)  # the first dense layer of the paper's CIFAR-10 network
TIME = (32, 16, 512, 64)
CONVOLUTION = (32, 16, 16, 32, 32)
SMALL = (32, 64, 64)
CHOICES = (*REFERENCES, "bernoulli", *METHODS)
LISTED = (*REFERENCES, "gaussian", "uniform", "bernoulli", "bernoulli_recomputed")

PROFILES = {
    "quick": Profile((Part((128, 1024, 64), USUAL),), rounds=5, seconds=10, memory=0, network=None),
    "paper": Profile(
        (Part(PAPER, USUAL, extra=("torch",), extra_rows=WORTH_COMPILING), Part(TIME, OVER_TIME)),
        rounds=15,
        seconds=30,
        memory=1,
        network=Network(("none", "dropout", "gaussian", "fixed", "bernoulli"), steps=10),
    ),
    "growth": Profile(
        tuple(Part((128, 10**n // (128 * 64), 64), GROWING, one_mode=True) for n in range(6, 11)),
        rounds=5,
        seconds=30,
        memory=0,
        network=None,
    ),
    "auto": Profile(
        (
            Part(CONVOLUTION, CHOICES, one_mode=True),
            Part(SMALL, (*CHOICES, "keras_dropout"), one_mode=True, extra=("jax", "tensorflow")),
            *(
                Part(shape, CHOICES, one_mode=True)
                for shape in ((128, 1024, 64), TIME, (64, 16, 256, 256), (32, 64, 256, 1024), (4, 128, 512, 512))
            ),
        ),
        rounds=15,
        seconds=30,
        memory=1,
        network=None,
    ),
    "sparse": Profile(  # as many terms as RCV1-v2 has, and of a document
        tuple(Part((128, 47236, outputs), LISTED, one_mode=True, listed=83) for outputs in (1024, 64)),
        rounds=9,
        seconds=30,
        memory=0,
        network=None,
    ),
    "full": Profile(
        (
            Part(PAPER, EVERY, extra=("torch", "jax")),
            Part(TIME, OVER_TIME, extra=("torch", "jax")),
            *(Part(shape, EVERY) for shape in ((64, 1024, 1024), (256, 4096, 64))),
            Part(PAPER, USUAL, "bfloat16", one_mode=True, backends=("jax", "tensorflow", "torch")),
            Part(PAPER, USUAL, "float16", one_mode=True),
        ),
        rounds=15,
        seconds=120,
        memory=4,
        network=Network(tuple(VARIANTS), steps=10),
    ),
}


def shape_text(shape: typing.Sequence[int]) -> str:
    """A shape as text: 128x4096x64."""
    return "x".join(map(str, shape))


def sizes(shape: typing.Sequence[int]) -> dict[str, int]:
    """The sizes of a shape by coordinate; the time is 1 where there is none. A window of a convolution has 3 x 3."""
    if len(shape) == 5:
        batch, height, width, channels, filters = shape
        return {"sample": batch, "time": height * width, "in": 9 * channels, "out": filters}
    names = ("sample", "time", "in", "out") if len(shape) == 4 else ("sample", "in", "out")
    return {"time": 1, **dict(zip(names, shape, strict=True))}
