"""A noise as a program: the elementwise ops of its `from_words`, as numbers that a compiled kernel carries out.

A noise is written against a namespace, so it can be called with one whose ops only write down what is asked for. That
makes a list of steps for blocks of entries: numbers that any framework hands to the kernel, as it does coordinates.
So the kernel is compiled once for all noises, a user's own too. Arithmetic rounds as NumPy's does.
"""

import dataclasses
import functools
import typing

import numpy as np

from pernodedrop.internals import of_torch
from pernodedrop.noise import LEVELS, Noise

OF_LANE = ("uniform", "bits24")
UNARY = (
    "negative", "abs", "sqrt", "exp", "expm1", "log", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "tanh",
    "floor", "sign", "erf", "erfinv",
)  # fmt: skip
BINARY = ("add", "subtract", "multiply", "divide", "pow", "minimum", "maximum", "less", "less_equal", "equal")
STEPS = (*OF_LANE, *UNARY, *BINARY, "where")
"""What a step does, by its number; truth is 1, falsehood 0."""

OWN = ("number", "constant")
"""What needs no step."""

LONGEST = 256
"""Steps of a program at most."""


class Program(typing.NamedTuple):
    """The steps that make entries of words.

    Attributes:
        code: lines of five ints. The first: how many lanes, registers, and steps that are the same for all entries, and
            which has the entries. Then the steps: what to do, the register of the result, and three of operands.
        numbers: what the first registers hold: the noise's own numbers, zeros here, then constants.
        names: those of the noise's own numbers.
    """

    code: tuple[tuple[int, ...], ...]
    numbers: tuple[float, ...]
    names: tuple[str, ...]


@of_torch.constant_in_graphs
def of(noise: Noise) -> Program | None:
    """The program of a noise, or None of one that does else than elementwise ops of `pernodedrop.backends.NOISE_OPS`.

    Called with symbols such a noise fails, by whatever error, and is left to those who call it with tensors.
    """
    try:
        return _of(noise, written(noise))
    except TypeError:  # of a noise that has no hash
        return None


def written(noise: Noise) -> tuple[typing.Any, ...]:
    """All of what a noise is: equal ones may differ in the sign of 0, or in a field that is not compared."""
    return type(noise), *(repr(getattr(noise, field.name)) for field in dataclasses.fields(noise))


@functools.lru_cache(maxsize=256)
def _of(noise: Noise, _: tuple[typing.Any, ...]) -> Program | None:
    trace = _Trace()
    try:
        params = {name: trace.number(value.dtype.name) for name, value in noise.params().items()}
        words = [trace.word(lane) for lane in range(noise.lanes)]
        return trace.program(noise.from_words(words, params, _Symbolic(trace)), noise.lanes, tuple(params))
    except Exception:  # a user's code may raise anything of what it does not know
        return None


class _Symbol:
    """A float32 tensor ("float"), an int32 number ("int"), decisions ("bool"), words ("word"), bits ("bits")."""

    __array_ufunc__ = None  # NumPy's scalars leave operators to it
    __hash__ = None  # type: ignore[assignment] # no key, since == gives a symbol

    def __init__(self, trace: "_Trace", kind: str, place: int) -> None:
        self.trace, self.kind, self.place = trace, kind, place

    def __bool__(self) -> bool:
        raise TypeError("a symbol is neither true nor false")

    def __array__(self, *_: typing.Any, **__: typing.Any) -> typing.Any:
        raise TypeError("a symbol is no array")

    def __neg__(self) -> "_Symbol":
        return self.trace.step("negative", self)

    def __pos__(self) -> "_Symbol":
        return self

    def __abs__(self) -> "_Symbol":
        return self.trace.step("abs", self)

    def __invert__(self) -> "_Symbol":
        return self.trace.logical("subtract", True, self)

    def __and__(self, other: typing.Any) -> "_Symbol":
        return self.trace.logical("minimum", self, other)

    def __or__(self, other: typing.Any) -> "_Symbol":
        return self.trace.logical("maximum", self, other)


