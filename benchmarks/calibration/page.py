"""docs/calibration.md, report.md and the figures, made of records.jsonl: `python -m benchmarks.calibration.page`."""

import dataclasses
import statistics

import numpy as np
from matplotlib.figure import Figure

from benchmarks.calibration import run
from benchmarks.calibration.run import MEAN, PLAIN, SCALED, TASKS, WAYS
from pernodedrop.report import figures
from pernodedrop.report.environment import describe
from pernodedrop.report.table import as_markdown
from pernodedrop.study import plan, variants
from pernodedrop.study.statistics import compare, corrected, paired
from pernodedrop.study.storage import Records

PAGE = run.FOLDER.parent.parent / "docs" / "calibration.md"
NONE, DROPOUT, MC_DROPOUT = ("none", PLAIN), ("dropout", PLAIN), ("dropout", MEAN)
BASELINES = (NONE, DROPOUT, MC_DROPOUT)
OWN = {"deep": f"deep ensemble of {run.MEMBERS}", "snapshots": f"{run.MEMBERS} snapshots"}
SIGNS = {"less": "−", "more": "+", "tie": "="}
NAMES = {"mnist": "MNIST", "cifar10": "CIFAR-10 (JPEG)"}
SHOWN = {
    NONE: (figures.BLACK, ":"),
    ("none", SCALED): (figures.BLACK, "-"),
    MC_DROPOUT: (figures.ORANGE, "-"),
    ("drop_connect", MEAN): (figures.AMBER, "-"),
    ("per_node_drop", MEAN): (figures.BLUE, "-"),
    ("per_node_drop_gaussian", MEAN): (figures.BLUE, "--"),
    ("dynamic_drop_connect", MEAN): (figures.GREEN, "--"),
    ("masksembles", MEAN): (figures.GREY, "--"),
    ("deep", MEAN): (figures.GREEN, "-"),
}
"""The arms of the figure of strengths, with their colours and lines."""

LEAST = 10  # images in a bar


def title(arm):
    """What readers call a variant that predicts some way."""
    variant, way = arm
    name = OWN[variant] if variant in OWN else variants.get(variant).title
    if way == SCALED:
        return f"{name}, temperature"
    return f"{name}, {run.PASSES} passes" if way == MEAN and PLAIN in WAYS[variant] else name


class Found:
    """What the records of a task say.

    Attributes:
        rates: from each arm, a variant and its way to predict, to its rate.
        seeds: those that all arms have.
        columns: from the title of each figure to (the parts whose mean it is, its name in the records).
        main: the titles of those that the verdict counts.
    """

    def __init__(self, name, records):
        self.name, self.task = name, TASKS[name]
        self.records = [record for record in records if record["study"] == name]
        first = next(record for record in self.records if record["stage"] == plan.CONFIRM)
        of = dataclasses.replace(run.design(name), backend=first["backend"])
        chosen = {way: run.selected(of, self.records, way) for way in (PLAIN, MEAN)}
        arms = [(variant, way) for variant, ways in WAYS.items() for way in ways]
        self.rates = {(variant, way): chosen.get(way, {}).get(variant) for variant, way in arms}
        self.of_seed = {arm: self._of_seed(arm) for arm in arms}
        self.seeds = sorted(set.intersection(*map(set, self.of_seed.values())))
        self.columns = {"error": (["clean"], "error"), "Brier": (["clean"], "brier")}
        conditions = {"clean": ["clean"], **{one: run.strengths(self.task, one) for one in self.task.corruptions}}
        for condition, parts in conditions.items():
            self.columns |= {f"NLL, {condition}": (parts, "nll"), f"ECE, {condition}": (parts, "ece")}
        self.columns["AUROC, entropy"] = ["unseen"], "auroc_entropy"
        self.columns["AUROC, disagreement"] = ["unseen"], "auroc_information"
        self.main = [column for column in self.columns if column not in ("error", "Brier", "AUROC, disagreement")]
        self.values = {column: self._values(*of) for column, of in self.columns.items()}
        self.against = {
            (baseline, column): self._against(baseline, values)
            for column, values in self.values.items()
            for baseline in BASELINES
        }

    def _of_seed(self, arm):
        """From each seed to the record of an arm."""
        wanted = plan.CONFIRM, arm[0], self.rates[arm]
        known = [record for record in self.records if (record["stage"], record["variant"], record["rate"]) == wanted]
        return {record["seed"]: record for record in known}

    def _values(self, parts, name):
        """From each arm that has a figure to its values by seed."""
        found = {arm: {seed: self.figure(arm, seed, parts, name) for seed in self.seeds} for arm in self.arms}
        return {arm: of for arm, of in found.items() if None not in of.values()}

    def _against(self, baseline, values):
        """From each arm to its comparison with a baseline."""
        if baseline not in values:
            return {}
        titles = {title(arm): arm for arm in values}
        losses = {name: values[arm] for name, arm in titles.items()}
        return {titles[one.variant]: one for one in compare(losses, title(baseline))}

    @property
    def arms(self):
        return list(self.of_seed)

    def figure(self, arm, seed, parts, name):
        """One figure of a record, the mean of several parts; None where the arm has none such."""
        of = self.of_seed[arm][seed]["found"][arm[1]]
        return statistics.fmean(of[part][name] for part in parts) if name in of[parts[0]] else None

    def over_seeds(self, arm, part, name):
        """The mean over seeds of one figure of one part."""
        return statistics.fmean(self.figure(arm, seed, [part], name) for seed in self.seeds)

    def mean(self, arm, column):
        """The mean over seeds of a figure, or None."""
        of = self.values[column].get(arm)
        return None if of is None else statistics.fmean(of.values())

    def seconds(self, arm, what):
        """The median over seeds of the seconds of training, or of predicting 1,000 images."""
        return statistics.median(self.of_seed[arm][seed]["seconds"][what] for seed in self.seeds)


