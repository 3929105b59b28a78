"""R-Drop: two passes with different noise should predict the same (Liang et al., NeurIPS 2021, arXiv 2106.14448).

`RDrop` is the loss and has all its constants. `RDropModel` makes the two passes of it in `fit`.
"""

import typing
import warnings

import keras

from pernodedrop import checks, registry
from pernodedrop._types import Config, Shape, Tensor
from pernodedrop.internals import of_keras
from pernodedrop.layers.base import stochastic
from pernodedrop.layers.base.noisy import Noisy
from pernodedrop.surgery import fold

__all__ = ["RDrop", "RDropModel", "symmetric_kl"]

TOTALS = {"mean": 1.0, "sum": 2.0}
"""What a mean of two terms is multiplied by."""

LEAST_LOG = -1e9  # of a class with logit -inf, so that differences of such are numbers

OVER_CLASSES = (
    keras.losses.CategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
    keras.losses.CategoricalGeneralizedCrossEntropy,
    keras.losses.KLDivergence,
    keras.losses.SparseCategoricalCrossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.categorical_focal_crossentropy,
    keras.losses.categorical_generalized_cross_entropy,
    keras.losses.kl_divergence,
    keras.losses.sparse_categorical_crossentropy,
)
"""Keras' losses whose predictions are class probabilities or logits."""


OTHERS_CODE = (
    keras.layers.FlaxLayer,
    keras.layers.JaxLayer,
    keras.layers.Lambda,
    keras.layers.TFSMLayer,
    keras.layers.TorchModuleWrapper,
)
"""Keras' layers whose calls are not Keras' own."""


def symmetric_kl(p: Tensor, q: Tensor, from_logits: bool = False, kl: str = "mean") -> Tensor:
    """The Kullback-Leibler divergences of two predictions from each other, position by position.

    KL(P||Q) + KL(Q||P) = sum over classes of (P - Q) * (log P - log Q), times 1/2 for `kl="mean"`. Gradients go through
    both. It is finite for every prediction: probabilities below `keras.config.epsilon()` have the logarithm of that,
    and a logit of -inf is a class that does not count where both have it.

    Args:
        p, q: floating tensors (..., classes) of the same shape: probabilities that sum to 1 over classes, or logits.
        from_logits: whether they are logits; False.
        kl: "mean" of the two directions, or their "sum".

    Returns:
        A tensor (...), float32, or float64 where both are.

    Raises:
        TypeError, ValueError: predictions of another dtype, of rank 0 or of two shapes, another `kl`, or a
            `from_logits` that is neither True nor False.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> p, q = np.array([[0.5, 0.5]]), np.array([[0.9, 0.1]])
    >>> once = np.sum((p - q) * np.log(p / q), -1)
    >>> twice = keras.ops.convert_to_numpy(pnd.losses.symmetric_kl(p, q, kl="sum"))
    >>> bool(np.allclose(once, twice))
    True
    """
    from_logits = checks.check_bool(from_logits, "from_logits")
    half = TOTALS[checks.check_choice(kl, "kl", TOTALS)] / 2
    p, q = _predictions(p, "p"), _predictions(q, "q")
    sizes = zip(p.shape, q.shape, strict=False)
    if len(p.shape) != len(q.shape) or any(None not in pair and pair[0] != pair[1] for pair in sizes):
        raise ValueError(checks.invalid("q", f"the shape of `p`, {tuple(p.shape)}", tuple(q.shape)))
    dtypes = {keras.backend.standardize_dtype(predictions.dtype) for predictions in (p, q)}
    dtype = "float64" if dtypes == {"float64"} else "float32"
    (p, log_p), (q, log_q) = (_probabilities(keras.ops.cast(given, dtype), from_logits) for given in (p, q))
    return half * keras.ops.sum((p - q) * (log_p - log_q), axis=-1)


