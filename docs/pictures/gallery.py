"""Draws the pictures of the gallery: what each regularizer multiplies by, in four samples of a batch.

`python docs/pictures/gallery.py` writes gallery/<name>.png beside itself, on the backend that KERAS_BACKEND names.
A panel is a sample: in x out of a kernel, rows x columns of a feature map, or whatever `PANELS` says of a method.
"""

import os
import pathlib

os.environ.setdefault("KERAS_BACKEND", "numpy")

import keras
import matplotlib
import numpy as np
from matplotlib import image

import pernodedrop as pnd

FOLDER = pathlib.Path(__file__).parent / "gallery"
SAMPLES, IN, OUT = 4, 12, 16
CELL, GAP = 7, 10  # pixels of an entry, and between panels
KEY = (1, 0)


def host(tensor):
    """A tensor as an array."""
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def dense(outputs=OUT):
    """A layer whose kernel is all ones, so that its output shows the multipliers."""
    return keras.layers.Dense(outputs, use_bias=False, kernel_initializer="ones")


def of_kernel(layer, apart=False):
    """The multipliers of a kernel, (sample, in, out): a row of the identity picks out a row of them.

    A layer that has no mask and draws its outputs themselves has rows `apart`, of a sample each.
    """
    rows = np.eye(IN, dtype="float32")
    if not layer.built:
        layer.build((IN, IN))
    ids = np.arange(SAMPLES * IN).reshape(SAMPLES, IN)
    ids = [None] * SAMPLES if "sample" in layer.mask.sharing else ids if apart else ids // IN
    panels = [layer(rows, training=True, key=KEY, sample_ids=each) for each in ids]
    return np.stack([host(panel) for panel in panels])


def of_map(layer, *shape):
    """What a layer makes of ones, (sample, *shape)."""
    return host(layer(np.ones((SAMPLES, *shape), "float32"), training=True, key=KEY))


def drawn(panels):
    """Panels (panel, row, column) side by side, as RGBA pixels: 0 blue, 1 pale, 2 and more red; gaps are clear."""
    colours = matplotlib.colormaps["coolwarm"](np.clip(panels / 2, 0, 1))
    colours = colours.repeat(CELL, axis=1).repeat(CELL, axis=2)
    gap = np.zeros((colours.shape[1], GAP, 4))
    parts = [part for panel in colours for part in (panel, gap)][:-1]
    return np.round(np.concatenate(parts, axis=1) * 255).astype("uint8")


def wrapped(wrapper, *arguments, apart=False, **kwargs):
    """What makes the panels of a wrapper."""
    return lambda: of_kernel(wrapper(dense(), *arguments, seed=1, **kwargs), apart)


def stood(layer, *arguments, shape=(IN, OUT), **kwargs):
    """What makes the panels of a layer that stands between others."""
    return lambda: of_map(layer(*arguments, seed=1, **kwargs), *shape)


def drawn_to_rising_gradients():
    """DynamicDropConnect where the last gradient grows with the output."""
    layer = pnd.DynamicDropConnect(dense(), seed=1)
    layer.build((IN, IN))
    rising = np.tile(np.linspace(0, 1, OUT), (IN, 1))
    layer.gradient.assign(np.stack([rising, -rising]))
    return of_kernel(layer)


def drawn_with_rising_variances():
    """SparseVariationalDropout where the variance of a weight grows with its output."""
    layer = pnd.SparseVariationalDropout(dense(), examples=1, seed=1)
    layer.build((IN, IN))
    layer.log_variance.assign(np.tile(np.linspace(-8, 2, OUT), (IN, 1)))
    return of_kernel(layer, apart=True)


