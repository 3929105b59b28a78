"""What noise adds to the expected loss, beside its second-order prediction (arXiv 2512.12663, equations 7 to 11).

A small network is trained on handwritten digits without noise. Then its kernels are multiplied by noise m, E[m] = 1 and
Var m = v, and E[L] - L over many draws stands beside

    v / 2 * sum over entries of m of the second derivative of L, at m = 1,

v / 2 times the trace of the Hessian in m, exactly and by Hutchinson's estimate. Dropout, DropConnect and PerNodeDrop
are one product here, which differ by what shares an entry of m. For Bernoulli noise a prediction of first order in the
rate stands beside it: the rate times the sum over entries of what L changes by if one is dropped, the others scaled.

    python benchmarks/expected_loss/run.py            what results.json lacks, then the report; about ten minutes
    python benchmarks/expected_loss/run.py --report   the report and the figure alone
"""

import argparse
import collections
import functools
import math
import os
import pathlib
import statistics

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import keras
import numpy as np

import pernodedrop as pnd
from pernodedrop.report import figures
from pernodedrop.report.environment import describe, environment
from pernodedrop.report.results import Results
from pernodedrop.report.table import as_markdown
from pernodedrop.study import datasets, networks

FOLDER = pathlib.Path(__file__).parent
SHARING = {"Dropout": "out", "DropConnect": "sample+time", "PerNodeDrop": "time"}
NOISES = {"Gaussian": pnd.Gaussian(0.5), "Bernoulli": pnd.Bernoulli(0.5)}
VARIANCES = [1 / 256, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1, 4]  # rates from 0.004 to 0.8
ACTIVATIONS = ("tanh", "relu")
SEEDS = 3
WIDTH = 32
DRAWS = {"Dropout": 400, "DropConnect": 2000, "PerNodeDrop": 100}  # of masks for the whole training set
PROBES = 100
WITHIN = 0.1


def trained(activation, seed, data, epochs=25, width=WIDTH):
    """Kernels and biases of the network of the study `digits`, trained as there."""
    keras.utils.set_random_seed(seed)

    def slot(units, activation=activation):
        return [keras.layers.Dense(units, activation)]

    model = networks.get("digits")(slot, width=width)
    model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy")
    model.fit(*data, batch_size=30, epochs=epochs, verbose=0)
    arrays = [jnp.asarray(weight) for weight in model.get_weights()]
    return list(zip(arrays[::2], arrays[1::2], strict=True))


def loss(weights, product, activation, x, y):
    """The mean crossentropy; `product(place, x, kernel)` multiplies by every kernel but the last."""
    x = jnp.asarray(x).reshape(len(x), -1)
    for place, (kernel, bias) in enumerate(weights[:-1]):
        x = getattr(jax.nn, activation)(product(place, x, kernel) + bias)
    kernel, bias = weights[-1]
    return -jnp.mean(jax.nn.log_softmax(x @ kernel + bias)[jnp.arange(len(y)), y])


def drawn(weights, regularizer, noise, params, call, activation, x, y):
    """The loss with the noise of one call and of some numbers, as the library has it."""

    def product(place, x, kernel):
        key = jnp.stack([jnp.uint32(place + 1), call])
        return pnd.ops.masked_dense(x, kernel, noise, key, sharing=SHARING[regularizer], params=params)

    return loss(weights, product, activation, x, y)


def given(weights, masks, activation, x, y):
    """The loss with masks (batch or 1, in, out or 1) that are given, one a kernel."""

    def product(place, x, kernel):
        mask = masks[place]
        if mask.shape[2] == 1:
            return (x * mask[:, :, 0]) @ kernel
        return x @ (kernel * mask[0]) if len(mask) == 1 else jnp.einsum("bi,bij->bj", x, kernel * mask)

    return loss(weights, product, activation, x, y)


def ones(weights, regularizer, batch):
    """Masks without noise, in the shape of the regularizer's."""
    rows = 1 if regularizer == "DropConnect" else batch
    return [jnp.ones((rows, len(w), 1 if regularizer == "Dropout" else w.shape[1])) for w, _ in weights[:-1]]