@keras.saving.register_keras_serializable("pernodedrop")
class RDrop(keras.losses.Loss):
    """The loss of R-Drop on a batch that holds every sample twice (arXiv 2106.14448).

    The two halves of a batch of predictions are P1 and P2, of the same samples with different noise:

        L = a * (CE(P1) + CE(P2)) + alpha * b * (KL(P1||P2) + KL(P2||P1))

    with a = 1/2 for `ce="mean"` and 1 for `ce="sum"`, and b the same for `kl`. CE is the `loss` given. KL is summed
    over classes, the last axis, and averaged as CE is: over the positions of a half, times their sample weights,
    without those that a Keras mask or the `ignore_class` of the loss leaves out. Gradients go through both halves.

    The default halves CE, as the authors' README does, so that losses compare with those of training without R-Drop
    and alpha = 0 is the loss given, on both halves. The paper sums: with `ce="mean"`, half of its alpha and twice its
    learning rate make the same steps of SGD. The authors' code (github.com/dropreg/R-Drop) differs by task:

        ============================  =====================  =========  =====  =====  ==============
        source                        CE                     KL         `ce`   `kl`   `alpha`
        ============================  =====================  =========  =====  =====  ==============
        the paper                     sum                    half sum   sum    mean   as given there
        README                        half the sum           half sum   mean   mean   alpha * B
        fairseq: translation          sum                    half sum   sum    mean   5
        fairseq: summarization        sum                    half sum   sum    mean   0.7
        fairseq: language model       sum                    half sum   sum    mean   1
        BERT                          sum                    half sum   sum    mean   0.5 * B
        RoBERTa                       half the sum, see [1]  half sum   mean   mean   0.7 * B
        ViT                           sum                    sum        sum    sum    0.3 * B
        ============================  =====================  =========  =====  =====  ==============

    B is the batch size: there CE is a mean over the batch and KL a sum, so that KL's weight grows with B. fairseq has
    both as means over tokens. [1] As it stands its line for the second pass is never reached: it has half of CE(P1).

    Args:
        loss: the loss of one prediction: a `keras.losses.Loss`, a function of (y_true, y_pred) with a value a position,
            or the name of one. Predictions must be probabilities or logits over classes, on the last axis, and the
            other axes those of its values. Of a Loss its `reduction` and dtype are this one's; L is that of means, and
            `reduction="sum"` sums over the rows of both halves.
        alpha: weight of the divergence, a finite float from zero; 1.0.
        ce: "mean" or "sum" of the two cross-entropies.
        kl: "mean" or "sum" of the two divergences.
        from_logits: whether predictions are logits. None is what the loss says, and False if it says nothing.
        name: name of the loss.
        paired: whether a batch holds every sample twice. True is for training loops of your own. False is the loss
            given, on a batch of any kind. None, the default, leaves it to `RDropModel`, which says so for as long as it
            computes its loss whatever is given here; elsewhere the loss is refused, since the halves of an ordinary
            batch are of different samples.

    Call arguments:
        y_true: targets of the whole batch, every sample twice.
        y_pred: predictions (2 * batch, ..., classes), those of one pass and then those of the other.
        sample_weight: weights of the whole batch.

    Output: a float scalar for the usual reductions. In `evaluate` of `RDropModel` it is the loss given, on a batch that
    holds every sample once.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message. Among them are Keras' losses
            of something else than classes: for two classes, take two outputs with softmax. In a call, `paired=None`
            outside of an `RDropModel`.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> r_drop = pnd.losses.RDrop("sparse_categorical_crossentropy", alpha=5.0, ce="sum", paired=True)
    >>> predictions = np.array([[0.5, 0.5], [0.9, 0.1]])  # one sample, two passes
    >>> cross_entropy = -np.log(0.5) - np.log(0.9)
    >>> divergence = 0.5 * np.sum((predictions[0] - predictions[1]) * np.log(predictions[0] / predictions[1]))
    >>> bool(np.allclose(float(r_drop(np.zeros(2), predictions)), cross_entropy + 5 * divergence))
    True
    """

    def __init__(
        self,
        loss: typing.Any,
        alpha: float = 1.0,
        ce: str = "mean",
        kl: str = "mean",
        from_logits: bool | None = None,
        name: str = "r_drop",
        paired: bool | None = None,
    ) -> None:
        self.loss = _over_classes(loss)
        super().__init__(
            name=checks.check_str(name, "name"),
            reduction=getattr(self.loss, "reduction", "sum_over_batch_size"),
            dtype=getattr(self.loss, "dtype", None),
        )
        self.alpha = checks.check_positive(alpha, "alpha", zero=True)
        self.ce = checks.check_choice(ce, "ce", TOTALS)
        self.kl = checks.check_choice(kl, "kl", TOTALS)
        self.from_logits = _agreed(from_logits, _from_logits(self.loss))
        self.paired = checks.check_optional_bool(paired, "paired")

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        if self.paired is None:
            expected = (
                "True for a batch that holds every sample twice, one pass after the other, or a model inside "
                "pernodedrop.RDropModel, which makes such batches in `fit`"
            )
            raise ValueError(checks.invalid("paired", expected, None))
        if not hasattr(y_pred, "shape"):
            raise TypeError(checks.invalid("y_pred", "a tensor (2 * batch, ..., classes)", y_pred))
        value = self.loss.call if isinstance(self.loss, keras.losses.Loss) else self.loss
        cross_entropy = value(y_true, y_pred)
        if not self.paired:
            return cross_entropy
        if (y_pred.shape[0] or 0) % 2:
            expected = "two passes, one after the other: 2 * batch rows"
            raise ValueError(checks.invalid("y_pred", expected, tuple(y_pred.shape)))
        first, second = keras.ops.split(y_pred, 2)
        divergence = symmetric_kl(first, second, from_logits=self.from_logits, kl=self.kl)
        _check_positions(cross_entropy.shape, divergence.shape)
        # means over the rows of both halves, each of which has the divergence of its sample
        rows = TOTALS[self.ce] * cross_entropy + self.alpha * keras.ops.concatenate([divergence, divergence])
        # the positions of `ignore_class`, which Keras takes from what a loss returns
        of_keras.set_mask(rows, of_keras.mask_of(cross_entropy))
        return rows

    def get_config(self) -> Config:
        return {
            "loss": keras.saving.serialize_keras_object(self.loss),
            "alpha": self.alpha,
            "ce": self.ce,
            "kl": self.kl,
            "from_logits": self.from_logits,
            "name": self.name,
            "paired": self.paired,
        }

    @classmethod
    def from_config(cls, config: Config) -> typing.Self:
        return registry.made(cls, {**config, "loss": keras.saving.deserialize_keras_object(config.get("loss"))})


