"""Metrics for `compile` and `evaluate`: those that sums over batches give exactly, on every backend."""

import itertools
import typing

import keras
import numpy as np

from pernodedrop import checks
from pernodedrop._types import Config, Shape, Tensor
from pernodedrop.internals import of_keras
from pernodedrop.uncertainty.metrics.arrays import SUM_TOLERANCE
from pernodedrop.uncertainty.metrics.classification import KINDS, edges_of


class _OverClasses(keras.metrics.Metric):
    """A metric of labels and class probabilities, with weights of samples."""

    def __init__(self, from_logits: bool, name: str, dtype: typing.Any) -> None:
        super().__init__(name=name, dtype=dtype)
        of_keras.lower_is_better(self)
        self.from_logits = checks.check_bool(from_logits, "from_logits")
        self.weight = self.add_variable((), "zeros", self.dtype, name="weight")

    def update_state(self, y_true: Tensor, y_pred: Tensor, sample_weight: Tensor | None = None) -> None:
        """Add a batch: labels and probabilities (or logits) as of the class, weights (n,) or of the labels' shape."""
        mask = of_keras.mask_of(y_pred)
        p = self.probabilities(keras.ops.convert_to_tensor(y_pred))
        labels, is_label = _labels(keras.ops.convert_to_tensor(y_true), p)
        given = [keras.ops.cast(part, self.dtype) for part in (sample_weight, mask) if part is not None]
        weight = keras.ops.ones_like(labels, self.dtype)
        for part in given:
            weight = weight * _like(part, labels)
        # what is neither a label nor a probability shows in the result, if it has weight
        is_right = is_label & keras.ops.all(p >= 0, -1) & (keras.ops.abs(keras.ops.sum(p, -1) - 1) <= SUM_TOLERANCE)
        p = keras.ops.where(is_right[..., None], p, float("nan"))
        k = p.shape[-1]
        labels, p, weight = (keras.ops.reshape(t, shape) for t, shape in ((labels, -1), (p, (-1, k)), (weight, -1)))
        self.weight.assign_add(keras.ops.sum(weight))
        self.add(labels, p, weight)

    def probabilities(self, y: Tensor) -> Tensor:
        """Probabilities (..., k), of what may be the second of two classes alone."""
        if len(y.shape) == 0:  # a shape of TensorFlow is true even so
            raise ValueError(checks.invalid("y_pred", "probabilities (n, k), (n,) or (n, 1)", "a scalar"))
        y = keras.ops.cast(y, keras.backend.result_type(self.dtype, "float32"))
        if len(y.shape) == 1 or y.shape[-1] == 1:
            y = y if len(y.shape) == 1 else y[..., 0]
            second = keras.ops.sigmoid(y) if self.from_logits else y
            return keras.ops.stack([1 - second, second], -1)
        return keras.ops.softmax(y, -1) if self.from_logits else y

    def add(self, labels: Tensor, p: Tensor, weight: Tensor) -> None:
        """Add samples to the sums: labels (n,), probabilities (n, k), weights (n,)."""
        raise NotImplementedError

    def get_config(self) -> Config:
        return {**super().get_config(), "from_logits": self.from_logits}


@keras.saving.register_keras_serializable("pernodedrop")
class BrierScore(_OverClasses):
    """`brier_score` as a Keras metric, accumulated over batches: the mean squared distance from the one-hot label.

    Args:
        from_logits: whether the model ends in logits, which a softmax is applied to, or a sigmoid where it has one
            output; False.
        name, dtype: as of every Keras metric.

    `update_state` takes labels (n,) or (n, 1), whole numbers in [0, k), or one-hot (n, k), and predictions (n, k), or
    (n,) or (n, 1) for the second of two classes; of positions, (n, time) and (n, time, k). Values that are no labels or
    no probabilities make the result NaN, unless their weight is 0.

    Raises:
        TypeError, ValueError: an argument that is not as described.

    Example:

    >>> from pernodedrop.uncertainty import metrics
    >>> metric = metrics.BrierScore()
    >>> metric.update_state([0, 1], [[0.5, 0.5], [0.2, 0.8]])
    >>> round(float(metric.result()), 3)
    0.29
    """

    def __init__(self, from_logits: bool = False, name: str = "brier_score", dtype: typing.Any = None) -> None:
        super().__init__(from_logits, name, dtype)
        self.total = self.add_variable((), "zeros", self.dtype, name="total")

    def add(self, labels: Tensor, p: Tensor, weight: Tensor) -> None:
        hits = keras.ops.cast(labels[:, None] == keras.ops.arange(p.shape[-1], dtype="int32"), p.dtype)
        each = keras.ops.cast(keras.ops.sum((p - hits) ** 2, -1), self.dtype)
        self.total.assign_add(keras.ops.sum(keras.ops.where(weight == 0, 0.0, weight * each)))

    def result(self) -> Tensor:
        """The score, a scalar; 0 without samples."""
        return _share(self.total, self.weight)


