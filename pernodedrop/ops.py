"""The ops: a masked product, its mask to look at, and the words behind it, on the tensors of any framework.

>>> import numpy as np, pernodedrop as pnd
>>> x, w = np.ones((2, 3), "float32"), np.ones((3, 4), "float32")
>>> noise, key = pnd.Bernoulli(0.5), (1, 0)
>>> y = pnd.ops.masked_dense(x, w, noise, key)
>>> mask = pnd.ops.sample_mask(noise, key, shape=(2, 3, 4), backend="numpy")
>>> bool((y == np.einsum("bi,io,bio->bo", x, w, mask)).all())
True
"""

import collections.abc
import math
import typing

import numpy as np

from pernodedrop import backends, checks, generator
from pernodedrop._types import Key, Namespace, Params, Shape, Sharing, Tensor, Words
from pernodedrop.backends import methods, numpy_ops, sparse_methods
from pernodedrop.internals import of_torch
from pernodedrop.mask import Field, Grid, Mask, coordinate
from pernodedrop.noise import Noise

__all__ = ["draw", "masked", "masked_dense", "random_bits", "sample_mask"]

METHODS = ("auto", "materialized", "recomputed", "kernel", "local_reparameterization")

LAYOUTS = {"dense": "dense", "sparse": "sparse (COO, CSR, BCOO, tf.SparseTensor)", "ragged": "ragged"}
"""How tensors that are taken somewhere may be stored, as `xp.layout` names it, in words."""

TO_DENSE = "x.to_dense() in torch, x.todense() in JAX, tf.sparse.to_dense(x) or x.to_tensor() in TensorFlow"


def masked_dense(
    x: Tensor,
    w: Tensor,
    noise: Noise,
    key: Key,
    *,
    sharing: Sharing = None,
    persistence: float | None = None,
    sample_offset: int | Tensor = 0,
    time_offset: int | Tensor = 0,
    in_offset: int | Tensor = 0,
    sample_ids: Tensor | None = None,
    params: Params | None = None,
    method: str = "auto",
) -> Tensor:
    """Multiply by a kernel whose every entry has its own noise for every sample (arXiv 2512.12663).

        y[b, o] = sum_i x[b, i] * w[i, o] * m[b, i, o]

    with m[b, i, o] a function of (key, b, i, o) only: `sample_mask` gives the same m. The gradients are those of this
    m; noise, key and params have none.

    Args:
        x: floating tensor (batch, in) or (batch, time, in) of NumPy, torch, JAX or TensorFlow. A sparse one may be
            CSR or COO of SciPy (beside NumPy) or torch, BCOO or `tf.SparseTensor`. Entries that it does not list have
            no mask, and cost neither time nor memory. Those that it lists may come in any order; duplicates add up.
        w: floating tensor (in, out) of the same framework.
        noise: the distribution of an entry, a `pernodedrop.Noise`.
        key: (seed, call): two ints, seed any, call in [0, 2**32); or an integer tensor of length 2, modulo 2**32. A
            `jax.random.key` or `jax.random.PRNGKey` of threefry, the default, stands for its two words.
        sharing: the coordinates that m does not depend on. None is "time": positions of (batch, time, in) share a
            sample's mask. Otherwise a "+"-joined string or a collection of "sample", "time", "in", "out": "sample+time"
            is one mask a batch (DropConnect), "out" is Dropout on x, () shares nothing.
        persistence: the probability in [0, 1] that an entry keeps its value from one position of (batch, time, in) to
            the next instead of being drawn anew; `sharing` may then not have "time". The correlation of entries l
            positions apart is persistence**l: with 0 every position has its own mask, with 1 all have one. None leaves
            positions to `sharing`.
        sample_offset: the sample coordinate of row 0, an int in [0, 2**32) or a scalar integer tensor; 0. A batch split
            over devices keeps its masks if each part says where it starts.
        time_offset: the time coordinate of the first position of x, likewise, for a part of a sequence; 0. That of x of
            shape (batch, in), which is one position. With `persistence` an int: the masks of the positions before the
            part are made, too, so that it costs as much as the sequence up to its end. Without effect if `sharing` has
            "time".
        in_offset: the in coordinate of w's first row, likewise, for a kernel that is split; 0.
        sample_ids: integer tensor (batch,), the sample coordinates themselves, modulo 2**32, instead of the offset.
            Rows with equal ids have equal masks, except by local reparameterization, which makes no masks: for Gaussian
            noise with repeated ids take the method "recomputed".
        params: the numbers of `noise` as scalar tensors, under the names of `noise.params()`, instead of its own: for a
            rate that changes after compilation.
        method: "materialized" has the whole mask in memory, 4 * batch * in * out bytes, and serves as oracle.
            "recomputed" evaluates it block by block, and again in the backward pass, so memory does not grow with the
            mask. "kernel" does so by a kernel written by hand, with the mask only in a core's registers or cache; if
            each row has a Bernoulli mask, it keeps one bit an entry for the backward pass, up to 64 MiB a product. It
            is available on a CPU with numba (`pip install 'pernodedrop[fast]'`), for every noise whose `from_uniform`
            is made of operators and the ops in `pernodedrop.backends.NOISE_OPS`, and on CUDA for `Bernoulli`; on JAX,
            and in graphs of TensorFlow, only where a gradient is taken, so that what is exported stays the framework's
            own. "local_reparameterization" makes no mask and draws y itself from the same distribution, for
            a Gaussian noise with a mask of its own for every row of x. "auto" takes the last where it holds, else
            "kernel" where it is available, else "recomputed"; masks that are small because they are shared are plain
            products. All can be differentiated any number of times, except on JAX in forward mode where a mask is
            recomputed, which JAX refuses ("custom_vjp"): for `jax.jvp` and `jax.hessian` take "materialized". What is
            dropped is multiplied by 0, so NaN and infinity in x or w become NaN; only the kernel on CUDA for a mask of
            each row skips them.

    Returns:
        A tensor (batch, out) or (batch, time, out), of the dtype of x. Sums are in float32, or in float64 if x or w is.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message, before anything is computed.

    >>> import numpy as np, pernodedrop as pnd
    >>> masked_dense(np.ones((2, 3), "float32"), np.ones((3, 4), "float32"), pnd.Bernoulli(0.0), key=(1, 0))
    array([[3., 3., 3., 3.],
           [3., 3., 3., 3.]], dtype=float32)
    """
    xp = backends.of(x=x, w=w)
    mask = Mask(noise, sharing, persistence=persistence)
    _check_operands(x, w, xp)
    device = xp.device(x)
    if sample_ids is None and "sample" not in mask.sharing and checks.is_int(sample_offset) and sample_offset == 0:
        xp.warn_of_replicas()
    samples = _sample_words(sample_offset, sample_ids, x, xp)
    field = Field(noise, _params(mask, params, device, xp), key_words(key, device, xp))
    _check_persistence(x, field, xp)
    earlier, time_offset = _split_time(time_offset, field, x, xp)
    earlier = 0 if x.shape[1] == 0 else earlier  # no position has none before it
    y = multiply(
        _after(x, earlier, xp) if earlier else x,
        w,
        field,
        sharing=mask.sharing,
        samples=samples,
        time_offset=time_offset,
        in_offset=_offset(in_offset, "in_offset", x, xp),
        method=checks.check_choice(method, "method", METHODS),
        xp=xp,
    )
    return _part(y, earlier, len(x.shape) == 3) if earlier else y