def found_in(records):
    """What there is of each task that has two seeds with all arms."""
    found = {}
    for name in TASKS:
        if any(record["study"] == name and record["stage"] == plan.CONFIRM for record in records):
            one = Found(name, records)
            if len(one.seeds) > 1:  # one has no chance to compare with
                found[name] = one
    return found


def number(value):
    """A figure in three digits, as tables have it."""
    return f"{value:#.3g}"


def cell(found, arm, column):
    """A mean, and in which direction it differs from no regularizer and from MC Dropout."""
    value = found.mean(arm, column)
    if value is None:
        return ""
    ones = [found.against[baseline, column].get(arm) for baseline in (NONE, MC_DROPOUT)]
    signs = "".join("·" if one is None else SIGNS.get(one.verdict, "?") for one in ones)
    return f"{number(value)}\N{NO-BREAK SPACE}{signs}"


def table(found, columns):
    """A row for each arm."""
    lines = [["", "rate", *columns]]
    for arm in found.arms:
        rate = found.rates[arm]
        lines.append([title(arm), "" if rate is None else f"{rate:g}", *(cell(found, arm, one) for one in columns)])
    return as_markdown(lines)


def cost(found):
    """What each arm takes."""
    lines = [["", "training, s", "1,000 images, s"]]
    for arm in found.arms:
        lines.append([title(arm), f"{found.seconds(arm, 'training'):.1f}", f"{found.seconds(arm, arm[1]):.3f}"])
    return as_markdown(lines)


def differences(found):
    """All comparisons in numbers, a table for each figure and baseline."""
    blocks = [f"## {NAMES[found.name]}"]
    for column in found.columns:
        for baseline in BASELINES:
            lines = [["", "difference", "95 % interval", "p (Holm)", "", "detectable"]]
            for arm, one in found.against[baseline, column].items():
                if one.interval is None or one.p_holm is None:
                    continue
                low, high = one.interval
                numbers = [f"{one.difference:+.4f}", f"{low:+.4f} to {high:+.4f}", f"{one.p_holm:.2g}"]
                lines.append([title(arm), *numbers, one.verdict, f"{one.detectable:.4f}"])
            if len(lines) > 1:
                blocks.append(f"### {column}, against {title(baseline)}\n\n{as_markdown(lines)}")
    return "\n\n".join(blocks)