@keras.saving.register_keras_serializable("pernodedrop")
class CalibrationError(_OverClasses):
    """`calibration_error` as a Keras metric, accumulated over batches, with bins of equal width.

    It is exact, in the metric's dtype: the sums of the bins are all that it needs. Bins of equal mass need all samples
    at once, and so do AUROC, FPR at 95 % and the risk-coverage curve: take the functions for these. The likelihood is
    Keras' own `SparseCategoricalCrossentropy`, which clips probabilities at `keras.config.epsilon()`.

    Args:
        bins: number of bins; 15.
        of: "confidence", "top_label" or "classwise", as for `calibration_error`.
        from_logits, name, dtype: as for `BrierScore`, which says what `update_state` takes too.

    Raises:
        TypeError, ValueError: an argument that is not as described.

    Example:

    >>> from pernodedrop.uncertainty import metrics
    >>> metric = metrics.CalibrationError(bins=2)
    >>> metric.update_state([0, 1], [[0.9, 0.1], [0.7, 0.3]])
    >>> metric.update_state([1], [[0.4, 0.6]])
    >>> round(float(metric.result()), 3)
    0.067
    """

    def __init__(
        self,
        bins: int = 15,
        of: str = "confidence",
        from_logits: bool = False,
        name: str = "calibration_error",
        dtype: typing.Any = None,
    ) -> None:
        super().__init__(from_logits, name, dtype)
        self.bins = checks.check_count(bins, "bins")
        self.of = checks.check_choice(of, "of", KINDS)
        self.gaps: typing.Any = None  # (groups, bins): the sum of probabilities - the weight of what came true

    def add(self, labels: Tensor, p: Tensor, weight: Tensor) -> None:
        k = p.shape[-1]
        if self.gaps is None:
            shape = (1 if self.of == "confidence" else k, self.bins)
            self.gaps = self.add_variable(shape, "zeros", self.dtype, name="gaps")
        if self.of == "classwise":
            group, score = keras.ops.broadcast_to(keras.ops.arange(k), keras.ops.shape(p)), p
        else:
            group, score = keras.ops.argmax(p, -1)[:, None], keras.ops.max(p, -1, keepdims=True)
        hit = keras.ops.cast(labels[:, None] == keras.ops.cast(group, labels.dtype), p.dtype)
        each = keras.ops.where(weight[:, None] == 0, 0.0, weight[:, None] * keras.ops.cast(score - hit, self.dtype))
        groups = self.gaps.shape[0]
        place = keras.ops.cast(keras.ops.searchsorted(self._edges(p), keras.ops.reshape(score, -1)), "int32")
        if groups > 1:
            place = place + self.bins * keras.ops.cast(keras.ops.reshape(group, -1), "int32")
        sums = keras.ops.segment_sum(keras.ops.reshape(each, -1), place, groups * self.bins)
        self.gaps.assign_add(keras.ops.reshape(sums, (groups, self.bins)))

    def result(self) -> Tensor:
        """The error, a scalar; 0 without samples."""
        if self.gaps is None:
            return keras.ops.zeros((), self.dtype)
        classes = self.gaps.shape[0] if self.of == "classwise" else 1
        return _share(keras.ops.sum(keras.ops.abs(self.gaps)), self.weight * classes)

    def _edges(self, p: Tensor) -> Tensor:
        """The ends between bins in the dtype of p, rounded so that its numbers fall where they belong."""
        edges = edges_of(np.empty(0), self.bins, "width")[1:-1]
        dtype = keras.backend.standardize_dtype(p.dtype)
        rounded = edges.astype(dtype)
        down = np.nextafter(rounded, np.zeros((), dtype))
        return keras.ops.convert_to_tensor(np.where(rounded > edges, down, rounded), dtype)

    def get_config(self) -> Config:
        return {**super().get_config(), "bins": self.bins, "of": self.of}


def _labels(y: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """Labels of the shape of p without its classes, int32, and whether each is one."""
    shape, k = p.shape[:-1], p.shape[-1]
    if keras.backend.standardize_dtype(y.dtype) == "bool":
        y = keras.ops.cast(y, "int32")
    if _fits(y.shape, p.shape) and y.shape[-1] == k:
        is_label = keras.ops.all((y == 0) | (y == 1), -1) & (keras.ops.sum(keras.ops.cast(y, "int32"), -1) == 1)
        return keras.ops.cast(keras.ops.argmax(y, -1), "int32"), is_label
    if len(y.shape) == len(shape) + 1 and y.shape[-1] == 1:
        y = y[..., 0]
    if not _fits(y.shape, shape):
        expected = f"labels {tuple(shape)} or one-hot {tuple(p.shape)}"
        raise ValueError(checks.invalid("y_true", expected, tuple(y.shape)))
    labels = keras.ops.cast(y, "int32")
    return labels, (keras.ops.cast(labels, y.dtype) == y) & (labels >= 0) & (labels < k)


def _fits(shape: Shape, other: Shape) -> bool:
    """Whether shapes are equal, as far as their sizes are known."""
    pairs = itertools.zip_longest(shape, other, fillvalue=-1)
    return all(None in pair or pair[0] == pair[1] for pair in pairs)


def _like(weight: Tensor, labels: Tensor) -> Tensor:
    """Weights, of samples perhaps, in the shape of the labels."""
    if len(weight.shape) == len(labels.shape) + 1 and weight.shape[-1] == 1:
        weight = weight[..., 0]
    while 0 < len(weight.shape) < len(labels.shape):
        weight = weight[..., None]
    return keras.ops.broadcast_to(weight, keras.ops.shape(labels))


def _share(total: Tensor, weight: Tensor) -> Tensor:
    """A mean, or 0 of nothing."""
    total, weight = keras.ops.convert_to_tensor(total), keras.ops.convert_to_tensor(weight)
    return total / keras.ops.where(weight == 0, 1.0, weight)