def _operator(step: str, swapped: bool = False) -> typing.Callable[[_Symbol, typing.Any], _Symbol]:
    return lambda self, other: self.trace.step(step, *((other, self) if swapped else (self, other)))


def _comparison(step: str, swapped: bool = False, negated: bool = False) -> typing.Callable[..., _Symbol]:
    def compare(self: _Symbol, other: typing.Any) -> _Symbol:
        result = self.trace.compare(step, *((other, self) if swapped else (self, other)))
        return ~result if negated else result

    return compare


for _name, _step in (("add", "add"), ("sub", "subtract"), ("mul", "multiply"), ("truediv", "divide"), ("pow", "pow")):
    setattr(_Symbol, f"__{_name}__", _operator(_step))
    setattr(_Symbol, f"__r{_name}__", _operator(_step, swapped=True))
for _name, _compare in (
    ("lt", _comparison("less")),
    ("le", _comparison("less_equal")),
    ("gt", _comparison("less", swapped=True)),
    ("ge", _comparison("less_equal", swapped=True)),
    ("eq", _comparison("equal")),
    ("ne", _comparison("equal", negated=True)),
):
    setattr(_Symbol, f"__{_name}__", _compare)


class _Trace:
    """What a noise asks for, each at its place: its numbers, constants, and steps with the places of their operands."""

    def __init__(self) -> None:
        self.values: list[tuple[str, tuple[typing.Any, ...]]] = []

    def symbol(self, kind: str, name: str, *operands: typing.Any) -> _Symbol:
        """The value that a step has, or a number, written down once."""
        value = (name, operands)
        if value not in self.values:
            self.values.append(value)
        return _Symbol(self, kind, self.values.index(value))

    def word(self, lane: int) -> _Symbol:
        return _Symbol(self, "word", lane)

    def number(self, dtype: str) -> _Symbol:
        """A number of the noise's own. An int32 is rounded to float32 from 2**24."""
        return self.symbol({"float32": "float", "int32": "int"}[dtype], "number", len(self.values))

    def constant(self, value: typing.Any) -> _Symbol:
        if type(value) not in (bool, int, float, np.float32):  # float64 of NumPy is a float
            raise TypeError("no number")
        return self.symbol("float", "constant", np.float32(value).tobytes())  # bytes, of which NaN is equal to itself

    def place(self, value: typing.Any, *kinds: str) -> int:
        """The place of an operand, which is a symbol of one of these kinds or a number."""
        symbol = value if isinstance(value, _Symbol) else self.constant(value)
        if symbol is value and symbol.kind not in kinds:
            raise TypeError(f"no {symbol.kind}")
        return symbol.place

    def step(self, name: str, *operands: typing.Any) -> _Symbol:
        """An op of float32 numbers."""
        if name == "pow" and isinstance(operands[1], int | float) and operands[1] == 2:
            name, operands = "multiply", (operands[0], operands[0])
        return self.symbol("float", name, *(self.place(value, "float") for value in operands))

    def compare(self, name: str, *operands: typing.Any) -> _Symbol:
        """A decision. That on integers is right where all but one of them are below 2**24, which rounding keeps."""
        kinds = {value.kind if isinstance(value, _Symbol) else "constant" for value in operands}
        if "int" in kinds and kinds - {"int"} not in ({"bits"}, {"constant"}):
            raise TypeError("rounded integers")
        if "constant" in kinds and kinds & {"int", "bits"}:
            (constant,) = (value for value in operands if not isinstance(value, _Symbol))
            if constant != int(constant) or abs(constant) >= LEVELS:
                raise TypeError("a rounded constant")
        return self.symbol("bool", name, *(self.place(value, "float", "int", "bits") for value in operands))

    def logical(self, name: str, *operands: typing.Any) -> _Symbol:
        if not all(isinstance(value, _Symbol | bool) for value in operands):
            raise TypeError("an operation on bits")
        return self.symbol("bool", name, *(self.place(value, "bool") for value in operands))

    def program(self, result: typing.Any, lanes: int, names: tuple[str, ...]) -> Program:
        """The steps that lead to a symbol; those that are the same for all entries come first and keep their registers.

        Another step takes a register of which nothing is needed any more, but none of its own operands'.
        """
        if not isinstance(result, _Symbol):
            raise TypeError("no tensor")
        last, varying = self.place(result, "float"), self._varying()
        needed = self._needed(last)
        steps = [n for n in needed if self.values[n][0] in STEPS]
        if len(steps) > LONGEST:
            raise ValueError("too long")
        common, each = ([n for n in steps if (n in varying) == which] for which in (False, True))
        constants = [n for n in needed if self.values[n][0] == "constant"]
        numbers = [0.0] * len(names) + [float(np.frombuffer(self.values[n][1][0], np.float32)[0]) for n in constants]
        kept = [*(n for n, (name, _) in enumerate(self.values) if name == "number"), *constants, *common]
        registers, count, code = {n: register for register, n in enumerate(kept)}, len(kept), []
        for n in common:
            code.append(self._line(n, registers))
        for at, n in enumerate(each):
            held = {registers[m] for following in each[at:] for m in self._operands(following) if m in registers}
            registers[n] = next(register for register in range(len(kept), count + 1) if register not in held)
            count = max(count, registers[n] + 1)
            code.append(self._line(n, registers))
        header = lanes, count, len(common), registers[last], 0
        return Program((header, *code), tuple(numbers), names)

    def _line(self, n: int, registers: dict[int, int]) -> tuple[int, ...]:
        name, operands = self.values[n]
        sources = operands if name in OF_LANE else [registers[m] for m in operands]
        return STEPS.index(name), registers[n], *sources, *[0] * (3 - len(sources))

    def _operands(self, n: int) -> tuple[int, ...]:
        name, operands = self.values[n]
        return () if name in (*OWN, *OF_LANE) else operands

    def _needed(self, result: int) -> list[int]:
        """The places that lead to one, in order."""
        needed = {result}
        for n in range(result, -1, -1):
            needed.update(self._operands(n) if n in needed else ())
        return sorted(needed)

    def _varying(self) -> set[int]:
        """The places of what differs from entry to entry."""
        varying: set[int] = set()
        for n, (name, _) in enumerate(self.values):
            if name in OF_LANE or varying.intersection(self._operands(n)):
                varying.add(n)
        return varying


