"""The product of each row as a function of (x, w, key) on each framework."""

import functools
import importlib
import types
import typing

import keras
import numpy as np

import pernodedrop as pnd
from pernodedrop import backends
from pernodedrop._types import Namespace, Tensor

Product = typing.Callable[[Tensor, Tensor, Tensor], Tensor]


def product(row: str, backend: str, rate: float, form: str | None = None, shape: typing.Sequence[int] = ()) -> Product:
    """What one row computes.

    Args:
        row: a name of `matrix.ROWS`.
        backend: the name of Keras' backend.
        rate: the drop rate.
        form: how the masked product is written by hand, a name of `FORMS` or `FORMS_OVER_TIME`; None elsewhere.
        shape: that of the case; of five sizes it is that of a convolution, elsewhere it may be left out.

    Returns:
        A function of x (batch, in) or (batch, time, in), w (in, out) and the key, an integer tensor of length 2; for a
        convolution x is (batch, height, width, in) and w (3, 3, in, out).
    """
    if len(shape) == 5:
        return _convolution(row, rate, shape)
    if form is not None:
        return _by_hand(backend, rate, form)
    if row == "torch_dropout":
        return _torch_dropout(rate)
    if row in KERAS:
        return _before_dense(KERAS[row](rate))
    return OURS[row](rate)


def of_listed(product: Product, backend: str, shape: typing.Sequence[int], listed: int) -> Product:
    """A product with a sparse x as a function of the values of its entries, instead of x, to which no gradient flows.

    Args:
        product: that of x.
        backend: the name of Keras' backend.
        shape: (batch, in, out).
        listed: entries of a row, of which the first inputs have more than the last, as terms have in texts.
    """
    batch, inputs, _ = shape
    rng, share = np.random.default_rng(0), 1 / (30 + np.arange(inputs))
    columns = [np.sort(rng.choice(inputs, listed, False, share / share.sum())) for _ in range(batch)]
    places = np.stack([np.repeat(np.arange(batch), listed), np.concatenate(columns)])
    make, still = SPARSE[backend](places, (batch, inputs)), backends.get(backend).stop_gradient
    return lambda values, w, key: product(make(still(values)), w, key)


def _scipy(places: typing.Any, shape: typing.Any) -> typing.Callable[[Tensor], Tensor]:
    from scipy import sparse

    return lambda values: sparse.csr_array((values, tuple(places)), shape)


def _torch_coo(places: typing.Any, shape: typing.Any) -> typing.Callable[[Tensor], Tensor]:
    import torch

    places = torch.from_numpy(places)
    return lambda values: torch.sparse_coo_tensor(places, values, shape, check_invariants=False, is_coalesced=True)


def _bcoo(places: typing.Any, shape: typing.Any) -> typing.Callable[[Tensor], Tensor]:
    from jax.experimental import sparse

    return lambda values: sparse.BCOO((values, places.T), shape=shape, indices_sorted=True, unique_indices=True)


def _sparse_tensor(places: typing.Any, shape: typing.Any) -> typing.Callable[[Tensor], Tensor]:
    import tensorflow as tf

    return lambda values: tf.SparseTensor(places.T, values, shape)


SPARSE: dict[str, typing.Callable[..., typing.Callable[[Tensor], Tensor]]] = {
    "numpy": _scipy,
    "torch": _torch_coo,
    "jax": _bcoo,
    "tensorflow": _sparse_tensor,
}
"""What makes a sparse x of its values, from its places (2, n) and its shape."""


def _plain(x: Tensor, w: Tensor) -> Tensor:
    return x @ w if backends.name_of(x) == "numpy" else keras.ops.matmul(x, w)  # Keras does not know SciPy's


def _masked(kind: typing.Callable[[float], pnd.Noise], **options: typing.Any) -> typing.Callable[[float], Product]:
    def of_rate(rate: float) -> Product:
        noise = kind(rate)
        return lambda x, w, key: pnd.ops.masked_dense(x, w, noise, key, **options)

    return of_rate


def _fixed(rate: float) -> Product:
    """One mask for the model: the call number of its key never changes."""
    noise = pnd.Bernoulli(rate)
    return lambda x, w, key: pnd.ops.masked_dense(x, w, noise, (key[0], 0), sharing="sample+time")


OURS: dict[str, typing.Callable[[float], Product]] = {
    "dense": lambda rate: lambda x, w, key: _plain(x, w),
    "dropout": _masked(pnd.Bernoulli, sharing="out"),
    "gaussian_dropout": _masked(pnd.Gaussian, sharing="out"),
    "drop_connect": _masked(pnd.Bernoulli, sharing="sample+time"),
    "drop_connect_sample": _masked(pnd.Bernoulli, sharing="time"),
    "fixed": _fixed,
    "gaussian": _masked(pnd.Gaussian),
    "gaussian_recomputed": _masked(pnd.Gaussian, method="recomputed"),
    "uniform": _masked(pnd.Uniform),
    "bernoulli": _masked(pnd.Bernoulli),
    "bernoulli_recomputed": _masked(pnd.Bernoulli, method="recomputed"),
    "bernoulli_materialized": _masked(pnd.Bernoulli, method="materialized"),
    "bernoulli_kernel": _masked(pnd.Bernoulli, method="kernel"),
}