def strengths_figure(found):
    """NLL and ECE against the strength of each corruption."""
    corruptions = list(found.task.corruptions)
    figure = Figure(figsize=(7.2, 2.6 * len(corruptions) + 1.2), layout="constrained")
    panels = figure.subplots(len(corruptions), 2, sharex=True, squeeze=False)
    for row, corruption in zip(panels, corruptions, strict=True):
        parts = ["clean", *run.strengths(found.task, corruption)]
        for axes, name in zip(row, ("nll", "ece"), strict=True):
            for arm, (colour, line) in SHOWN.items():
                means = [found.over_seeds(arm, part, name) for part in parts]
                axes.plot(range(len(parts)), means, line, color=colour, lw=1.5, marker="o", ms=3, label=title(arm))
            axes.set(title=f"{name.upper()}, {corruption}", xticks=range(len(parts)))
            axes.title.set_fontsize(10)
            axes.set_ylim(bottom=0)
            axes.grid(color=figures.GREY, alpha=0.25, lw=0.7)
            axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[-1]:
        axes.set_xlabel("strength; 0: as it is")
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8
    )
    return figure


def reliability_figure(found):
    """How often the predicted class was right, by its probability, of all seeds together."""
    arms = [NONE, ("none", SCALED), MC_DROPOUT, ("per_node_drop", MEAN), ("dynamic_drop_connect", MEAN), ("deep", MEAN)]
    parts = ["clean", *(f"{one} 3" for one in found.task.corruptions)]
    figure = Figure(figsize=(1.7 * len(arms), 1.9 * len(parts) + 0.4), layout="constrained")
    panels = figure.subplots(len(parts), len(arms), sharex=True, sharey=True)
    for row, part in zip(panels, parts, strict=True):
        for axes, arm in zip(row, arms, strict=True):
            bars = sum(np.array(found.of_seed[arm][seed]["found"][arm[1]][part]["bars"]) for seed in found.seeds)
            filled = bars[0] >= LEAST
            samples, confidence, hits = bars[:, filled]
            low = np.flatnonzero(filled) / 10
            shares = samples / samples.sum()
            axes.bar(low, hits / samples, 0.1, align="edge", color=figures.BLUE, ec="white", alpha=0.75)
            axes.plot([0, 1], [0, 1], color=figures.BLACK, lw=0.8, ls="--")
            axes.scatter(confidence / samples, hits / samples, 4 + 60 * shares, color=figures.ORANGE, zorder=3)
            axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
            axes.spines[["top", "right"]].set_visible(False)
    for axes, arm in zip(panels[0], arms, strict=True):
        axes.set_title(title(arm).replace(", ", ",\n").replace("no regularizer", "none"), fontsize=8)
    for axes, part in zip(panels[:, 0], parts, strict=True):
        axes.set_ylabel(f"{part}\nshare right", fontsize=8)
    figure.supxlabel("probability of the predicted class", fontsize=9)
    return figure


def is_better(one, column):
    """Whether a comparison is better beyond chance, in the direction of its figure."""
    return one.verdict == ("more" if column.startswith("AUROC") else "less")