class _Symbolic:
    """The ops namespace of a trace, as far as a noise has one."""

    def __init__(self, trace: _Trace) -> None:
        self._trace = trace

    def __getattr__(self, name: str) -> typing.Callable[..., _Symbol]:
        if name not in (*UNARY[1:], "minimum", "maximum"):
            raise AttributeError(name)
        if name in UNARY:
            return lambda x: self._trace.step(name, x)
        return lambda a, b: self._trace.step(name, a, b)

    def uniform(self, word: _Symbol) -> _Symbol:
        return self._trace.symbol("float", "uniform", self._trace.place(word, "word"))

    def bits24(self, word: _Symbol) -> _Symbol:
        return self._trace.symbol("bits", "bits24", self._trace.place(word, "word"))

    def float32(self, x: _Symbol) -> _Symbol:
        return _Symbol(self._trace, "float", self._trace.place(x, "float", "int", "bits", "bool"))

    def where(self, condition: _Symbol, a: typing.Any, b: typing.Any) -> _Symbol:
        places = (self._trace.place(value, "float") for value in (a, b))
        return self._trace.symbol("float", "where", self._trace.place(condition, "bool"), *places)

    def clip(self, x: typing.Any, low: typing.Any, high: typing.Any) -> _Symbol:
        return self._trace.step("minimum", self._trace.step("maximum", x, low), high)

    def zeros_like(self, x: _Symbol) -> _Symbol:
        return self._trace.constant(0)

    def ones_like(self, x: _Symbol) -> _Symbol:
        return self._trace.constant(1)
