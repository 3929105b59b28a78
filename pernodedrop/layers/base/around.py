"""A layer around another one, which has what others read of the layer inside."""

import functools
import inspect
import typing

import keras

VARIABLES = frozenset({"kernel", "bias"})

OF_MODULE = getattr(keras.layers.Layer, "__getattr__", None)
"""How torch, where a layer is a module, finds the layers and parameters of one."""


class Around(keras.layers.Wrapper):
    """Base of wrappers. Its public attributes are also those of the inner layer, as far as it has none of that name.

    So what holds a layer finds `kernel`, `bias`, `units`, `filters` and so on whether the layer is wrapped or not. What
    the inner layer's class takes as an argument, its kernel and its bias are also set there, where they are read.
    Methods are not handed on: who goes through all layers of a model to call one finds the inner layer too.
    """

    def __getattr__(self, name: str) -> typing.Any:
        if OF_MODULE is not None:
            try:
                return OF_MODULE(self, name)
            except AttributeError:
                pass
        message = f"{type(self).__name__!r} object has no attribute {name!r}"
        if name.startswith("_") or name == "layer":  # nor does Python ask the inner layer how to copy this one
            raise AttributeError(message, name=name, obj=self)
        try:
            value = getattr(self.layer, name)
        except AttributeError as error:
            raise AttributeError(f"{message}, nor has its inner layer: {error}", name=name, obj=self) from error
        if inspect.ismethod(value):
            message = f"{message}: it is a method of its inner layer, call `.layer.{name}`"
            raise AttributeError(message, name=name, obj=self)
        return value

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """The inner layer, which `model.summary(expand_nested=True)` then shows."""
        return [self.layer]

    def __setattr__(self, name: str, value: typing.Any) -> None:
        if self._is_of_inner(name):
            setattr(self.layer, name, value)
        else:
            super().__setattr__(name, value)

    def _is_of_inner(self, name: str) -> bool:
        """Whether an attribute that is set is one of the inner layer alone."""
        if name.startswith("_") or name in vars(self) or not hasattr(self, "layer"):
            return False
        wrapper: typing.Any = type(self)
        inner: typing.Any = type(self.layer)
        return name in _of_kind(inner) and name not in _own(wrapper)


@functools.cache
def _own(kind: typing.Any) -> frozenset[str]:
    """What the class of a wrapper has or takes as an argument."""
    return frozenset({*dir(kind), *inspect.signature(kind.__init__).parameters})


@functools.cache
def _of_kind(kind: typing.Any) -> frozenset[str]:
    """What the class of an inner layer takes as an argument, and those of Keras' that it derives from."""
    of_keras = [each for each in kind.__mro__ if each.__module__.startswith("keras.")]
    own = of_keras[: max(1, of_keras.index(keras.layers.Layer))]  # what any layer has is the wrapper's too
    return VARIABLES.union(*(inspect.signature(each.__init__).parameters for each in own))