def masked(
    w: Tensor,
    noise: Noise,
    key: Key,
    *,
    sharing: Sharing = "sample+time",
    persistence: float | None = None,
    sample_offset: int | Tensor = 0,
    time_offset: int | Tensor = 0,
    in_offset: int | Tensor = 0,
    params: Params | None = None,
) -> Tensor:
    """A kernel times its mask, w * m, with the m and the gradient of `masked_dense`, for products of your own.

    Args:
        w: floating tensor (in, out), (batch, in, out) or (batch, time, in, out) of NumPy, torch, JAX or TensorFlow; the
            coordinates of an entry are its places along these axes.
        noise, key, persistence, sample_offset, time_offset, in_offset, params: as for `masked_dense`.
        sharing: as for `masked_dense`, but by default one mask for all samples and positions, the only choice for a
            tensor (in, out). With `persistence` give one without "time".

    Returns:
        A tensor of the shape and dtype of w. The product is in float32 at least.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message, before anything is computed.

    >>> import numpy as np, pernodedrop as pnd
    >>> masked(np.full((2, 4), 3, "float32"), pnd.Bernoulli(0.5), key=(1, 0))
    array([[6., 6., 0., 0.],
           [6., 6., 0., 6.]], dtype=float32)
    """
    xp = backends.of(w=w)
    mask = Mask(noise, sharing, persistence=persistence)
    _check_floating("w", w, xp)
    rank = len(w.shape)
    if rank not in (2, 3, 4):
        raise ValueError(checks.invalid("w", "shape (in, out), (batch, in, out) or (batch, time, in, out)", w.shape))
    if rank == 2 and not {"sample", "time"} <= mask.sharing:
        expected = "one with 'sample' and 'time' for w of shape (in, out)"
        raise ValueError(checks.invalid("sharing", expected, sharing))
    device = xp.device(w)
    field = Field(noise, _params(mask, params, device, xp), key_words(key, device, xp))
    entries = _entries(field, xp.shape(w), mask.sharing, sample_offset, time_offset, in_offset, w, xp)
    dtype = accumulation_dtype(w, xp=xp)
    return xp.astype(xp.astype(w, dtype) * xp.astype(entries, dtype), xp.dtype(w))


