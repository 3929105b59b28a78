"""Masksembles: an ensemble of a few fixed masks over channels (Durasov et al., arXiv 2012.08334)."""

import dataclasses
import typing

import keras
import numpy as np

from pernodedrop import checks
from pernodedrop._types import Config, Key, Shape, Tensor
from pernodedrop.layers.base.activation_noise import apply_mask
from pernodedrop.layers.base.noisy import Noisy, check_size, floating, xp
from pernodedrop.members import Ensemble, Members, check_axis


@keras.saving.register_keras_serializable("pernodedrop")
class Masksembles(Ensemble, Noisy):
    """Multiplies each sample by one of a few fixed masks over channels (Durasov et al., arXiv 2012.08334).

    y[b, ..., c] = x[b, ..., c] * mask[member(b), c], in training and at inference alike, so nothing has to be rescaled.
    Each mask is a member of an ensemble whose members share their weights. At scale 1 all masks are ones; the higher
    the scale, the less the masks overlap, and the more the members differ.

    Every mask has the same number m of ones: C * k rounded down, as in the authors' code and in torch-uncertainty, and
    at least C / members, where C is the number of channels and

        k = 1 / (scale * (1 - (1 - 1 / scale)**members)).

    Every channel is in at least one mask, and all such choices of masks are equally probable, which is the distribution
    of the paper's code for a given number of channels. That code puts m ones of each mask at random among m * scale
    positions and deletes the positions that no mask uses. It repeats this, with other scales, until as many are left as
    there are channels, which for some numbers takes minutes or fails; here the masks are drawn at once for any number.
    Up to the rounding of m, the expected overlap of two masks (intersection over union) is 1 / (2 * scale - 1).

    The masks are made from the seed when the layer is built, and are the same on every backend. They are a weight that
    is not trained, `masks`, float32 (members, channels), which is saved and to which other masks may be assigned. In
    front of a Dense layer, and with the masks of a bank, it is `PerNodeDrop(dense, regime="bank", sharing="out")`.

    Args:
        members: number of masks, an int from 1; 4.
        scale: how little the masks overlap, a finite float from 1; 2.0.
        train_assignment: which member a sample has in training. "random": a random one, drawn anew in each call (the
            paper). "contiguous": the batch is cut into `members` successive parts: sample i of n has member
            floor(i * members / n) (the authors' code, whose batches `members` has to divide). "repeat": sample i has
            member i modulo members; with batches made by `repeated` every sample goes through all members, as in
            torch-uncertainty.
        axis: the axis of the channels, an int; -1.
        seed: int, any; None takes one from Python's `random`.
        rounding: how the number of ones is rounded, "down" or to the "nearest", which comes closer to k.
        **kwargs: those of `keras.layers.Layer`.

    Call arguments:
        inputs: floating tensor of rank from 2, samples first.
        training: whether to train; Keras sets it in `fit`.
        key: the key to draw members with in training, from `draw()`; only the random assignment draws.
        sample_ids: integer tensor (batch,): the member of each row, modulo `members`, also in training.

    Output shape and dtype: the input's.

    Inference: sample i of a batch has member i modulo `members`, unless `sample_ids` says otherwise. So a prediction
    depends on the order of the samples and on the batch size, and `model.evaluate(x, y)` is a mean over members of
    different samples. For the ensemble's predictions call the model on `repeated(x)`, or use
    `pernodedrop.uncertainty.predict`; `model.evaluate(*repeated((x, y)))` is the mean over all members of all samples,
    in batches that `members` divides. On replicas of TensorFlow the contiguous assignment cuts the replica's part of
    the batch; the others count in the whole batch.

    Raises:
        TypeError, ValueError: an argument that is not as described, named in the message.

    Example:

    >>> import keras, numpy as np, pernodedrop as pnd
    >>> layer = pnd.Masksembles(members=4, scale=2.0, seed=1)
    >>> y = keras.ops.convert_to_numpy(layer(np.ones((4, 16), "float32")))
    >>> y.sum(axis=1).tolist(), bool(y.any(axis=0).all())
    ([8.0, 8.0, 8.0, 8.0], True)
    """

    def __init__(
        self,
        members: int = 4,
        scale: float = 2.0,
        train_assignment: str = "random",
        axis: int = -1,
        seed: int | None = None,
        rounding: str = "down",
        **kwargs: typing.Any,
    ) -> None:
        which, axis = Members(members, scale, train_assignment, rounding), check_axis(axis)
        super().__init__(which.mask, seed=seed, **kwargs)
        self.which, self.axis = which, axis
        self._first = int(keras.ops.convert_to_numpy(self._key).view("uint32")[0])
        self.supports_masking = True

    def build(self, input_shape: Shape) -> None:
        rank = len(input_shape)
        if not -rank < self.axis < rank or not input_shape[self.axis]:
            expected = f"an axis from 1, the samples being 0, of known size above 0, of {input_shape}"
            raise ValueError(checks.invalid("axis", expected, self.axis))
        channels = input_shape[self.axis]
        self.masks = self._variable("masks", self.which.masks(channels, self._first))

    def call(
        self,
        inputs: Tensor,
        training: bool | None = None,
        key: Key | None = None,
        sample_ids: Tensor | None = None,
    ) -> Tensor:
        inputs = floating(inputs)
        check_size(inputs, self.axis, self.masks.shape[1])
        checks.check_training(training)
        member = self.member_of_rows(inputs, key, sample_ids, self.trains(training))
        masks = xp.asarray(self.masks.value)
        return apply_mask(inputs, self.masks_of_rows(masks, member, self.axis, len(inputs.shape)))

    def repeated(self, data: typing.Any) -> typing.Any:
        """Each sample `members` times in succession, so that it goes through all members.

        Args:
            data: array (n, ...), NumPy's or the backend's, or a nested structure of them, such as (x, y).

        Returns:
            The same structure with arrays (n * members, ...): train on it with `train_assignment="repeat"`, in batches
            that `members` divides and that are not shuffled. At inference, outputs for it are the ensemble's as
            (n, members, ...).

        >>> import numpy as np, pernodedrop as pnd
        >>> pnd.Masksembles(members=2).repeated(np.array([3, 5])).tolist()
        [3, 3, 5, 5]
        """

        def repeat(leaf: typing.Any) -> typing.Any:
            of = np if isinstance(leaf, np.ndarray) else keras.ops
            return of.repeat(leaf, self.members, axis=0)

        return keras.tree.map_structure(repeat, data)

    def fold(self) -> keras.layers.Layer:
        """Refused.

        Raises:
            ValueError: always, since the members are several functions.
        """
        raise ValueError(checks.invalid("members", "one function at inference, to be folded", self.members))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            **dataclasses.asdict(self.which),
            "axis": self.axis,
        }
