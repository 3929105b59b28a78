"""What is said of the outputs of all passes: moments, entropies, votes."""

import typing

import numpy as np

from pernodedrop import checks

SUM_TOLERANCE = 1e-2  # how far from 1 the sum of probabilities in half precision can be

Array: typing.TypeAlias = np.typing.NDArray[np.float64]


class Statistics:
    """What the passes of one batch have in sum."""

    def __init__(self, keep: bool, probabilities: bool | None = None) -> None:
        self.probabilities = probabilities
        self.samples = 0
        self.mean: typing.Any = 0.0
        self.squares: typing.Any = 0.0  # sum of squared differences from the mean, by Welford's recurrence
        # None where the outputs are not probabilities
        self.entropies: typing.Any = None if probabilities is False else 0.0
        self.votes: typing.Any = 0.0
        self.outputs: list[Array] | None = [] if keep else None

    def add(self, y: Array) -> None:
        """One more pass."""
        self.samples += 1
        step = y - self.mean
        self.mean = self.mean + step / self.samples
        self.squares = self.squares + step * (y - self.mean)
        if self.outputs is not None:
            self.outputs.append(y)
        if self.entropies is None:
            return
        p = classes_of(y)
        if not ((p >= 0).all() and (abs(p.sum(-1) - 1) <= SUM_TOLERANCE).all()):
            if self.probabilities:
                expected = "None or False for outputs that are not in [0, 1] with sum 1 over the classes"
                raise ValueError(checks.invalid("probabilities", expected, True))
            self.entropies = None
            return
        self.entropies = self.entropies + _entropy(p)
        self.votes = self.votes + (np.arange(p.shape[-1]) == p.argmax(-1)[..., None])

    def result(self) -> dict[str, typing.Any]:
        """The arrays of a `Prediction`."""
        outputs = None if self.outputs is None else np.stack(self.outputs)
        found = {"mean": self.mean, "variance": self.squares / self.samples, "outputs": outputs}
        names = ("predictive_entropy", "aleatoric", "mutual_information", "variation_ratio")
        if self.entropies is None:
            return {**found, **dict.fromkeys(names)}
        whole, part = _entropy(classes_of(self.mean)), self.entropies / self.samples
        ratio = 1 - self.votes.max(-1) / self.samples
        return {**found, **dict(zip(names, (whole, part, np.maximum(whole - part, 0), ratio), strict=True))}


def classes_of(y: Array) -> Array:
    """Outputs with the classes in the last axis: of one output, the second of two."""
    if y.ndim > 1 and y.shape[-1] > 1:
        return y
    second = y if y.ndim == 1 else y[..., 0]
    return np.stack([1 - second, second], -1)


def _entropy(p: Array) -> Array:
    return -np.sum(p * np.log(np.where(p > 0, p, 1)), -1)


def probabilities_of(logits: Array) -> Array:
    """A softmax over the last axis, or a sigmoid of one output."""
    if logits.ndim == 1 or logits.shape[-1] == 1:
        return np.exp(-np.logaddexp(0, -logits))
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return np.divide(powers, powers.sum(-1, keepdims=True))