def sample_mask(
    noise: Noise,
    key: Key,
    shape: collections.abc.Sequence[int],
    *,
    sharing: Sharing = None,
    persistence: float | None = None,
    sample_offset: int | Tensor = 0,
    time_offset: int | Tensor = 0,
    backend: str | None = None,
) -> Tensor:
    """The mask itself, to look at: the m of `masked_dense`.

    Args:
        noise: the distribution of an entry, a `pernodedrop.Noise`.
        key: (seed, call), as for `masked_dense`.
        shape: (batch, in, out), or (batch, time, in, out).
        sharing, persistence, sample_offset, time_offset: as for `masked_dense`.
        backend: "numpy", "tensorflow", "torch" or "jax"; None is that of Keras if it is imported, else NumPy.

    Returns:
        A float32 tensor of `shape`. The mask of `Bernoulli` is equal to the bit on every backend.

    Raises:
        TypeError, ValueError: an argument that is not as described.
        ImportError: a backend that is not installed.

    >>> import pernodedrop as pnd
    >>> sample_mask(pnd.Bernoulli(0.5), key=(1, 0), shape=(1, 2, 4), backend="numpy")
    array([[[2., 2., 0., 0.],
            [2., 2., 0., 2.]]], dtype=float32)
    """
    xp = backends.get(backends.default() if backend is None else backend)
    shape = _check_shape(shape)
    mask = Mask(noise, sharing, persistence=persistence)
    field = Field(noise, _params(mask, None, None, xp), key_words(key, None, xp))
    entries = _entries(field, shape, mask.sharing, sample_offset, time_offset, 0, xp.asarray(0.0), xp)
    return xp.broadcast_to(entries, shape)


def random_bits(
    key: Key,
    shape: collections.abc.Sequence[int],
    *,
    sample_offset: int | Tensor = 0,
    backend: str | None = None,
) -> np.typing.NDArray[np.uint32]:
    """The raw words behind a mask, for a battery of statistical tests of your own.

    Args:
        key, shape, sample_offset, backend: as for `sample_mask`.

    Returns:
        A uint32 NumPy array of `shape`, equal on every backend.

    Raises:
        TypeError, ValueError: an argument that is not as described.
        ImportError: a backend that is not installed.

    >>> random_bits(key=(1, 0), shape=(1, 1, 2), backend="numpy").dtype
    dtype('uint32')
    """
    xp = backends.get(backends.default() if backend is None else backend)
    shape = _check_shape(shape)
    like = xp.asarray(0.0)
    offset = _offset(sample_offset, "sample_offset", like, xp)
    time, sample, in_, out = _coordinates(shape, frozenset(), {"sample": offset}, like, xp)
    words = generator.words(key_words(key, None, xp), xp.as_word(0), time, sample, in_, out, xp)
    words = xp.broadcast_to(words, shape)
    return xp.to_numpy(words).view("uint32")


def draw(state: Tensor) -> Tensor:
    """The next key of a state that counts calls, for a training step of your own; the state moves on by one call.

    Inside a function whose backward pass repeats its forward pass (`torch.utils.checkpoint`, `tf.recompute_grad`) the
    repetition would draw another key, and the gradient would be that of another mask: there it refuses. Draw outside,
    and pass the key in.

    Args:
        state: integer tensor (2,), at first the key to begin with, (seed, 0). A torch tensor, such as a buffer of a
            module, a `tf.Variable` or a NumPy array is advanced in place, compiled or not. What cannot be changed, a
            JAX array, a TensorFlow tensor or a read-only NumPy array, stays as it is.

    Returns:
        The key, a tensor like `state`; where `state` cannot be changed, the pair (key, next state).

    Raises:
        ValueError: a state that is no integer tensor of length 2.
        RuntimeError: inside a rematerialized function, on torch and TensorFlow.

    >>> import numpy as np
    >>> state = np.array([7, 0])
    >>> draw(state), state
    (array([7, 0]), array([7, 1]))
    """
    name = backends.name_of(state)
    if name is None or tuple(state.shape) != (2,) or not backends.get(name).is_integer(state):
        raise ValueError(checks.invalid("state", "an integer tensor of length 2", state))
    xp = backends.get(name)
    assign = _assigner(state)
    if assign is None:
        following: list[Tensor] = []
        return xp.draw(Counter(state, following.append)), following[0]
    xp.refuse_redraw()
    return xp.draw(Counter(xp.asarray(state), assign))


