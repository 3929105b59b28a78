"""A picture of a noise: its density, a slice of its mask, its mean and spread against the rate."""

import math

import matplotlib.pyplot as plt
import numpy as np

from pernodedrop import checks
from pernodedrop import ops as own_ops
from pernodedrop.testing import evaluate, integration
from pernodedrop.testing.variation import at_rates, has_rate

RATES = [n / 10 for n in range(10)]
SLICE = (3, 24, 16)  # samples, inputs, outputs
SHOWN = 4  # standard deviations on both sides of the mean


def draw(noise, path):
    """Draw a noise as NumPy makes it, and save the picture.

    Args:
        noise: a `pernodedrop.Noise`.
        path: of the file; its ending says the format.
    """
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained", width_ratios=(4, 5, 4))
    figure.suptitle(f"{noise!r}: mean {noise.mean:g}, variance {noise.variance:.4g}")
    _density(axes[0], noise)
    _slice(axes[1], noise)
    (_against_rate if has_rate(noise) else _against_uniform)(axes[2], noise)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def check_format(path):
    """Raise a ValueError unless a picture can be saved under this name."""
    formats = sorted(plt.figure().canvas.get_supported_filetypes())
    plt.close()
    checks.check_choice(path.suffix[1:], "picture", formats)


def _shown(noise):
    """The range of entries that is drawn."""
    spread = math.sqrt(noise.variance) or 1.0
    reach = evaluate.moments(noise, "numpy").reach
    return max(1 - reach, noise.mean - SHOWN * spread), min(1 + reach, noise.mean + SHOWN * spread)


def _density(axis, noise):
    low, high = _shown(noise)
    edges = np.linspace(low - 1e-6, high + 1e-6, 101)
    counts, total = np.zeros(100), 0
    for words in integration.chunks(noise):
        m = evaluate.entries(noise, "numpy", words)
        counts += np.histogram(m, edges)[0]
        total += m.size
    width = edges[1] - edges[0]
    axis.bar(edges[:-1], counts / total, width, align="edge", color="tab:blue")
    axis.axvline(noise.mean, color="tab:red")
    axis.set(title="density, and the declared mean", xlabel="entry", ylabel=f"probability per {width:.2g}")


def _slice(axis, noise):
    low, high = _shown(noise)
    mask = own_ops.sample_mask(noise, (0, 0), SLICE, backend="numpy")
    samples, inputs, outputs = SLICE
    gap = np.full((inputs, 1), np.nan)
    row = np.concatenate([part for m in mask for part in (m, gap)][:-1], axis=1)
    picture = axis.imshow(row, vmin=low, vmax=high, cmap="viridis", interpolation="nearest")
    axis.set(title=f"mask of {samples} samples, key (0, 0)", ylabel="in", yticks=[])
    middles = [n * (outputs + 1) + (outputs - 1) / 2 for n in range(samples)]
    axis.set_xticks(middles, [f"sample {n}: out" for n in range(samples)])
    axis.figure.colorbar(picture, ax=axis, shrink=0.8, label="entry")


def _against_rate(axis, noise):
    declared = at_rates(noise, RATES)
    rates = [noise.rate for noise in declared]
    observed = [evaluate.moments(noise, "numpy") for noise in declared]
    for moments, style, word in ((observed, "o", "observed"), (declared, "-", "declared")):
        axis.plot(rates, [one.mean for one in moments], style, color="tab:red", label=f"mean, {word}")
        spreads = [math.sqrt(one.variance) for one in moments]
        axis.plot(rates, spreads, style, color="tab:blue", label=f"standard deviation, {word}")
    axis.set(title="mean and spread against the rate", xlabel="rate", ylim=(0, None))
    axis.legend()


def _against_uniform(axis, noise):
    words = (np.arange(1024, dtype="uint32") << np.uint32(22)) + np.uint32(2**21)
    others = [np.full(1024, 2**31, "uint32")] * (noise.lanes - 1)
    m = evaluate.entries(noise, "numpy", np.stack([words, *others]))
    axis.plot((np.arange(1024) + 0.5) / 1024, m, ".", markersize=2, color="tab:blue")
    axis.axhline(noise.mean, color="tab:red")
    which = "uniform number" if noise.lanes == 1 else "first uniform number, the others 1/2"
    axis.set(title="entry against its uniform number", xlabel=which, ylabel="entry")
