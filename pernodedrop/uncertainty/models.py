"""Predictions of Keras models: `x` comes in `batches`, of each of which the `passes` of the model are run.

A pass is the model at inference, with its noise layers changed so that they make noise (`changes`).
"""

import collections.abc
import itertools
import typing

import keras

from pernodedrop import checks
from pernodedrop._types import Array
from pernodedrop.internals import of_keras
from pernodedrop.uncertainty.batches import batches_of, rows_of
from pernodedrop.uncertainty.passes import Passes, build
from pernodedrop.uncertainty.prediction import Prediction, check_arguments, collected


def predict(
    model: keras.Model,
    x: typing.Any,
    samples: int | None = None,
    *,
    batch_size: int | None = None,
    seed: int | None = None,
    from_logits: bool = False,
    probabilities: bool | None = None,
    keep: bool = False,
    verbose: int = 0,
) -> Prediction:
    """Predict with the noise left on, many times, and say how much the passes differ (arXiv 1506.02142).

    Noise layers are found in the model at any depth: those of this library, Keras' dropout and Gaussian noise, also
    inside attention, and the dropout of Keras' recurrent layers; on torch, in a `keras.layers.TorchModuleWrapper`, also
    the modules of `torch.nn` that drop. They behave as in training: what the model itself calls with `training=False`
    makes no noise. All others are in inference: BatchNormalization uses its moving statistics and leaves them as they
    are. Fixed masks are part of the model and stay. Afterwards the model is as it was, the state of its random numbers
    included, also after an exception. Other threads may use the model at the same time, and predict as well; beside
    `fit`, passes have the weights of their moment, or an error says that JAX has them.

    Members: a layer with a number of fixed `members` (regime "bank", Masksembles) is not sampled. Pass s uses its
    member s modulo their number for all samples, so that the same call averages an ensemble.

    With a layer of this library, the mask of sample n of x in pass s depends on (seed, the layer's place in the model,
    its call number, s, n), not on `batch_size`, and a mask shared by the samples of a batch is shared by all of x. Only
    `DropBlock` with `normalize="batch"` depends on `batch_size`, over which it counts. A schedule is where training
    left it. Masks of Keras' and torch's own layers depend on the batch size and on the backend. In the regime "example"
    samples have masks of fresh seeds.

    A layer at rate 0 is no noise, but for one that follows a schedule. Where all passes were equal all the same, as
    after a schedule that ends at rate 0, a warning says so.

    Args:
        model: a Keras model with one output: functional, Sequential or subclassed. It is compiled once in each call of
            `predict`, for all passes.
        x: what `model.predict` takes: an array (n, ...), or a list or dict of them as the model takes it, of NumPy, the
            backend, pandas or SciPy, where sparse ones are made dense batch by batch; or batches of them, as a
            `keras.utils.PyDataset`, a `tf.data.Dataset`, a torch `DataLoader` or a generator, that end. Of a batch
            (x, y) or (x, y, sample_weight), only x is used.
        samples: number of passes. None is the number of members where the model has members and no other noise, so
            that the mean is that of the ensemble; otherwise 50, or the next multiple of the number of members. (Of
            layers that differ in it: of the least common multiple.)
        batch_size: samples in a forward pass; None is 32. The last batch is filled up, so that all have one shape. With
            x as batches it is theirs, and None here.
        seed: int, any; None takes one from Python's `random`. A seed gives the same prediction each time.
        from_logits: whether outputs are logits. A softmax, or a sigmoid where the last axis has size 1, is applied
            first, in float64.
        probabilities: whether outputs are probabilities, and have entropies. None decides by their values, see below:
            give False for a regression of one number that may be in [0, 1] for all of x.
        keep: whether to keep the output of every pass; else memory does not depend on `samples`.
        verbose: 1 shows a progress bar; 0.

    Returns:
        A `Prediction`. Outputs can be probabilities if they are non-negative and sum to 1 along the last axis; or if
        that has size 1, or there is none beside the batch's, and all are in [0, 1]: then they are the probability of
        the second of two classes.

    Raises:
        TypeError, ValueError: a model without noise, or with several outputs, or an argument that is not as described,
            such as `probabilities=True` of outputs that cannot be probabilities.
        RuntimeError: a model that `fit` trains at the same time, on JAX; or a call within the scope of a strategy of
            TensorFlow with several replicas.

    Warns:
        UserWarning: all of several passes were equal.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> from pernodedrop import uncertainty
    >>> head = keras.layers.Dense(3, activation="softmax")
    >>> model = keras.Sequential([keras.Input((8,)), pnd.Dropout(0.5), head])
    >>> found = uncertainty.predict(model, np.ones((5, 8), "float32"), samples=20, seed=1)
    >>> found.mean.shape, found.mutual_information.shape
    ((5, 3), (5,))
    """
    if not isinstance(model, keras.Model):
        raise TypeError(checks.invalid("model", "a keras.Model", model))
    seed = check_arguments(seed, from_logits, probabilities, keep)
    batches, number = batches_of(x, batch_size)
    first, width = next(batches, (None, 0))
    if not width:
        raise ValueError(checks.invalid("x", "at least one batch", x))
    if not all(layer.built for layer in of_keras.layers_of(model)):
        build(model, first)
    passes = Passes(model, seed)
    samples = passes.default_samples() if samples is None else checks.check_count(samples, "samples")
    progress = keras.utils.Progbar(number and samples * number, verbose=verbose, unit_name="pass")

    def outputs() -> collections.abc.Iterator[collections.abc.Iterator[Array]]:
        widest, start = width, 0
        for rows, size in itertools.chain([(first, width)], batches):
            widest = max(widest, size)  # all batches have one shape where none is larger than those before
            yield of_batch(rows_of(rows, 0, widest), widest, start, size)
            start += size

    def of_batch(rows: typing.Any, width: int, start: int, size: int) -> collections.abc.Iterator[Array]:
        for sample in range(samples):
            yield passes.run(rows, width, start, sample)[:size]
            progress.add(1)

    return collected(outputs(), samples, seed, from_logits, probabilities, keep)