def _assigner(state: Tensor) -> typing.Callable[[Tensor], object] | None:
    """What changes a tensor in place, as its framework calls that; None of one that cannot be changed."""
    if isinstance(state, np.ndarray):
        return (lambda value: np.copyto(state, value)) if state.flags.writeable else None
    return getattr(state, "assign", None) or getattr(state, "copy_", None)  # TensorFlow's variables, torch's tensors


class Counter(typing.NamedTuple):
    """What `xp.draw` takes, a variable as Keras has it."""

    value: Tensor
    assign: typing.Callable[[Tensor], object]


def multiply(
    x: Tensor,
    w: Tensor,
    field: Field,
    *,
    sharing: frozenset[str],
    samples: Words,
    in_offset: Words,
    method: str,
    xp: Namespace,
    time_offset: Words = 0,
) -> Tensor:
    """`masked_dense` behind its checks, which is where layers enter.

    Args:
        x, w: as for `masked_dense`.
        field: the mask at its key, a `Field`.
        sharing: frozenset of coordinates.
        samples: word tensor (batch,).
        in_offset, time_offset: word tensor (1,), or an int.
        method: as for `masked_dense`.
        xp: the ops namespace of x.
    """
    _check_fit(x, w)
    _check_persistence(x, field, xp)
    if xp.layout(x) == "sparse":
        return _multiply_sparse(x, w, field, sharing, samples, time_offset, in_offset, method, xp)
    rows, restore = _rows(x, sharing, xp)
    dtype = accumulation_dtype(x, w, xp=xp)
    method = "materialized" if 0 in w.shape else method  # where there is nothing to save
    method = methods.chosen(method, field, sharing, rows, dtype, xp)
    batch, product = xp.shape(x)[:-1], xp.fused(_product)
    return restore(product(rows, w, field, samples, time_offset, in_offset, batch, sharing, method, dtype, xp))


def _product(
    x: Tensor,
    w: Tensor,
    field: Field,
    samples: Words,
    time_offset: Words,
    in_offset: Words,
    batch: Shape,
    sharing: frozenset[str],
    method: str,
    dtype: str,
    xp: Namespace,
) -> Tensor:
    """The product of rows x (row, position, in) of a `batch`, (batch,) or (batch, time), by a method."""
    at = xp  # the framework of the words
    is_whole = isinstance(in_offset, int) and isinstance(time_offset, int)
    if is_whole and method not in ("recomputed", "materialized"):  # which make words in blocks
        at, field, samples = words_at(field, samples, x, xp)
    time, sample = _coordinates_of_rows(batch, sharing, samples, time_offset, x, at)
    in_, out = (coordinate(name, size, sharing, x, at) for name, size in zip(("in", "out"), w.shape, strict=True))
    if "in" not in sharing:
        in_ = _shifted(in_, in_offset)
    if method != "shared_over_in_or_out":
        in_, out = (_spread(words, size, at) for words, size in zip((in_, out), w.shape, strict=True))
    time, sample = (_spread(words, xp.shape(x)[0], at) for words in (time, sample))
    operands = (xp.astype(x, dtype), xp.astype(w, dtype), Grid(field, time, sample, in_, out))
    own = method in ("recomputed", "kernel")
    y = getattr(xp, method)(*operands) if own else getattr(methods, method)(*operands, xp)
    return xp.astype(y, xp.dtype(x))


def words_at(field: Field, samples: Words, like: Tensor, xp: Namespace) -> tuple[Namespace, Field, Words]:
    """Who makes the words of a mask, and of what: NumPy, in an eager call on a CPU where kernels can be had."""
    if field.persists or xp.kernel_obstacle(like, field.noise, accumulation_dtype(like, xp=xp)):
        return xp, field, samples
    on_host = xp.on_host(field, samples)
    return (xp, field, samples) if on_host is None else (numpy_ops, *on_host)


def _shifted(words: Words, offset: Words) -> Words:
    """Words plus an offset, a word tensor or an int, of which 0 is the usual one."""
    return words if isinstance(offset, int) and offset == 0 else words + offset


def _spread(words: Words, size: int | Tensor, xp: Namespace) -> Words:
    """Words (1,) or (size,) as (size,)."""
    return words if isinstance(size, int) and words.shape[0] == size else xp.broadcast_to(words, (size,))


