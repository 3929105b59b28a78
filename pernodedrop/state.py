"""What a regularizer knows and remembers, in any framework: which mask, its first key, its rate over time.

Whoever is one, a Keras layer or a module of a framework, holds two kinds of variables that start as this says: the key,
which each draw advances, and the numbers of the noise, so that a new rate takes effect after compilation. With a
schedule the numbers are a table instead, a row for each stretch of call numbers.
"""

import random
import typing

import numpy as np

from pernodedrop import checks, generator
from pernodedrop._types import Namespace, Params, Words
from pernodedrop.mask import Field, Mask
from pernodedrop.noise import Noise
from pernodedrop.schedules import Schedule


class State:
    """The part of a regularizer that no framework owns.

    Args:
        mask: which mask, at the rate it starts with.
        seed: int, any; None takes one from Python's `random`, which `keras.utils.set_random_seed` seeds.
        schedule: the rate as a function of the key's call number; None has the numbers of the noise.

    Attributes:
        mask, seed, schedule: those given.
        first_key: the bits of (seed, call) to start with, int32 (2,).
        first_numbers: NumPy scalars by name to start with; none where a schedule gives them.

    Raises:
        TypeError, ValueError: a seed that is no int, or a schedule of a mask that does not change.

    >>> from pernodedrop import Bernoulli
    >>> state = State(Mask(Bernoulli(0.5)), seed=7)
    >>> state.first_key.tolist(), state.first_numbers
    ([7, 0], {'threshold': np.int32(8388608)})
    """

    def __init__(self, mask: Mask, seed: int | None = None, schedule: Schedule | None = None) -> None:
        if schedule is not None and mask.regime != "dynamic":
            raise ValueError(checks.invalid("rate", f"a float with regime={mask.regime!r}", schedule))
        self.mask, self.seed, self.schedule = mask, checks.check_seed(seed), schedule
        first = generator.seed_word(random.getrandbits(32) if seed is None else seed)
        self.first_key = np.array([first, 0], "uint32").view("int32")
        self.first_numbers = mask.noise.params() if schedule is None else {}
        if schedule is not None:
            self._shift, self._rates = schedule.table()
            rows = [mask.noise.with_rate(rate).params() for rate in self._rates]
            self._table = {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def noise(self, call: int, numbers: Params) -> Noise:
        """The noise at a call number, on the host; `numbers` are the present ones, where there is no schedule."""
        if self.schedule is None:
            return self.mask.noise.with_params(numbers)
        return self.mask.noise.with_rate(self._rates[min(call >> self._shift, len(self._rates) - 1)])

    def field(self, key: tuple[Words, Words], numbers: Params, device: typing.Any, xp: Namespace) -> Field:
        """The mask at a key, a pair of word tensors (1,), with the present numbers as tensors."""
        return Field(self.mask.noise, self._numbers(key[1], numbers, device, xp), self.mask.key(key, xp))

    def _numbers(self, call: Words, numbers: Params, device: typing.Any, xp: Namespace) -> Params:
        if self.schedule is None:
            return numbers
        last = len(self._rates) - 1
        row = xp.astype(xp.shift_right(call, self._shift), "int32")
        row = xp.where((row < 0) | (row > last), last, row)  # a word from 2**31 may be negative as an int
        rows = {name: xp.asarray(table, device=device) for name, table in self._table.items()}
        return {name: xp.reshape(xp.take(table, row, axis=0), ()) for name, table in rows.items()}