@keras.saving.register_keras_serializable("pernodedrop")
class RDropModel(keras.Model):
    """A model that `fit` trains on every batch twice at once, as the loss `pernodedrop.losses.RDrop` needs.

    A training step is one pass of the wrapped model over [x; x], the batch and the batch again, with its targets and
    sample weights (those of `class_weight` among them) twice. Masks differ between samples, so the two halves have
    different noise. Everything else is the wrapped model: calls, `predict`, and `evaluate`, whose loss is the one that
    RDrop was given.

    - Compile with an `RDrop` loss. A model with several outputs has one for each output that is to agree with itself,
      and any other loss for the others, taken over the batch and its copy.
    - Metrics of training are of both halves. Losses of layers, such as weight decay, count once.
    - BatchNormalization sees a batch of twice the size: the same statistics, except for the noise. A step takes about
      the time and the memory of a batch of twice the size.
    - Noise that is the same for all samples of a batch cannot differ between the halves, and the divergence would be 0:
      `DropConnect` with its default sharing, the fixed, bank and example regimes, a `noise_shape` that begins with 1.
      A rate of 0 counts as no noise, unless it follows a schedule. Where no layer has other noise, `fit` refuses. If it
      has layers of neither Keras nor this library, whose noise cannot be seen from outside, it warns. `sample_ids` are
      copied with the inputs, so they make masks the same too.

    Args:
        model: the model to train, a `keras.Model` of any kind, with inputs of any structure.
        **kwargs: those of `keras.Model`; the dtype policy is the wrapped model's unless given.

    Call arguments: those of the wrapped model that `keras.Model` passes: inputs, training.

    Output shape and dtype: the wrapped model's.

    Raises:
        TypeError, ValueError: something else than a model; in `fit`, no `RDrop` loss, or no noise that differs.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> layers = [keras.Input((4,)), pnd.Dropout(0.5, seed=1), keras.layers.Dense(3, activation="softmax")]
    >>> model = pnd.RDropModel(keras.Sequential(layers))
    >>> model.compile("sgd", pnd.losses.RDrop("sparse_categorical_crossentropy", alpha=1.0))
    >>> model.predict(np.ones((2, 4), "float32"), verbose=0).shape
    (2, 3)
    """

    def __init__(self, model: keras.Model, **kwargs: typing.Any) -> None:
        if not isinstance(model, keras.Model):
            raise TypeError(checks.invalid("model", "a keras.Model", model))
        if kwargs.get("dtype") is None:
            kwargs["dtype"] = model.dtype_policy
        super().__init__(**kwargs)
        self.model = model
        if model.built:  # there is nothing else to build
            self.built = True
            of_keras.list_variables(self)

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs, by which Keras finds the losses of a dict; those of a functional model."""
        return self.model.output_names

    def call(self, inputs: typing.Any, training: bool | None = None) -> typing.Any:
        return self.model(inputs, training=training)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return self.model.compute_output_shape(input_shape)

    def make_train_function(self, force: bool = False) -> typing.Any:
        # the first place where all layers are built and no step has been made
        if not self._losses_in_pairs():
            expected = "a pernodedrop.losses.RDrop around the loss of each output whose two passes are to agree"
            raise ValueError(checks.invalid("loss", expected, self.loss))
        _check_noise(self.model)
        return super().make_train_function(force)

    def train_step(self, *args: typing.Any) -> typing.Any:
        *state, data = args  # JAX has the state of the model before the data
        return super().train_step(*state, keras.tree.map_structure(_twice, data))

    def compute_loss(
        self,
        x: typing.Any = None,
        y: typing.Any = None,
        y_pred: typing.Any = None,
        sample_weight: typing.Any = None,
        training: bool = True,
    ) -> Tensor:
        before = [(loss, loss.paired) for loss in self._losses_in_pairs()]
        try:
            for loss, _ in before:
                loss.paired = training
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        finally:
            for loss, paired in reversed(before):  # a loss may be that of several outputs
                loss.paired = paired

    def export(self, *args: typing.Any, **kwargs: typing.Any) -> None:
        """Export the wrapped model, with the arguments of `keras.Model.export`."""
        self.model.export(*args, **kwargs)

    def fold(self) -> keras.Model:
        """The wrapped model, folded: what `pernodedrop.fold` makes of it."""
        return fold(self.model)

    def get_config(self) -> Config:
        return {**super().get_config(), "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config: Config, custom_objects: dict[str, typing.Any] | None = None) -> typing.Self:
        model = keras.saving.deserialize_keras_object(config.get("model"), custom_objects=custom_objects)
        return cls(**{**config, "model": model})

    def _losses_in_pairs(self) -> list[RDrop]:
        return [loss for loss in keras.tree.flatten(self.loss) if isinstance(loss, RDrop)]


def _twice(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else keras.ops.concatenate([tensor, tensor])


def _predictions(given: typing.Any, argument: str) -> Tensor:
    """What is given for predictions as a tensor, or an error."""
    expected = "a floating tensor (..., classes)"
    try:
        predictions = keras.ops.convert_to_tensor(given)
    except Exception as error:  # whatever the framework has to say of it
        raise TypeError(checks.invalid(argument, expected, given)) from error
    dtype = keras.backend.standardize_dtype(predictions.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise TypeError(checks.invalid(argument, expected, dtype))
    if len(predictions.shape) == 0:  # a shape of TensorFlow is true even so
        raise ValueError(checks.invalid(argument, expected, given))
    return predictions


def _probabilities(predictions: Tensor, from_logits: bool) -> tuple[Tensor, Tensor]:
    """Probabilities and their logarithms."""
    if from_logits:
        log = keras.ops.maximum(keras.ops.log_softmax(predictions), LEAST_LOG)
        return keras.ops.exp(log), log
    return predictions, keras.ops.log(keras.ops.maximum(predictions, keras.config.epsilon()))


def _over_classes(loss: typing.Any) -> typing.Any:
    """The loss that an argument means, if its predictions can be class probabilities, or raise."""
    expected = "a loss of class probabilities or logits, such as 'sparse_categorical_crossentropy'"
    found = loss if callable(loss) else keras.losses.get(loss) if isinstance(loss, str | dict) else None
    if not callable(found):
        raise TypeError(checks.invalid("loss", expected, loss))
    kind = type(found) if isinstance(found, keras.losses.Loss) else found
    if kind not in OVER_CLASSES and getattr(kind, "__module__", "").startswith("keras."):
        raise ValueError(checks.invalid("loss", expected, loss))
    return found


def _from_logits(loss: typing.Any) -> bool | None:
    """Whether a loss says that its predictions are logits; some of Keras' say so in their config only."""
    if hasattr(loss, "from_logits") or not isinstance(loss, keras.losses.Loss):
        return getattr(loss, "from_logits", None)
    return loss.get_config().get("from_logits")