CONVOLVED = {
    "bernoulli": "auto",
    "bernoulli_recomputed": "recomputed",
    "bernoulli_materialized": "materialized",
    "bernoulli_kernel": "kernel",
}
"""The methods of the rows that have a convolution with noise."""


def _convolution(row: str, rate: float, shape: typing.Sequence[int]) -> Product:
    """A convolution of 3 x 3, with zeros around: plain, behind Dropout, or with noise on its kernel."""
    *of_input, filters = shape
    inner = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)
    layer = pnd.PerNodeDrop(inner, rate, method=CONVOLVED.get(row, "auto"), seed=0)
    layer.build(tuple(of_input))
    dropout = pnd.Dropout(rate, seed=0)

    def of_operands(x: Tensor, w: Tensor, key: Tensor) -> Tensor:
        if row == "dropout":
            x = dropout(x, training=True, key=key)
        with keras.StatelessScope(state_mapping=[(inner.kernel, w)]):
            return layer(x, training=True, key=key) if row in CONVOLVED else inner(x)

    return of_operands


KERAS = {
    "keras_dropout": lambda rate: keras.layers.Dropout(rate, seed=0),
    "keras_gaussian_dropout": lambda rate: keras.layers.GaussianDropout(rate, seed=0),
}


def _before_dense(layer: keras.layers.Layer) -> Product:
    state = layer.seed_generator.state

    def of_operands(x: Tensor, w: Tensor, key: Tensor) -> Tensor:
        # the seed comes from outside, as in a training step of Keras: JAX could not advance it inside
        with keras.StatelessScope(state_mapping=[(state, keras.ops.cast(key, state.dtype))]):
            return keras.ops.matmul(layer(x, training=True), w)

    return of_operands


def _torch_dropout(rate: float) -> Product:
    import torch

    dropout = torch.nn.Dropout(rate)
    return lambda x, w, key: torch.nn.functional.linear(dropout(x), w.T)


FORMS: dict[str, typing.Callable[[Tensor, Tensor, Tensor, Namespace], Tensor]] = {
    "matmul(x[:, None], w * mask)": lambda x, w, mask, xp: (x[:, None, :] @ (w * mask))[:, 0, :],
    "einsum('bi,io,bio->bo')": lambda x, w, mask, xp: xp.einsum("bi,io,bio->bo", x, w, mask),
    "einsum('bi,bio->bo', x, w * mask)": lambda x, w, mask, xp: xp.einsum("bi,bio->bo", x, w * mask),
    "sum(x[:, :, None] * w * mask)": lambda x, w, mask, xp: xp.sum(x[:, :, None] * w * mask, 1),
}
"""The masked product with a mask (batch, in, out), as people write it; the fastest form is the row."""

FORMS_OVER_TIME: dict[str, typing.Callable[[Tensor, Tensor, Tensor, Namespace], Tensor]] = {
    "matmul(x, w * mask)": lambda x, w, mask, xp: x @ (w * mask),
    "einsum('bti,io,bio->bto')": lambda x, w, mask, xp: xp.einsum("bti,io,bio->bto", x, w, mask),
    "einsum('bti,bio->bto', x, w * mask)": lambda x, w, mask, xp: xp.einsum("bti,bio->bto", x, w * mask),
}
"""The same for x (batch, time, in)."""


def _by_hand(backend: str, rate: float, form: str) -> Product:
    write, xp, kept = {**FORMS, **FORMS_OVER_TIME}[form], _namespace(backend), KEPT[backend]

    def of_operands(x: Tensor, w: Tensor, key: Tensor) -> Tensor:
        mask = kept((x.shape[0], *w.shape), 1 - rate, key, x.dtype)
        return write(x, w / (1 - rate), mask, xp)

    return of_operands


def _namespace(backend: str) -> Namespace:
    """The framework's own `einsum` and `sum`."""
    if backend == "tensorflow":
        import tensorflow as tf

        return types.SimpleNamespace(einsum=tf.einsum, sum=tf.reduce_sum)
    if backend == "numpy":
        return types.SimpleNamespace(einsum=functools.partial(np.einsum, optimize=True), sum=np.sum)
    return importlib.import_module({"jax": "jax.numpy", "torch": "torch"}[backend])


def _kept_numpy(shape: tuple[int, ...], keep: float, key: Tensor, dtype: typing.Any) -> Tensor:
    return (np.random.default_rng(key).random(shape, "float32") < keep).astype(dtype)


def _kept_torch(shape: tuple[int, ...], keep: float, key: Tensor, dtype: typing.Any) -> Tensor:
    import torch

    return torch.empty(shape, dtype=dtype, device=key.device).bernoulli_(keep)


def _kept_jax(shape: tuple[int, ...], keep: float, key: Tensor, dtype: typing.Any) -> Tensor:
    import jax

    return jax.random.bernoulli(jax.random.fold_in(jax.random.key(0), key[1]), keep, shape).astype(dtype)


def _kept_tensorflow(shape: tuple[int, ...], keep: float, key: Tensor, dtype: typing.Any) -> Tensor:
    import tensorflow as tf

    return tf.cast(tf.random.uniform(shape) < keep, dtype)


KEPT = {"numpy": _kept_numpy, "torch": _kept_torch, "jax": _kept_jax, "tensorflow": _kept_tensorflow}
"""Which entries are kept, 1 or 0, from each framework's own generator."""