def each_entry(of_mask, masks):
    """Sums over entries, with the loss as a function of the masks: (second derivatives, changes if one is dropped).

    What is dropped is 0, while all others are scaled by 1 / (1 - rate): to first order that adds the gradient. Samples
    do not touch each other, so that an entry of Dropout may move in all samples at once.
    """
    start = of_mask(masks)

    def along(place, index):
        def line(t):
            moved = masks[place].at[:, index // masks[place].shape[2], index % masks[place].shape[2]].add(t)
            return of_mask([*masks[:place], moved, *masks[place + 1 :]])

        slope, curvature = jax.jvp(lambda t: jax.jvp(line, (t,), (1.0,))[1], (0.0,), (1.0,))
        return curvature, line(-1.0) - start + slope

    found = np.zeros(2)
    for place, mask in enumerate(masks):
        entries = jnp.arange(mask.shape[1] * mask.shape[2])
        parts = jax.jit(functools.partial(jax.lax.map, functools.partial(along, place), batch_size=64))(entries)
        found += [np.asarray(part, "float64").sum() for part in parts]
    return found


def hutchinson(of_mask, masks, probes, seed=0):
    """z . Hz for random signs z, whose mean is the trace of the Hessian H (Hutchinson 1990), as an array (probes,)."""

    def probe(key):
        keys = jax.random.split(key, len(masks))
        z = [jax.random.rademacher(k, mask.shape, "float32") for k, mask in zip(keys, masks, strict=True)]
        _, product = jax.jvp(jax.grad(of_mask), (masks,), (z,))
        return sum(jnp.vdot(a, b) for a, b in zip(z, product, strict=True))

    return np.asarray(jax.jit(lambda keys: jax.lax.map(probe, keys))(jax.random.split(jax.random.key(seed), probes)))


def mean(values):
    """A mean and its standard error."""
    values = np.asarray(values, "float64")
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def measure(weights, regularizer, noise, activation, x, y, draws, probes=PROBES, variances=VARIANCES, seed=0):
    """What there is to say of one network with one kind of noise, as a dict of plain values."""
    masks = ones(weights, regularizer, len(x))
    of_mask = functools.partial(given, weights, activation=activation, x=x, y=y)
    start = float(of_mask(masks))
    # the loss is the mean of the samples': whether they share a mask is nothing to its expectation
    shared = {"PerNodeDrop": "DropConnect"}.get(regularizer, regularizer)
    trace, dropped = each_entry(of_mask, ones(weights, shared, len(x)))

    @jax.jit
    def many(params, calls):
        one = functools.partial(drawn, weights, regularizer, NOISES[noise], params, activation=activation, x=x, y=y)
        return jax.lax.map(one, calls)

    points = []
    for variance in variances:
        params = NOISES[noise].with_rate(variance / (1 + variance)).params()
        values = np.asarray(many(params, jnp.arange(draws, dtype="uint32"))) - start
        added, error = mean(values)
        points.append({"variance": variance, "draws": draws, "added": added, "error": error})
    estimate, error = mean(hutchinson(of_mask, masks, probes, seed))
    return {
        "loss": start,
        "trace": float(trace),
        "hutchinson": {"probes": probes, "trace": estimate, "error": error},
        "dropped": float(dropped),
        "points": points,
    }


def run(path):
    """Measure what the file lacks."""
    found = Results(path)
    found.check_environment("jax", environment("jax"))
    x, y = datasets.load("digits")[0]
    for seed in range(SEEDS):
        for activation in ACTIVATIONS:
            what = [(of, noise) for of in SHARING for noise in NOISES]
            keys = {one: f"{activation}, network {seed}, {one[0]}, {one[1]}" for one in what}
            missing = [one for one in what if not found.has("records", keys[one])]
            weights = trained(activation, seed, (x, y)) if missing else None
            for regularizer, noise in missing:
                about = {"activation": activation, "seed": seed, "regularizer": regularizer, "noise": noise}
                figures = measure(weights, regularizer, noise, activation, x, y, DRAWS[regularizer], seed=seed)
                found.add("records", {"key": keys[regularizer, noise], **about, **figures})
                print(keys[regularizer, noise], flush=True)


def predicted(record, variance, order="second"):
    """What the expansion says that noise adds, of second order in it or of first order in the rate."""
    return variance / 2 * record["trace"] if order == "second" else variance / (1 + variance) * record["dropped"]


def grouped(records):
    """The records of the networks of one activation, by regularizer and noise."""
    groups = collections.defaultdict(list)
    for record in records:
        groups[record["activation"], record["regularizer"], record["noise"]].append(record)
    return groups


def ratios(records, order="second"):
    """From each variance to what noise added, as a multiple of the prediction: of each network."""
    found = collections.defaultdict(list)
    for record in records:
        for point in record["points"]:
            found[point["variance"]].append(point["added"] / predicted(record, point["variance"], order))
    return found


def reach(of):
    """The highest variance up to which the mean ratio stays within `WITHIN` of 1, or None."""
    good = None
    for variance, values in of.items():
        if abs(statistics.fmean(values) - 1) > WITHIN:
            break
        good = variance
    return good


def draws_needed(records, share=0.05):
    """From each variance to how many draws bring the standard error to a share of what noise adds: the median."""
    found = collections.defaultdict(list)
    for record in records:
        for point in record["points"]:
            found[point["variance"]].append(point["draws"] * (point["error"] / (share * point["added"])) ** 2)
    return {variance: max(2, math.ceil(statistics.median(values))) for variance, values in found.items()}


def pairs(records, one, other):
    """Pairs of records of two regularizers, alike in all else."""
    by = {(r["activation"], r["noise"], r["seed"], r["regularizer"]): r for r in records}
    return [(by[*what, one], by[*what, other]) for *what, regularizer in by if regularizer == one]


def comparisons(records):
    """PerNodeDrop beside DropConnect, and Dropout beside both, in words."""
    apart, spreads = [], []
    for ours, shared in pairs(records, "PerNodeDrop", "DropConnect"):
        for one, other in zip(ours["points"], shared["points"], strict=True):
            apart.append((one["added"] - other["added"]) / math.hypot(one["error"], other["error"]))
            spreads.append(other["error"] / one["error"] * math.sqrt(other["draws"] / one["draws"]))
    traces = [one["trace"] / other["trace"] for one, other in pairs(records, "Dropout", "DropConnect")]
    square = math.sqrt(statistics.fmean(one**2 for one in apart))
    return (
        f"PerNodeDrop's expected loss differs from DropConnect's by {square:.2f} standard errors (root mean square of "
        f"{len(apart)} points, {max(map(abs, apart)):.1f} at most; 1 is what equal ones have; points of one network "
        "share their draws). From draw to draw the loss of the 300 samples varies "
        f"{statistics.median(spreads):.1f} times as much with DropConnect's noise (median of these points), since they "
        f"have one mask. Dropout of the same variance has a trace {min(traces):.1f} to {max(traces):.1f} times theirs."
    )


def ratio_lines(groups, activation, orders):
    """A table of mean ratios with their standard deviations over networks; the last line is how far it holds."""
    columns = [(*key[1:], order) for key in groups for order in orders[key[2]] if key[0] == activation]
    of = [ratios(groups[activation, regularizer, noise], order) for regularizer, noise, order in columns]
    names = {"second": "", "rate": ", by its rate"}
    lines = [["variance", "rate", *(f"{who}{names[order]}" for who, _, order in columns)]]
    for v in VARIANCES:
        cells = [f"{statistics.fmean(one[v]):.2f} ± {statistics.stdev(one[v]):.2f}" for one in of]
        lines.append([f"{v:.2g}", f"{v / (1 + v):.2g}", *cells])
    limits = [reach(one) for one in of]
    return [*lines, ["within 10 % up to", "", *("nowhere" if v is None else f"{v:.2g}" for v in limits)]]


def report(found):
    """The report as Markdown."""
    records, groups = found["records"], grouped(found["records"])
    blocks = [
        "What noise adds, as a multiple of the second-order prediction (by its rate: of the one of first order in the "
        "rate): means and standard deviations over networks."
    ]
    for noise, orders in (("Gaussian", ["second"]), ("Bernoulli", ["second", "rate"])):
        for activation in ACTIVATIONS:
            some = {key: own for key, own in groups.items() if key[2] == noise}
            lines = ratio_lines(some, activation, {noise: orders})
            blocks.append(f"### {noise} noise, {activation}\n\n{as_markdown(lines)}")
    needed = {key: draws_needed(own) for key, own in groups.items() if key[0] == "tanh" and key[2] == "Gaussian"}
    lines = [["variance", *(who for _, who, _ in needed)]]
    lines += [[f"{v:.2g}", *(f"{of[v]:,}" for of in needed.values())] for v in VARIANCES]
    blocks.append(f"### Draws for a standard error of 5 %, Gaussian noise, tanh\n\n{as_markdown(lines)}")
    lines = [["regularizer", "networks", "mean error of the estimate", "the same in its standard errors"]]
    for who in SHARING:
        own = [record for record in records if record["regularizer"] == who and record["noise"] == "Gaussian"]
        off = [abs(record["hutchinson"]["trace"] - record["trace"]) for record in own]
        share = statistics.fmean(one / record["trace"] for one, record in zip(off, own, strict=True))
        errors = statistics.fmean(one / record["hutchinson"]["error"] for one, record in zip(off, own, strict=True))
        lines.append([who, str(len(own)), f"{share:.1%}", f"{errors:.2f}"])
    blocks.append(f"### Hutchinson's estimate, {PROBES} probes, beside the exact trace\n\n{as_markdown(lines)}")
    blocks.append(comparisons(records))
    losses = [record["loss"] for record in records]
    blocks.append(
        f"{len({r['seed'] for r in records})} networks of each activation, 64-{WIDTH}-{WIDTH}-10, whose training loss "
        f"without noise is {min(losses):.3f} to {max(losses):.3f}; noise on all kernels but the last. Draws of masks "
        f"for the 300 training samples: {', '.join(f'{who} {n:,}' for who, n in DRAWS.items())}.  \n"
        f"{describe(found['environments']['jax'])}"
    )
    return "# What noise adds to the expected loss\n\n" + "\n\n".join(blocks) + "\n"


def draw_figure(found, path):
    """Ratios by variance, a panel for each activation and noise."""
    from matplotlib.figure import Figure

    groups = grouped(found["records"])
    figure = Figure(figsize=(figures.WIDTH, 4.6), layout="constrained")
    panels = figure.subplots(len(ACTIVATIONS), len(NOISES), sharex=True, sharey=True)
    looks = dict(zip(SHARING, (("o", figures.ORANGE), ("s", figures.GREEN), ("^", figures.BLUE)), strict=True))
    for row, activation in zip(panels, ACTIVATIONS, strict=True):
        for axes, noise in zip(row, NOISES, strict=True):
            axes.axhspan(1 - WITHIN, 1 + WITHIN, color=figures.GREY, alpha=0.2, lw=0)
            axes.axhline(1, color=figures.BLACK, lw=0.8)
            for who, (marker, colour) in looks.items():
                of = ratios(groups[activation, who, noise])
                means = [statistics.fmean(values) for values in of.values()]
                ends = [statistics.stdev(values) for values in of.values()]
                axes.errorbar(of.keys(), means, ends, fmt=f"{marker}-", color=colour, ms=4, lw=1.2, label=who)
            axes.set(xscale="log", yscale="log", title=f"{noise}, {activation}")
            axes.set(ylim=(0.75, 5), yticks=[1, 2, 4], yticklabels=["1", "2", "4"])
            axes.minorticks_off()
            axes.title.set_fontsize(9)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("variance of the noise")
    for axes in panels[:, 0]:
        axes.set_ylabel("measured / predicted")
    figures.legend(figure, panels[0, 0])
    figures.save(figure, path)


def main():
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", action="store_true", help="the report and the figure alone")
    parser.add_argument("--folder", type=pathlib.Path, default=FOLDER, help="where results.json is, or goes")
    arguments = parser.parse_args()
    path = arguments.folder / "results.json"
    if not arguments.report:
        run(path)
    found = Results.read(path)
    (arguments.folder / "report.md").write_text(report(found), encoding="utf-8")
    draw_figure(found, arguments.folder / "figure.png")


if __name__ == "__main__":
    main()
