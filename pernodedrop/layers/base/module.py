"""On torch, where a Keras layer is a module: who switches modules to training is told what Keras asks for instead."""

import traceback
import typing
import warnings

import keras

from pernodedrop.internals import of_torch

ON_TORCH = keras.backend.backend() == "torch"


class Module(keras.layers.Layer):
    """A layer that knows whether somebody switched it to training by `.train()`, of which Keras takes no notice.

    `module.training` alone does not say so: it is True from the start, and `fit` sets it too. Of layers inside a
    Sequential or functional model torch does not know, so `.train()` does not come to them.
    """

    was_switched = False

    if ON_TORCH:

        def train(self, mode: bool = True) -> typing.Self:
            self.was_switched = mode and not _switched_by_keras()
            return super().train(mode)


def _switched_by_keras() -> bool:
    """Whether it is Keras that calls the `train` of a module, which calls that of every module inside."""
    # from the inside out: this file, the `train` of the modules around, and who called the outermost
    frames = (frame for frame, _ in traceback.walk_stack(None) if frame.f_code.co_name != "train")
    callers = (frame.f_globals.get("__name__", "") for frame in frames if frame.f_globals is not globals())
    return next(callers, "").startswith("keras.")


@of_torch.constant_in_graphs
def warn_of_switch(name: str) -> None:
    """Say, once in a process, that a call is not one of training although its layer was switched to it."""
    if _WARNED:
        return
    _WARNED.append(name)
    warnings.warn(SWITCH.format(name), stacklevel=1)


_WARNED: list[str] = []

SWITCH = (
    "Layer {!r} does in this call what it does at inference, without the noise of training, though `.train()` was "
    "called on it or on a module that holds it: Keras goes by the argument `training`, not by a module's mode. Pass "
    "it, `layer(x, training=self.training)`, to the layer or to the Keras model that it is in. (This is said once.)"
)