def _agreed(from_logits: bool | None, of_loss: bool | None) -> bool:
    from_logits = checks.check_optional_bool(from_logits, "from_logits")
    if None not in (from_logits, of_loss) and from_logits != of_loss:
        raise ValueError(checks.invalid("from_logits", f"{of_loss}, as its loss has it, or None", from_logits))
    return bool(of_loss if from_logits is None else from_logits)


def _check_positions(of_loss: Shape, of_half: Shape) -> None:
    """Refuse a loss whose values are not those of positions, which would be broadcast against the divergences."""
    sizes = zip(of_loss[1:], of_half[1:], strict=False)
    if len(of_loss) != len(of_half) or any(None not in pair and pair[0] != pair[1] for pair in sizes):
        expected = f"a loss with a value a position, (2 * batch, {', '.join(map(str, of_half[1:]))})"
        raise ValueError(checks.invalid("loss", expected, tuple(of_loss)))


def _check_noise(model: keras.Model) -> None:
    """Refuse a model in which both halves of a batch surely have the same noise, warn of one that may be such."""
    layers = of_keras.layers_of(model)
    if any(_differs_between_samples(layer) for layer in layers):
        return
    same = [layer.name for layer in layers if isinstance(layer, Noisy)]
    shared = f"has no noise or one mask for both in its noisy layers {same}" if same else "has no noisy layer"
    message = (
        f"R-Drop compares two passes with different noise, and model {model.name!r} {shared}, so they would be equal "
        "and the divergence 0. Expected a layer with noise of its own for every sample, such as pernodedrop.Dropout, "
        "pernodedrop.PerNodeDrop, or pernodedrop.DropConnect with sharing='time'."
    )
    closed = {type(layer).__name__ for layer in layers if _is_closed(layer)}
    if not closed:
        raise ValueError(message)
    warnings.warn(f"{message} Unless these have such noise: {sorted(closed)}.", stacklevel=3)


def _is_closed(layer: keras.layers.Layer) -> bool:
    """Whether a layer may have noise that cannot be seen from outside."""
    return isinstance(layer, OTHERS_CODE) or type(layer).__module__.partition(".")[0] not in ("keras", "pernodedrop")


def _differs_between_samples(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, (Noisy, *stochastic.NOISE, *stochastic.NOISE_INSIDE)):
        by_id = isinstance(layer, Noisy) and layer.regime == "example"
        return stochastic.is_stochastic(layer) and not by_id and not stochastic.shares_noise(layer)
    return bool(of_keras.seed_generators(layer))  # of Keras' augmentation, for one
