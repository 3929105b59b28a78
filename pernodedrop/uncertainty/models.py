"""Predictions of Keras models: `x` comes in `batches`, of each of which the `passes` of the model are run.

A pass is the model at inference, with its noise layers changed so that they make noise (`changes`).
"""

import collections.abc
import itertools
import typing

import keras

from pernodedrop import checks
from pernodedrop.internals import of_keras
from pernodedrop.uncertainty.batches import batches_of, rows_of
from pernodedrop.uncertainty.passes import Passes, build
from pernodedrop.uncertainty.prediction import Each, Outputs, check_arguments, collected, default_samples, seeds_of


def predict(
    model: keras.Model | collections.abc.Sequence[keras.Model],
    x: typing.Any,
    samples: int | None = None,
    *,
    batch_size: int | None = None,
    seed: int | None = None,
    from_logits: bool | Each = False,
    probabilities: bool | Each | None = None,
    gaussian: bool | Each = False,
    layers: str | collections.abc.Collection[str | keras.layers.Layer] | None = None,
    keep: bool = False,
    verbose: int = 0,
) -> typing.Any:
    """Predict with the noise left on, many times, and say how much the passes differ (arXiv 1506.02142).

    Noise layers are found in the model at any depth: those of this library, Keras' dropout and Gaussian noise, also
    inside attention, and the dropout of Keras' recurrent layers; on torch, in a `keras.layers.TorchModuleWrapper`, also
    the modules of `torch.nn` that drop. They behave as in training: what the model itself calls with `training=False`
    makes no noise. All others are in inference: BatchNormalization uses its moving statistics and leaves them as they
    are. Fixed masks are part of the model and stay. Afterwards the model is as it was, the state of its random numbers
    included, also after an exception. Other threads may use the model at the same time, and predict as well; while
    `fit` runs, passes have the weights of that moment, or an error says that JAX has them in use.

    Members: a layer with a number of fixed `members` (regime "bank", Masksembles) is not sampled. Pass s uses its
    member s modulo their number for all samples, so that the same call averages an ensemble.

    Ensembles: of M models, each with noise or without, pass s is pass s // M of model s modulo M, with a seed of its
    own; the first model has `seed`.

    With a layer of this library, the mask of sample n of x in pass s depends on (seed, the layer's place in the model,
    its call number, s, n), not on `batch_size`, and a mask shared by the samples of a batch is shared by all of x. Only
    `DropBlock` with `normalize="batch"` depends on `batch_size`, over which it counts. A schedule is where training
    left it. Masks of Keras' and torch's own layers depend on the batch size and on the backend. In the regime "example"
    samples have masks of fresh seeds.

    A layer at rate 0 counts as no noise, unless it follows a schedule. If all passes turn out equal, as after a
    schedule that ends at rate 0, a warning says so.

    Args:
        model: a Keras model: functional, Sequential or subclassed, of one output, or of several in a dict or a list. It
            is compiled once in each call of `predict`, for all passes. Or a list of such models, an ensemble (arXiv
            1612.01474); several of them need no noise.
        x: what `model.predict` takes: an array (n, ...), or a list or dict of them as the model takes it, of NumPy, the
            backend, pandas or SciPy, where sparse ones are made dense batch by batch; or batches of them, as a
            `keras.utils.PyDataset`, a `tf.data.Dataset`, a torch `DataLoader` or a generator, that end. Of a batch
            (x, y) or (x, y, sample_weight), only x is used.
        samples: number of passes, from the number of models. None is the number of members where the model has members
            and no other noise, so that the mean is that of the ensemble; otherwise 50, or the next multiple of the
            number of members. (Where layers differ in it, of the least common multiple.) Several models count as
            members, each with those that it has itself.
        batch_size: samples in a forward pass; None is 32. The last batch is filled up, so that all have one shape. With
            x as batches it is theirs, and None here.
        seed: any int; None takes one from Python's `random`. A seed gives the same prediction each time.
        from_logits: whether outputs are logits. A softmax, or a sigmoid where the last axis has size 1, is applied
            first, in float64.
        probabilities: whether outputs are probabilities, and have entropies. None decides by their values, see below:
            give False for a regression of one number that may be in [0, 1] for all of x.
        gaussian: whether outputs are normal distributions: along the last axis means, then as many logarithms of
            variances (arXiv 1703.04977). Where a model has several outputs, this, `probabilities` and `from_logits` are
            for all of them, or dicts or lists like the outputs.
        layers: which layers make noise: None for all, "last" for the last one of them (in the order of the model's
            layers, which in a subclassed model is that of its attributes), or layers of the model or their names, of
            which what is inside makes noise too. Others are in inference; with members, a sample has that of its place
            in x. The masks are those of passes in which all layers make noise, but not in the modules of torch.
        keep: whether to keep the output of every pass; else memory does not depend on `samples`.
        verbose: 1 shows a progress bar; 0.

    Returns:
        A `Prediction`, or a dict or list of them where the model has several outputs. Outputs can be probabilities if
        they are non-negative and sum to 1 along the last axis; or if that has size 1, or there is none beside the
        batch's, and all are in [0, 1]: then they are the probability of the second of two classes.

    Raises:
        TypeError, ValueError: a model without noise, or an argument that is not as described, such as
            `probabilities=True` of outputs that cannot be probabilities.
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
    models = model if isinstance(model, list | tuple) else [model]
    if not models or not all(isinstance(one, keras.Model) for one in models):
        raise TypeError(checks.invalid("model", f"a list of models, or {checks.keras_model(model)}", model))
    reading = {"from_logits": from_logits, "probabilities": probabilities, "gaussian": gaussian}
    seed = check_arguments(seed, keep, **reading)
    batches, number = batches_of(x, batch_size)
    first, width = next(batches, (None, 0))
    if not width:
        raise ValueError(checks.invalid("x", "at least one batch", x))
    for one in models:
        if not all(layer.built for layer in of_keras.layers_of(one)):
            build(one, first)
    seeds = seeds_of(seed, models)
    members = [Passes(*one, layers, may_be_quiet=len(models) > 1) for one in zip(models, seeds, strict=True)]
    default = default_samples([(one.members, one.has_noise) for one in members])
    samples = default if samples is None else checks.check_count(samples, "samples", len(models))
    progress = keras.utils.Progbar(number and samples * number, verbose=verbose, unit_name="pass")

    def outputs() -> collections.abc.Iterator[collections.abc.Iterator[Outputs]]:
        widest, start = width, 0
        for rows, size in itertools.chain([(first, width)], batches):
            widest = max(widest, size)  # all batches have one shape where none is larger than those before
            yield of_batch(rows_of(rows, 0, widest), widest, start, size)
            start += size

    def of_batch(rows: typing.Any, width: int, start: int, size: int) -> collections.abc.Iterator[Outputs]:
        for sample in range(samples):
            found = members[sample % len(members)].run(rows, width, start, sample // len(members))
            yield {name: y[:size] for name, y in found.items()}
            progress.add(1)

    return collected(outputs(), samples, seed, keep, **reading)