def of_query():
    """The query projection of an attention layer, 2 heads of 8."""
    attention = keras.layers.MultiHeadAttention(2, OUT // 2, use_bias=False, kernel_initializer="ones")
    layer = pnd.NoisyAttention(attention, pnd.PerNodeDrop, rate=0.3, seed=1)
    layer.build((SAMPLES, IN, IN), (SAMPLES, IN, IN))
    rows = np.tile(np.eye(IN, dtype="float32"), (SAMPLES, 1, 1))
    return host(layer.parts["query"](rows, training=True)).reshape(SAMPLES, IN, OUT)


def of_weights():
    """The weights of one head, queries down and keys across."""
    attention = keras.layers.MultiHeadAttention(1, OUT)
    layer = pnd.AttentionDropout(attention, rate=0.3, seed=1)
    layer.build((SAMPLES, IN, IN), (SAMPLES, OUT, IN))
    return host(layer.parts["weights"](np.ones((SAMPLES, 1, IN, OUT), "float32"), training=True))[:, 0]


def of_standout():
    """Standout behind a kernel of normal numbers, on inputs that are the same in all samples, as chances and hits."""
    layer = pnd.Standout(keras.layers.Dense(OUT, use_bias=False), seed=1)
    rows = np.random.default_rng(3).normal(size=(IN, IN)).astype("float32")
    layer.build(rows.shape)
    layer.layer.kernel.assign(np.random.default_rng(4).normal(size=(IN, OUT)))
    panels = [layer(rows, training=True, key=(1, call), sample_ids=np.arange(IN)) for call in range(SAMPLES)]
    return np.stack([host(panel) for panel in panels]) / host(layer.layer(rows))


def of_rising_rate():
    """ScheduledDropPath at the start, at a third and two thirds of the rise, and after it; rows are samples."""
    layer = pnd.ScheduledDropPath(0.8, steps=30, seed=1)
    ones = np.ones((IN, OUT), "float32")
    return np.stack([host(layer(ones, training=True, key=(1, call))) for call in (0, 10, 20, 30)])


def of_tabu():
    """TabuDropout in four steps, one after the other."""
    layer = pnd.TabuDropout(0.3, tenure=2, seed=1)
    ones = np.ones((1, IN * OUT), "float32")
    return np.stack([host(layer(ones, training=True)).reshape(IN, OUT) for _ in range(SAMPLES)])


def of_depth():
    """StochasticDepth of a shortcut and a branch of one half each, in four batches."""
    half, layer = np.full((1, IN, OUT), 0.5, "float32"), pnd.StochasticDepth(0.5, seed=1)
    return np.concatenate([host(layer([half, half], training=True, key=(1, call))) for call in range(SAMPLES)])


def of_channels(layer):
    """Two channels of two samples of feature maps."""
    maps = of_map(layer, IN, OUT, 2)
    return np.concatenate([np.moveaxis(sample, -1, 0) for sample in maps[:2]])


def of_injection():
    """NoiseInjection on outputs of one, in a layer of positions, each of which has a number of its own."""
    layer = pnd.NoiseInjection(dense(), stddev=0.5, seed=1)
    rows = np.full((SAMPLES, IN, IN), 1 / IN, "float32")
    layer.build(rows.shape)
    layer.noise_kernel.assign(np.random.default_rng(4).normal(size=(1, OUT)))
    return host(layer(rows, training=True, key=KEY))


def of_members():
    """The four masks of Masksembles, one below the other in each sample's panel."""
    layer = pnd.Masksembles(members=4, scale=2.0, seed=1)
    return host(layer(np.ones((SAMPLES, IN, OUT), "float32")))


def of_persistence():
    """Dropout of one sequence at rising persistence, positions down: an entry is that of before, or is drawn anew."""
    ones = np.ones((1, 2 * IN, OUT), "float32")
    layers = [pnd.Dropout(0.3, persistence=persistence, seed=1) for persistence in (0.0, 0.5, 0.9, 1.0)]
    return np.concatenate([host(layer(ones, training=True, key=KEY)) for layer in layers])


def of_states():
    """How old the states of one sequence are at rising rates of Zoneout, steps down: red is new, blue 8 steps old."""
    clock = {"kernel_initializer": "ones", "recurrent_initializer": "zeros", "activation": None, "use_bias": False}
    steps = np.arange(2 * IN, dtype="float32")
    layers = [
        pnd.Zoneout(keras.layers.SimpleRNN(OUT, return_sequences=True, **clock), rate, seed=1)
        for rate in (0.1, 0.3, 0.6, 0.9)
    ]
    states = np.concatenate([host(layer(steps[None, :, None], training=True, key=KEY)) for layer in layers])
    return 2 - (steps[:, None] - states) / 4


PANELS = {
    "per_node_drop": wrapped(pnd.PerNodeDrop, 0.3),
    "per_node_drop_gaussian": wrapped(pnd.PerNodeDrop, 0.3, "gaussian", method="materialized"),
    "per_node_drop_partial": wrapped(pnd.PerNodeDrop, noise=pnd.PartialGaussian(0.3, stddev=0.5)),
    "per_node_drop_uniform": wrapped(pnd.PerNodeDrop, noise=pnd.Uniform(half_width=0.5)),
    "per_node_drop_fixed": wrapped(pnd.PerNodeDrop, 0.3, regime="fixed"),
    "per_node_drop_bank": wrapped(pnd.PerNodeDrop, 0.3, regime="bank", bank_size=2),
    "drop_connect": wrapped(pnd.DropConnect, 0.3),
    "dynamic_drop_connect": drawn_to_rising_gradients,
    "shakeout": wrapped(pnd.Shakeout, 0.3, c=0.3),
    "variational_dropout": wrapped(pnd.VariationalDropout, examples=1, alpha=0.3, apart=True),
    "sparse_variational_dropout": drawn_with_rising_variances,
    "flipout": wrapped(pnd.Flipout, 0.3, "gaussian"),
    "standout": of_standout,
    "noise_injection": of_injection,
    "noisy_attention": of_query,
    "attention_dropout": of_weights,
    "zoneout": of_states,
    "dropout": stood(pnd.Dropout, 0.3),
    "dropout_persistence": of_persistence,
    "gaussian_dropout": stood(pnd.GaussianDropout, 0.3),
    "alpha_dropout": stood(pnd.AlphaDropout, 0.3),
    "spatial_dropout": lambda: of_channels(pnd.SpatialDropout2D(0.5, seed=1)),
    "drop_block": lambda: of_channels(pnd.DropBlock2D(0.3, block_size=3, seed=1)),
    "drop_path": stood(pnd.DropPath, 0.5),
    "scheduled_drop_path": of_rising_rate,
    "stochastic_depth": of_depth,
    "masksembles": of_members,
    "tabu_dropout": of_tabu,
}


def main():
    """Write all pictures."""
    FOLDER.mkdir(exist_ok=True)
    for name, panels in PANELS.items():
        image.imsave(FOLDER / f"{name}.png", drawn(panels()))


if __name__ == "__main__":
    main()