def _multiply_sparse(
    x: Tensor,
    w: Tensor,
    field: Field,
    sharing: frozenset[str],
    samples: Words,
    time_offset: Words,
    in_offset: Words,
    method: str,
    xp: Namespace,
) -> Tensor:
    """`multiply` for a sparse x, whose entries alone have masks."""
    batch, *positions, _ = xp.shape(x)
    times = math.prod(positions)
    values, rows, columns = xp.triples(x)
    in_, out = (coordinate(name, size, sharing, values, xp) for name, size in zip(("in", "out"), w.shape, strict=True))
    if "in" not in sharing:
        in_ = _shifted(in_, in_offset)
    time = coordinate("time", times, sharing, values, xp)[None, :]
    if "time" not in sharing:
        time = _shifted(time, time_offset)
    sample = (xp.arange(1, like=values) if "sample" in sharing else samples)[:, None]
    time, sample = (xp.reshape(xp.broadcast_to(words, (batch, times)), (batch * times,)) for words in (time, sample))
    dtype = accumulation_dtype(x, w, xp=xp)
    method = sparse_methods.chosen(method, field.noise, sharing, x, dtype, xp)
    if method == "kernel":
        in_, out = (xp.broadcast_to(words, (size,)) for words, size in zip((in_, out), w.shape, strict=True))
    operands = (xp.astype(values, dtype), rows, columns, xp.astype(w, dtype), Grid(field, time, sample, in_, out))
    own = method in ("recomputed", "kernel")
    y = getattr(xp, f"sparse_{method}")(*operands) if own else getattr(sparse_methods, method)(*operands, xp)
    y = xp.astype(y, xp.dtype(x))
    return xp.reshape(y, (batch, *positions, w.shape[1])) if positions else y


def accumulation_dtype(*tensors: Tensor, xp: Namespace) -> str:
    """The dtype that sums over products of these tensors are computed in: float64 if one has it, else float32."""
    return "float64" if "float64" in map(xp.dtype, tensors) else "float32"


def multiply_groups(
    x: Tensor, w: Tensor, field: Field, *, sharing: frozenset[str], samples: Words, xp: Namespace
) -> Tensor:
    """Many small products at once, with the masks in memory: those of a depthwise convolution.

    Args:
        x: (group, batch, [time,] in).
        w: (group, in, out); the mask's in coordinate is row-major over (group, in).
        field, sharing, samples, xp: as for `multiply`.

    Returns:
        A tensor (group, batch, [time,] out), of the dtype of x.
    """
    groups, inputs, outputs = w.shape
    if x.shape[0] != groups:
        raise ValueError(checks.invalid("inputs", f"as many groups as the kernel {tuple(w.shape)}", tuple(x.shape)))
    _check_fit(x, w[0])
    without_time = len(x.shape) == 3
    x4 = x[:, :, None, :] if without_time else x
    zero = xp.arange(1, like=x)

    in_ = coordinate("in", groups * inputs, sharing, x, xp)
    in_ = xp.reshape(xp.broadcast_to(in_, (groups * inputs,)), (groups, 1, 1, inputs, 1))
    time = zero if without_time else coordinate("time", x.shape[2], sharing, x, xp)
    sample, out = zero if "sample" in sharing else samples, coordinate("out", outputs, sharing, x, xp)
    mask = field.entries(time[:, None, None], sample[:, None, None, None], in_, out, xp)
    dtype = accumulation_dtype(x, w, xp=xp)
    masked = xp.astype(mask, dtype) * xp.astype(w, dtype)[:, None, None]  # (group, batch or 1, time or 1, in, out)
    if time.shape[0] == 1:
        y = xp.matmul(xp.astype(x4, dtype), masked[:, :, 0])
    else:
        y = xp.matmul(xp.astype(x4, dtype)[:, :, :, None, :], masked)[:, :, :, 0]
    return xp.astype(y[:, :, 0] if without_time else y, xp.dtype(x))


def convolve(
    x: Tensor,
    w: Tensor,
    field: Field,
    *,
    window: methods.Window,
    sharing: frozenset[str],
    samples: Words,
    xp: Namespace,
) -> Tensor:
    """A convolution whose positions share their sample's mask: with a kernel of its own, in memory, for each sample.

    Args:
        x: (batch, *space, channel), with its zeros around.
        w: (group, in, out); the mask's in coordinate is row-major over (group, position in the window, channel).
        window: how x is seen, a `methods.Window`.
        field, sharing, samples, xp: as for `multiply`; "time" is shared.

    Returns:
        A tensor (group, batch, time, out), of the dtype of x.
    """
    groups, inputs, outputs = w.shape
    in_, out = (coordinate(n, size, sharing, x, xp) for n, size in (("in", groups * inputs), ("out", outputs)))
    rows, dtype = xp.shape(x)[0], accumulation_dtype(x, w, xp=xp)
    grid = Grid(field, xp.broadcast_to(xp.arange(1, like=x), (rows,)), samples, in_, out)
    kernels = xp.masked(xp.reshape(xp.astype(w, dtype), (groups * inputs, outputs)), grid)
    y = xp.convolved(xp.astype(x, dtype), xp.reshape(kernels, (rows, groups, inputs, outputs)), window)
    y = xp.reshape(y, (rows, math.prod(window.outputs), groups, outputs))
    return xp.astype(xp.permute_dims(y, (2, 0, 1, 3)), xp.dtype(x))


