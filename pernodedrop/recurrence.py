"""Masks of recurrent kernels: which entries there are, and products with them at a step; in any framework."""

import collections.abc
import dataclasses
import typing

from pernodedrop import checks, ops
from pernodedrop._types import Namespace, Sharing, Tensor, Words
from pernodedrop.mask import COORDINATES, Field, Grid, Mask, coordinate, parse_sharing
from pernodedrop.noise import Noise

Product: typing.TypeAlias = collections.abc.Callable[[Tensor], Tensor]
ProductAt: typing.TypeAlias = collections.abc.Callable[[Tensor | None], Product]

KERNELS = ("kernel", "recurrent_kernel")
"""What a cell multiplies its input and its state by, (in, out) and (units, out), with the gates side by side in out."""

COLUMNS = ("gate", "unit")
"""What an out coordinate consists of: kernels have the gates side by side, and in each of them the units."""

METHODS = ("auto", "materialized", "recomputed")


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """Which mask the kernels of a recurrent layer have, and how they are multiplied by it.

    Attributes:
        mask: which mask, as far as it is one of any product.
        columns: those of `COLUMNS` that entries do not depend on.
        kernels: those of `KERNELS` that have noise.
        method: one of `METHODS`.
    """

    mask: Mask
    columns: frozenset[str]
    kernels: tuple[str, ...]
    method: str

    @classmethod
    def of(
        cls,
        noise: Noise,
        sharing: Sharing,
        regime: str,
        bank_size: int | None,
        persistence: float | None,
        kernels: collections.abc.Sequence[str],
        method: str,
    ) -> typing.Self:
        """That of the arguments of a layer, or an error about one of them."""
        if sharing is None:
            sharing = "sample+time" if persistence is None else "sample"
        names = parse_sharing(sharing, (*COORDINATES, *COLUMNS))
        columns = names.intersection(COLUMNS)
        shared = names - columns | ({"out"} if columns == {*COLUMNS} else set())
        mask = Mask(noise, shared, regime, bank_size, persistence)
        kernels = checks.check_names(kernels, "kernels", KERNELS)
        checks.check_choice(method, "method", METHODS)
        if method == "recomputed" and persistence is not None:
            raise ValueError(checks.invalid("method", "'auto' or 'materialized' beside `persistence`", method))
        return cls(mask, frozenset() if "out" in shared else columns, kernels, method)

    @property
    def sharing(self) -> frozenset[str]:
        """The coordinates that entries do not depend on, "gate" and "unit" among them."""
        return self.mask.sharing | self.columns

    def grid(
        self, row: int, kernel: Tensor, units: int, field: Field, time: Words, samples: Words, xp: Namespace
    ) -> Grid:
        """The mask of a kernel (in, out) with so many units a gate, whose first row has this in coordinate."""
        rows, columns = kernel.shape
        in_ = xp.broadcast_to(coordinate("in", rows, self.sharing, kernel, xp), (rows,))
        if "in" not in self.sharing:
            in_ = in_ + row
        gates = columns // units
        if "gate" in self.sharing:
            out = xp.broadcast_to(xp.arange(units, like=kernel), (gates, units))
        elif "unit" in self.sharing:
            out = xp.broadcast_to(xp.arange(gates, like=kernel)[:, None], (gates, units))
        else:
            out = xp.broadcast_to(coordinate("out", columns, self.sharing, kernel, xp), (columns,))
        return Grid(field, time, samples, in_, xp.reshape(out, (columns,)))

    def products(self, kernel: Tensor, units: int, grid: Grid, xp: Namespace) -> ProductAt:
        """How x is multiplied by a kernel with its masks, by the position in time, int32 (1,), or None if it is shared.

        The x is (batch, in), or where time is shared (batch, time, in) too. Sums are in float32 at least.
        """
        dtype = ops.accumulation_dtype(kernel, xp=xp)
        kernel = xp.astype(kernel, dtype)
        by_kernel = self._takes_kernel(kernel, grid, xp)
        if by_kernel or self._makes_again:
            at = self._recomputed(kernel, grid, by_kernel, xp)
        elif self._is_of_inputs:
            at = self._of_inputs(kernel, units, grid, xp)
        else:
            at = self._materialized(kernel, grid, xp)

        def product_at(position: Tensor | None) -> Product:
            multiply = at(position)

            def product(x: Tensor) -> Tensor:
                rows = xp.astype(x, dtype)
                if len(x.shape) == 3:
                    y = multiply(rows)
                else:
                    y = multiply(rows[None])[0] if "sample" in self.sharing else multiply(rows[:, None])[:, 0]
                return xp.astype(y, xp.dtype(x))

            return product

        return product_at

    @property
    def _is_of_inputs(self) -> bool:
        """Whether all units of a gate share an entry, so that it is that of an input."""
        return not {"out", "unit"}.isdisjoint(self.sharing)

    @property
    def _makes_again(self) -> bool:
        """Whether masks are made again at each step, however large: "auto" does it with those of a step."""
        return self.method == "recomputed" or (self._may_make_again and "time" not in self.sharing)

    @property
    def _may_make_again(self) -> bool:
        """Whether "auto" may make masks again: not those that persist, nor those of inputs, which are small."""
        return self.method == "auto" and self.mask.persistence is None and not self._is_of_inputs

    def _takes_kernel(self, kernel: Tensor, grid: Grid, xp: Namespace) -> bool:
        """Whether masks of samples are made by a kernel written by hand, those of a sequence if that is quicker."""
        if not self._may_make_again or "sample" in self.sharing:
            return False
        if "time" in self.sharing:
            return xp.loops_by_kernel(kernel, grid)
        return xp.kernel_obstacle(kernel, grid.field.noise, xp.dtype(kernel)) is None

    def _recomputed(self, kernel: Tensor, grid: Grid, by_kernel: bool, xp: Namespace) -> ProductAt:
        """ProductAt of rows (sample or 1, *, in) by the position, with masks that are made for each."""
        if by_kernel:  # in the order of its rows: the kernel would copy one in another order at each step
            kernel = xp.reshape(xp.reshape(kernel, (-1,)), kernel.shape)

        def at(position: Tensor | None) -> Product:
            here = grid if position is None else grid._replace(time=xp.as_word(position))
            if by_kernel:
                here = here._replace(time=xp.broadcast_to(here.time, here.sample.shape))
                return lambda rows: xp.kernel_made_again(rows, kernel, here)
            return lambda rows: xp.recomputed(rows, kernel, here)

        return at

    def _materialized(self, kernel: Tensor, grid: Grid, xp: Namespace) -> ProductAt:
        """The same with masks that are made before the loop."""
        time, sample = grid.time[:, None, None, None], grid.sample[:, None, None]
        masks = xp.optimization_barrier(grid.field.entries(time, sample, grid.in_[:, None], grid.out, xp))
        masks = xp.astype(masks, xp.dtype(kernel))
        whole = kernel * masks[0] if "time" in self.sharing else None  # once, before the loop

        def at(position: Tensor | None) -> Product:
            masked = whole if position is None else kernel * xp.take(masks, position, axis=0)[0]
            return lambda rows: xp.matmul(rows, masked)

        return at

    def _of_inputs(self, kernel: Tensor, units: int, grid: Grid, xp: Namespace) -> ProductAt:
        """The same where `_is_of_inputs`: it is the inputs that are multiplied, once for each gate with its own."""
        inputs, columns = kernel.shape
        gates = 1 if "out" in self.sharing else columns // units
        time, sample, out = grid.time[:, None, None, None], grid.sample[:, None, None], grid.out[:: columns // gates]
        masks = grid.field.entries(time, sample, grid.in_, out[:, None], xp)  # (time, sample, gate, in)
        masks = xp.astype(xp.optimization_barrier(masks), xp.dtype(kernel))
        kernels = xp.permute_dims(xp.reshape(kernel, (inputs, gates, columns // gates)), (1, 0, 2))

        def at(position: Tensor | None) -> Product:
            mask = (masks if position is None else xp.take(masks, position, axis=0))[0]

            def product(rows: Tensor) -> Tensor:
                masked = xp.permute_dims(rows[:, None] * mask[:, :, None], (1, 0, 2, 3))
                _, *rows_of, _ = xp.shape(masked)
                # all samples in one product a gate, where a product each would read the kernel anew
                y = xp.matmul(xp.reshape(masked, (gates, -1, inputs)), kernels)
                return xp.reshape(xp.permute_dims(y, (1, 0, 2)), (*rows_of, columns))

            return product

        return at
