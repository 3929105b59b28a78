"""How the noise layers of a model make noise while all else of it is in inference, and how it is then as it was.

While a pass is traced, the `call` of each noise layer is replaced on the layer itself by one that trains.
"""

import collections.abc
import contextlib
import functools
import inspect
import threading
import types
import typing

import keras

from pernodedrop.internals import of_keras

Arguments: typing.TypeAlias = dict[str, typing.Any]

CHANGING = threading.RLock()
"""Held while layers are changed, one prediction at a time: models may have layers in common."""


class _Untold(int):
    """`training` of a call that is in inference because nobody says otherwise: false, and yet another than False.

    Layers hand it on, be it by name or by Keras' context, where in training they would hand on True.
    """


UNTOLD = _Untold(0)


def is_noisy_in_training(arguments: Arguments) -> bool:
    """Whether a call that has these arguments in a pass makes noise in training."""
    training = arguments.get("training")
    return training is UNTOLD or bool(training)


@contextlib.contextmanager
def modes_kept(layer: keras.layers.Layer) -> collections.abc.Iterator[None]:
    """Has a layer of torch, whose calls note on its modules whether they train, leave them as they were."""
    modes = [(module, module.training) for module in layer.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def training(
    modules: dict[keras.layers.Layer, list[typing.Any]], noisy: dict[keras.layers.Layer, bool], word: int
) -> collections.abc.Iterator[None]:
    """Has modules of torch, by the layer that they are in, train where it is `noisy`, with random numbers of a word."""
    import torch

    def put(layer: keras.layers.Layer, module: typing.Any) -> typing.Any:
        return module.register_forward_pre_hook(lambda *_: setattr(module, "training", noisy[layer]))

    hooks = [put(layer, module) for layer, inside in modules.items() for module in inside]
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(word)
            yield
    finally:
        for hook in hooks:
            hook.remove()


def changed(
    layer: keras.layers.Layer, change: typing.Callable[[keras.layers.Layer, Arguments, typing.Any], None]
) -> collections.abc.Iterator[contextlib.AbstractContextManager[None]]:
    """Contexts in which `change(layer, arguments, rows)` changes the arguments of this thread's calls of a layer.

    Those, that is, which the layer's `call` knows, or whatever else it is called by.
    """
    for method in getattr(type(layer), "called_by", ("call",)):  # a wrapper itself would answer for its inner layer
        yield of_keras.calling(layer, _call_changed(layer, change, getattr(layer, method)), method)


def _call_changed(
    layer: keras.layers.Layer,
    change: typing.Callable[[keras.layers.Layer, Arguments, typing.Any], None],
    call: typing.Callable[..., typing.Any],
) -> typing.Callable[..., typing.Any]:
    """The same call, by other arguments in this thread."""
    thread = threading.get_ident()
    # looked up at every pass, which is what a pass of a small layer would spend its time with
    signature = _signature(call.__func__) if inspect.ismethod(call) else inspect.signature(call)

    def call_changed(*args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        if threading.get_ident() != thread:
            return call(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        first = keras.tree.flatten(next(iter(bound.arguments.values())))[0]
        change(layer, bound.arguments, keras.ops.shape(first)[0])
        return call(*bound.args, **bound.kwargs)  # an argument of another name is in neither

    return call_changed


@functools.lru_cache
def _signature(function: types.FunctionType) -> inspect.Signature:
    """The signature of a method: a function without its first argument."""
    return inspect.signature(function.__get__(object()))


def forget_masks(layer: keras.layers.Layer) -> None:
    """Has a recurrent cell forget the masks that it kept for all steps of a pass which did not end."""
    if hasattr(layer, "reset_dropout_mask"):
        layer.reset_dropout_mask()
        layer.reset_recurrent_dropout_mask()