def look_up(ids: Tensor, w: Tensor, field: Field, *, sharing: frozenset[str], samples: Words, xp: Namespace) -> Tensor:
    """Rows of a table with their masks, of which no others are made: the product of rows that are 1 at an id.

    Args:
        ids: integer tensor (batch, time), in [0, in).
        w: (in, out).
        field, sharing, samples, xp: as for `multiply`.

    Returns:
        A tensor (batch, time, out), of the dtype of w.
    """
    batch, times = xp.shape(ids)
    rows = xp.reshape(xp.take(w, xp.reshape(ids, (batch * times,)), axis=0), (batch, times, w.shape[1]))
    zero = xp.arange(1, like=ids)
    in_ = zero if "in" in sharing else xp.as_word(ids)[..., None]
    time, out = coordinate("time", times, sharing, ids, xp), coordinate("out", w.shape[1], sharing, ids, xp)
    mask = field.entries(time[:, None], (zero if "sample" in sharing else samples)[:, None, None], in_, out, xp)
    dtype = accumulation_dtype(w, xp=xp)
    return xp.astype(xp.astype(rows, dtype) * xp.astype(mask, dtype), xp.dtype(w))


def _rows(x: Tensor, sharing: frozenset[str], xp: Namespace) -> tuple[Tensor, typing.Callable[[Tensor], Tensor]]:
    """x as (row, position, in), the positions being those that share a row's mask, and the way back for the product."""
    batch, *positions, inputs = xp.shape(x)
    if not positions:
        axis = 0 if "sample" in sharing else 1  # an index would take far longer in eager frameworks
        return xp.expand_dims(x, axis=axis), lambda y: xp.squeeze(y, axis)
    (time,) = positions
    if "sample" in sharing and "time" not in sharing:
        return xp.permute_dims(x, (1, 0, 2)), lambda y: xp.permute_dims(y, (1, 0, 2))
    if "sample" not in sharing and "time" in sharing:
        return x, lambda y: y
    shape = (1, batch * time, inputs) if "time" in sharing else (batch * time, 1, inputs)
    return xp.reshape(x, shape), lambda y: xp.reshape(y, (batch, time, y.shape[-1]))


def _coordinates_of_rows(
    batch: Shape, sharing: frozenset[str], samples: Words, time_offset: Words, like: Tensor, xp: Namespace
) -> tuple[Words, Words]:
    """The time and sample coordinates of the rows that `_rows` makes of a batch, (batch,) or (batch, time)."""
    zero = xp.arange(1, like=like)
    samples = zero if "sample" in sharing else samples
    if "time" in sharing:
        return zero, samples
    if len(batch) == 1:
        return _shifted(zero, time_offset), samples
    times = _shifted(xp.arange(batch[1], like=like), time_offset)
    if "sample" in sharing:
        return times, samples

    def flat(words: Words) -> Words:
        return xp.reshape(xp.broadcast_to(words, batch), (batch[0] * batch[1],))

    return flat(times[None, :]), flat(samples[:, None])


def _check_shape(shape: collections.abc.Sequence[int]) -> tuple[int, ...]:
    if not isinstance(shape, tuple | list) or len(shape) not in (3, 4) or not all(map(checks.is_int, shape)):
        raise ValueError(checks.invalid("shape", "(batch, in, out) or (batch, time, in, out), all ints", shape))
    if min(shape) < 0:
        raise ValueError(checks.invalid("shape", "sizes from zero", shape))
    return tuple(shape)


def _entries(
    field: Field,
    shape: Shape,
    sharing: frozenset[str],
    sample_offset: int | Tensor,
    time_offset: int | Tensor,
    in_offset: int | Tensor,
    like: Tensor,
    xp: Namespace,
) -> Tensor:
    """The entries of a tensor ([batch, [time,]] in, out); axes that share their coordinate have size 1."""
    earlier, time = _split_time(time_offset, field, like, xp)
    sample, in_ = _offset(sample_offset, "sample_offset", like, xp), _offset(in_offset, "in_offset", like, xp)
    offsets = {"sample": sample, "time": time, "in": in_}
    if not field.persists:
        return field.entries(*_coordinates(shape, sharing, offsets, like, xp), xp)
    batch, *positions, inputs, outputs = shape
    (times,) = positions or (1,)
    whole = (batch, earlier + times, inputs, outputs)
    return _part(field.entries(*_coordinates(whole, sharing, offsets, like, xp), xp), earlier, bool(positions))