def differences_figure(found, baseline):
    """What each arm does to each figure, with intervals; a colour where that is beyond chance."""
    columns = [column for column in found.columns if baseline in found.values[column] and column != "Brier"]
    arms = [arm for arm in found.arms if arm != baseline]
    figure = Figure(figsize=(9, 2 * (0.17 * len(arms) + 0.6)), layout="constrained")
    panels = figure.subplots(2, -(-len(columns) // 2), sharey=True).ravel()
    for axes in panels[len(columns) :]:
        axes.set_visible(False)
    for axes, column in zip(panels, columns, strict=False):
        for place, arm in enumerate(arms):
            one = found.against[baseline, column].get(arm)
            if one is None or one.interval is None:
                continue
            beyond = figures.GREEN if is_better(one, column) else figures.ORANGE
            colour = figures.GREY if one.verdict == "tie" else beyond
            sides = [[one.difference - one.interval[0]], [one.interval[1] - one.difference]]
            axes.errorbar(one.difference, place, xerr=sides, fmt="o", color=colour, ms=3.5, lw=1.3)
        axes.axvline(0, color=figures.BLACK, lw=0.8)
        axes.set_title(column, fontsize=9)
        axes.locator_params(axis="x", nbins=3)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(axis="x", color=figures.GREY, alpha=0.25, lw=0.7)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0, labelsize=7.5)
    panels[0].set_yticks(range(len(arms)), [title(arm) for arm in arms])
    panels[0].set_ylim(len(arms) - 0.4, -0.6)
    return figure


FIGURES = {
    "strengths": strengths_figure,
    "reliability": reliability_figure,
    "differences": lambda found: differences_figure(found, MC_DROPOUT),
}


TEXT = """% Made by `python -m benchmarks.calibration.page` from benchmarks/calibration/records.jsonl.

# Calibration

{verdict}

Are probabilities what they say, also on images unlike those of training, and do they tell images of unknown classes?
Each network learns eight of ten classes and predicts without noise, as the mean of {passes} passes with noise ([MC
Dropout](guides/uncertainty.md)), or of the members of an ensemble. "Temperature" is no regularizer, with [one
number](guides/uncertainty.md#from-a-prediction-to-a-decision) found on validation images.

## What to use when

{advice}

{tasks}
{bayes}

{left}

## How it was measured

A regularizer has the rate with the least validation NLL of two seeds, of three or four rates; one for predictions
without noise and one for those with passes. On MNIST the highest, 0.8, was added when test results with the three
others were known: kinds of PerNodeDrop had been selected at the highest rate. PerNodeDrop Bernoulli at 0.3 was worse
than MC Dropout on turned images; its records are kept. Fresh seeds confirm a rate: each leaves out two other
classes{resampled}. All trainings have
as many epochs, the learning rate of snapshots starts anew {members} times in them, and the last weights are taken.
Differences are paired by seed, and count if they are beyond chance at 5 % after Holm's correction for all methods of a
column. ECE has 15 bins of equal width; AUROC is of telling the two unknown classes from the known ones, by the
predictive entropy or by the disagreement of passes (mutual information). Seconds are of one core of a busy machine: CPU
time, of PyTorch.

`benchmarks/calibration` has the records, and in report.md all differences with intervals, p and what is detectable:

{commands}

{environment}
"""
TASK = """## {name}

{sizes}

Means over {seeds} seeds; of corrupted images over the five strengths. Two signs say in which direction a figure
differs, beyond chance, from no regularizer and from MC Dropout ("{mc}"): − lower, + higher, = a tie, · nothing to
compare with. Which true difference from MC Dropout would be found four times out of five depends on how much the
method varies between seeds: {detectable}. {edges}

{table}

{shifted}

```{{image}} ../benchmarks/calibration/figures/{task}-strengths.png
:class: chart
:alt: NLL and ECE of the methods against the strength of each corruption.
:width: 640px
```

```{{image}} ../benchmarks/calibration/figures/{task}-reliability.png
:class: chart
:alt: Reliability diagrams: the share of predictions that were right, by their probability.
:width: 640px
```

Bars are the share that was right, all seeds together, where there are ten images at least; dots are as large as a bar
has images. Below the diagonal a model is too sure.

```{{image}} ../benchmarks/calibration/figures/{task}-differences.png
:class: chart
:alt: Differences of each method from MC Dropout, with intervals.
:width: 640px
```

Differences from MC Dropout, and where the true one is in 95 % of such studies, each by itself. Green is better and
orange worse beyond chance, after correction; grey is a tie.

### Are passes worth it?

{worth}

### Do passes know what the network does not?

The mutual information of passes or members, on test images as they are, and how many times that on others.

{disagreement}

### What it costs

{cost}
"""
RESAMPLED = ", and on MNIST trains and tests on other images"
COMMANDS = """    python -m benchmarks.calibration.run mnist --data DIR                 # half an hour of one busy core
    python -m benchmarks.calibration.run cifar10 --data DIR --hours 2     # hours; goes on where it was
    python -m benchmarks.calibration.page"""
ADVICE = """- **One network, images like those of training**: scale by a temperature. One number, found on validation
  images, ties with MC Dropout and costs nothing.
- **Images that may be noisy, or turned**: train with noise and leave it on. Dropout and GaussianDropout are the simple
  choice. PerNodeDrop Bernoulli, at a high rate, has lower NLL and ECE on turned images, beyond chance. The rates are
  those that are best for images like those of training.
- **A network that has noise of any kind**: passes lower its NLL and ECE nearly everywhere, and its error nowhere. Each
  pass costs a prediction.
- **Images of unknown classes**: nothing tells them better than MC Dropout beyond chance, and MC Dropout no better than
  Dropout without noise.
- **Five trainings to spend**: a deep ensemble is better than no regularizer, but not than MC Dropout, which costs one
  training: its members have learned the same few images, and err together. Snapshots cost one training and tie with
  MC Dropout.
- **Masksembles and fixed masks** change the NLL and ECE of clean images by nothing beyond chance.
- **Nothing here is calibrated on images turned by 45 degrees or more**: make sure by other means that images are like
  those of training."""
BAYES = """## Is Dynamic DropConnect approximately Bayesian?

Nothing that was measured speaks for it. Noise that draws networks from a posterior should make the mean of passes
likelier than the network without noise, and disagree where the network has not learned. Of all noises here that of
DynamicDropConnect gains least by passes, in NLL of clean images nothing beyond chance, where DropConnect, which knows
of no gradients, gains. Its disagreement rises on other images as many times as that of DropConnect, and tells unknown
classes no better than the entropy of its plain predictions. Not measured: whether passes disagree less where there is
more to learn from, and the distance from a posterior that was sampled."""
LEFT = {
    "mnist": "MNIST, turned and with noise",
    "cifar10": "CIFAR-10, with noise and as JPEG of low quality",
}
"""What a task would add to the page."""
ALWAYS_LEFT = """PerNodeDrop Gaussian with a fixed mask.
A rate is selected by images like those of training; for other images a higher one may be better, of
every regularizer."""


def counts(found, arms, baseline):
    """How many comparisons of arms with a baseline are (better, ties, worse)."""
    ones = [(found.against[baseline, column][arm], column) for column in found.main for arm in arms]
    better = sum(is_better(one, column) for one, column in ones)
    ties = sum(one.verdict == "tie" for one, _ in ones)
    return better, ties, len(ones) - better - ties


def beyond_chance(found, arm, baseline):
    """In which figures an arm is better or worse than a baseline, in words; nothing where all are ties."""
    words = {True: [], False: []}
    for column in found.main:
        one = found.against[baseline, column][arm]
        if one.verdict != "tie":
            words[is_better(one, column)].append(column.replace(", ", " "))
    parts = [
        f"{sign} in {', '.join(words[good])}" for good, sign in ((True, "better"), (False, "worse")) if words[good]
    ]
    return f"{title(arm)}: {'; '.join(parts)}" if parts else ""


def said(found):
    """The verdict of a task, in sentences."""
    ours = [arm for arm in found.arms if arm[0].startswith("per_node_drop") and arm[1] == MEAN]
    better, ties, worse = counts(found, ours, MC_DROPOUT)
    total = better + ties + worse
    says = "better than" if better > total / 2 else "worse than" if worse > total / 2 else "about as well calibrated as"
    apart = [text for arm in ours if (text := beyond_chance(found, arm, MC_DROPOUT))]
    scaled, deep = (
        "better in {}, a tie in {} and worse in {}".format(*counts(found, [arm], MC_DROPOUT))
        for arm in (("none", SCALED), ("deep", MEAN))
    )
    return (
        f"**On {NAMES[found.name]}, PerNodeDrop with passes is {says} MC Dropout**: {ties} of {total} comparisons of "
        f"its three noises are ties. {''.join(f'{text}. ' for text in apart)}Against MC Dropout, a network without a "
        f"regularizer, with one temperature, is {scaled} of {len(found.main)} figures, and a deep ensemble {deep}."
    )


def gains(found, column):
    """From each variant with both ways to predict to what its passes change, each way at its own rate."""
    values = found.values[column]
    noisy = [variant for variant, ways in WAYS.items() if {PLAIN, MEAN} <= {*ways}]
    pairs = {v: list(zip(values[v, MEAN].values(), values[v, PLAIN].values(), strict=True)) for v in noisy}
    ones = [paired(variant, PLAIN, of, len(noisy)) for variant, of in pairs.items()]
    return dict(zip(noisy, corrected(ones), strict=True))


def worth(found):
    """What passes change of each figure: a row for each variant."""
    columns = [column for column in found.columns if NONE in found.values[column]]
    of = {column: gains(found, column) for column in columns}
    lines = [["", *columns]]
    for variant in of[columns[0]]:
        ones = [of[column][variant] for column in columns]
        cells = [
            f"{one.difference:+.4f}\N{NO-BREAK SPACE}{SIGNS.get(one.verdict, '?')}".replace("-", "−") for one in ones
        ]
        lines.append([variants.get(variant).title, *cells])
    return as_markdown(lines)


def disagreement(found):
    """How much passes or members disagree about known and about other images."""
    last = [run.strengths(found.task, corruption)[-1] for corruption in found.task.corruptions]
    lines = [["", "clean, nats", *(f"{part}, times that" for part in [*last, "unseen"])]]
    for arm in found.values["AUROC, disagreement"]:
        known, *others = (found.over_seeds(arm, part, "information") for part in ("clean", *last, "unseen"))
        lines.append([title(arm), f"{known:.4f}", *(f"{other / known:.1f}" for other in others)])
    return as_markdown(lines)


def sizes(found):
    """What was trained and tested on."""
    task = found.task
    train, validation, test = (round(size * (1 - run.UNSEEN / run.CLASSES)) for size in task.sizes)
    amounts = "; ".join(f"{name} by {', '.join(map(str, of))}" for name, of in task.corruptions.items())
    return (
        f"About {train:,} images to learn from, {validation:,} to select on, {test:,} to test on, of which "
        f"{task.corrupted} are corrupted, and {task.sizes[2] - test:,} of the unknown classes; {task.epochs} epochs. "
        f"Strengths 1 to 5: {amounts}."
    )


def edges(found):
    """What was selected at an end of the rates, beyond which a better one may lie."""
    ends = found.task.rates[0], found.task.rates[-1]
    at = [[title(arm) for arm, rate in found.rates.items() if rate == end] for end in ends]
    texts = [
        f"the {which} rate tried, {end:g}, was selected for {'; '.join(names)}"
        for which, end, names in zip(("lowest", "highest"), ends, at, strict=True)
        if names
    ]
    return " ".join(f"{text[0].upper()}{text[1:]}: one beyond may do better." for text in texts)


def task_text(found):
    """The part of a task."""
    halves = [column for column in found.columns if "clean" in column or column in ("error", "Brier")]
    others = [column for column in found.columns if column not in halves]
    spread = {column: detectable(found, column) for column in ("NLL, clean", "ECE, clean", "AUROC, entropy")}
    return TASK.format(
        name=NAMES[found.name],
        task=found.name,
        sizes=sizes(found),
        seeds=len(found.seeds),
        mc=title(MC_DROPOUT),
        detectable="; ".join(f"{low} to {high} in {column}" for column, (low, high) in spread.items()),
        edges=edges(found),
        table=table(found, halves),
        shifted=table(found, others),
        worth=worth(found),
        disagreement=disagreement(found),
        cost=cost(found),
    )


def detectable(found, column):
    """The least and the largest detectable difference from MC Dropout, in words."""
    of = [one.detectable for one in found.against[MC_DROPOUT, column].values() if one.detectable is not None]
    return (number(min(of)), number(max(of))) if of else ("?", "?")


def left(found):
    """What has not been measured: the tasks without records, and what no task here can tell."""
    lines = [
        f"{what}: the command below does it, and its records make a part of this page."
        for name, what in LEFT.items()
        if name not in found
    ]
    return "\n".join(["## Not measured yet", "", *lines, ALWAYS_LEFT])


def text(records):
    """The page."""
    found = found_in(records)
    return TEXT.format(
        verdict=" ".join(map(said, found.values())),
        passes=run.PASSES,
        members=run.MEMBERS,
        advice=ADVICE,
        bayes=BAYES,
        left=left(found),
        resampled=RESAMPLED,
        tasks="\n".join(map(task_text, found.values())),
        commands=COMMANDS,
        environment="\n\n".join(dict.fromkeys(describe(one["environment"]) for one in records)),
    )


def report(records):
    """All differences."""
    return "# Calibration: all differences\n\n" + "\n\n".join(map(differences, found_in(records).values())) + "\n"


def main():
    """Write the page, the report and the figures."""
    records = Records(run.FOLDER).read()
    PAGE.write_text(text(records), encoding="utf-8")
    found = found_in(records)
    (run.FOLDER / "report.md").write_text(report(records), encoding="utf-8")
    folder = run.FOLDER / "figures"
    folder.mkdir(exist_ok=True)
    for name, one in found.items():
        for what, draw in FIGURES.items():
            figures.save(draw(one), folder / f"{name}-{what}.png")


if __name__ == "__main__":
    main()