def _coordinates(
    shape: Shape, sharing: frozenset[str], offsets: collections.abc.Mapping[str, Words], like: Tensor, xp: Namespace
) -> tuple[Words, Words, Words, Words]:
    """Coordinates time, sample, in and out that broadcast to ([batch, [time,]] in, out), from their offsets on."""
    *rows, inputs, outputs = shape
    batch, *positions = rows or (1,)
    (times,) = positions or (1,)
    sizes = {"time": times, "sample": batch, "in": inputs, "out": outputs}
    at = {name: coordinate(name, size, sharing, like, xp) for name, size in sizes.items()}
    for name in set(offsets) - sharing:
        at[name] = _shifted(at[name], offsets[name])
    in_, out = at["in"][:, None], at["out"]
    if not rows:
        return at["time"], at["sample"], in_, out
    sample = at["sample"][:, None, None, None] if positions else at["sample"][:, None, None]
    return at["time"][:, None, None], sample, in_, out


def _split_time(offset: int | Tensor, field: Field, like: Tensor, xp: Namespace) -> tuple[int, Words]:
    """How many positions before a part need masks, since entries persist, and the offset of the rest."""
    words = _offset(offset, "time_offset", like, xp)
    if not field.persists:
        return 0, words
    if not checks.is_int(offset):
        raise TypeError(checks.invalid("time_offset", "an int beside `persistence`", offset))
    return int(offset), 0


def _after(x: Tensor, earlier: int, xp: Namespace) -> Tensor:
    """A part x (batch, [time,] in) of a sequence after so many positions that have any values."""
    x = x if len(x.shape) == 3 else x[:, None, :]
    place = xp.astype(xp.arange(earlier + xp.shape(x)[1], like=x), "int32") - earlier
    return xp.take(x, xp.maximum(place, 0), axis=1)


def _part(whole: Tensor, earlier: int, has_time: bool) -> Tensor:
    """The part of a result (batch, time, ...) after so many positions, (batch, ...) where it is one position."""
    return whole[:, earlier:, ...] if has_time else whole[:, earlier, ...]


def _sample_words(sample_offset: int | Tensor, sample_ids: Tensor | None, x: Tensor, xp: Namespace) -> Words:
    if sample_ids is None:
        return _shifted(xp.arange(xp.shape(x)[0], like=x), _offset(sample_offset, "sample_offset", x, xp))
    if not (checks.is_int(sample_offset) and sample_offset == 0):
        raise ValueError(checks.invalid("sample_offset", "0 beside `sample_ids`", sample_offset))
    return check_sample_ids(sample_ids, x, xp)


def check_sample_ids(sample_ids: Tensor, x: Tensor, xp: Namespace) -> Words:
    """`sample_ids` as word tensor (batch,), or an error."""
    name = backends.name_of(sample_ids)
    if name is None:
        raise TypeError(checks.invalid("sample_ids", "an integer tensor of shape (batch,)", sample_ids))
    if not backends.get(name).is_integer(sample_ids):
        raise TypeError(checks.invalid("sample_ids", "an integer dtype", sample_ids.dtype))
    sample_ids = xp.asarray(sample_ids, device=xp.device(x))
    batch, known = x.shape[0], tuple(sample_ids.shape)
    if len(known) != 1 or (None not in (known[0], batch) and known[0] != batch):
        raise ValueError(checks.invalid("sample_ids", f"shape (batch,) = ({batch},)", known))
    return xp.reshape(xp.as_word(sample_ids), (xp.shape(x)[0],))  # fails where only the run knows that they differ


def _offset(offset: int | Tensor, argument: str, like: Tensor, xp: Namespace) -> Words:
    if checks.is_int(offset):
        offset = checks.check_word(offset, argument)
        if offset == 0:
            return offset
    return _word(offset, argument, "an int in [0, 2**32) or a scalar integer tensor", xp.device(like), xp)


def key_words(key: Key, device: typing.Any, xp: Namespace) -> tuple[Words, Words]:
    """`key` as a pair of word tensors (1,), or an error."""
    expected = "(seed, call): two ints or an integer tensor of length 2"
    if not isinstance(key, tuple | list):
        name, given = backends.name_of(key), key
        if name is not None:
            key = backends.get(name).asarray(key)
        if name is None or tuple(key.shape) != (2,) or not backends.get(name).is_integer(key):
            raise ValueError(checks.invalid("key", expected, given))
        words = xp.asarray(xp.as_word(key), device=device)
        return xp.fused(_halves)(words, xp)
    if len(key) != 2:
        raise ValueError(checks.invalid("key", expected, key))
    seed, call = key
    if checks.is_int(seed):
        checks.check_seed(seed, "key[0]")
        seed = generator.seed_word(seed)
    if checks.is_int(call):
        call = checks.check_word(call, "key[1]")
    return _word(seed, "key", expected, device, xp), _word(call, "key", expected, device, xp)


def _halves(words: Words, xp: Namespace) -> tuple[Words, Words]:
    seed, call = xp.unstack(xp.reshape(words, (2, 1)))
    return seed, call


def _word(value: Tensor, argument: str, expected: str, device: typing.Any, xp: Namespace) -> Words:
    """An int, or a scalar integer tensor of any framework, as a word tensor (1,)."""
    if not checks.is_int(value):
        name = backends.name_of(value)
        if name is None or len(value.shape) != 0 or not backends.get(name).is_integer(value):
            raise TypeError(checks.invalid(argument, expected, value))
    return xp.asarray(xp.as_word(value), device=device)


def _params(mask: Mask, params: Params | None, device: typing.Any, xp: Namespace) -> dict[str, Tensor]:
    own = mask.params()
    if params is None:
        return {name: xp.asarray(value, device=device) for name, value in own.items()}
    if not isinstance(params, collections.abc.Mapping):
        raise TypeError(checks.invalid("params", f"a dict of the numbers {sorted(own)} of {mask.noise!r}", params))
    if set(params) != set(own):
        raise ValueError(checks.invalid("params", f"the numbers {sorted(own)} of {mask.noise!r}", list(params)))
    dtypes = _dtypes(mask.noise, mask.persistence)
    for name, value in params.items():
        _check_number(value, f"params[{name!r}]", dtypes[name])
    return {name: xp.stop_gradient(xp.asarray(value, device=device)) for name, value in params.items()}


@of_torch.constant_in_graphs  # torch.compile takes a NumPy scalar for a tensor, whose dtype has no name
def _dtypes(noise: Noise, persistence: float | None) -> dict[str, str]:
    return {name: value.dtype.name for name, value in Mask(noise, persistence=persistence).params().items()}


def _check_number(value: Tensor, argument: str, dtype: str) -> None:
    backend = backends.name_of(value)
    if backend is None:
        raise TypeError(checks.invalid(argument, f"a scalar tensor, {dtype}", value))
    received = backends.get(backend).dtype(value)
    if received != dtype or len(value.shape) != 0:
        raise TypeError(checks.invalid(argument, f"a scalar tensor, {dtype}", (tuple(value.shape), received)))


def _check_floating(
    argument: str, tensor: Tensor, xp: Namespace, layouts: collections.abc.Sequence[str] = ("dense",)
) -> None:
    if type(tensor).__name__ == "DTensor":  # of torch, which multiplies it by no plain tensor
        expected = "a plain tensor: of a DTensor its to_local(), and as offset where that begins in the whole"
        raise TypeError(checks.invalid(argument, expected, type(tensor)))
    if "float" not in xp.dtype(tensor):
        raise TypeError(checks.invalid(argument, "a floating dtype", xp.dtype(tensor)))
    check_layout(argument, tensor, layouts, xp)


def check_layout(argument: str, tensor: Tensor, taken: collections.abc.Sequence[str], xp: Namespace) -> None:
    """Raise unless a tensor is stored in one of the ways `taken`, of "dense", "sparse" and "ragged"."""
    if xp.layout(tensor) not in taken:
        kinds = " or ".join(LAYOUTS[layout] for layout in taken)
        expected = f"a {kinds} tensor here (a dense one is made by {TO_DENSE})"
        raise TypeError(checks.invalid(argument, expected, tensor))


def _check_operands(x: Tensor, w: Tensor, xp: Namespace) -> None:
    _check_floating("x", x, xp, ("dense", "sparse"))
    _check_floating("w", w, xp)
    if len(x.shape) not in (2, 3):
        raise ValueError(checks.invalid("x", "shape (batch, in) or (batch, time, in)", tuple(x.shape)))
    if len(w.shape) != 2 or x.shape[-1] not in (None, w.shape[0]):
        raise ValueError(checks.invalid("w", f"shape (in, out) with in = {x.shape[-1]} as in `x`", tuple(w.shape)))


def _check_persistence(x: Tensor, field: Field, xp: Namespace) -> None:
    if field.persists and xp.layout(x) == "sparse":
        raise ValueError(checks.invalid("persistence", "None beside a sparse input, which has no rows of all times", x))


def _check_fit(x: Tensor, w: Tensor) -> None:
    """Raise unless x (..., in) fits w (in, out): the inputs of a layer that was built for others do not."""
    if x.shape[-1] not in (None, w.shape[0]):
        raise ValueError(checks.invalid("inputs", f"{w.shape[0]} along the axis of the kernel's", tuple(x.shape)))
