"""torch: marks and states that have no public name, or one whose use imports torch._dynamo, which takes seconds.

Importing this file does not import torch: what no framework is needed for is marked with it.
"""

import collections.abc
import contextlib
import sys
import typing

Function = typing.TypeVar("Function", bound=typing.Callable[..., typing.Any])

NOISE = (
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "AlphaDropout",
    "FeatureAlphaDropout",
    "RNN",
    "LSTM",
    "GRU",
    "MultiheadAttention",
)
"""Modules of torch that are noise, or have dropout of their own, which is all that training means to them."""

HOLDERS = ("TransformerEncoder", "TransformerEncoderLayer")
"""Modules of torch that pass by the dropout inside them unless they train."""


def constant_in_graphs(function: Function) -> Function:
    """Have torch.compile take what a function returns for a constant.

    It is what `torch.compiler.assume_constant_result` does, which imports torch._dynamo to do it.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined] # it is a mark, of no type
    return function


def in_checkpoint() -> bool:
    """Whether this runs, eagerly, in what `torch.utils.checkpoint` will run once more in the backward pass.

    With `use_reentrant=True` only the stack tells, else hooks that it sets.
    """
    import torch

    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    if hooks is not None and "checkpoint" in getattr(hooks[0], "__qualname__", ""):
        return True
    checkpoints = sys.modules.get("torch.utils.checkpoint")
    if checkpoints is None:
        return False
    code, frame = checkpoints.CheckpointFunction.forward.__code__, sys._getframe().f_back
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return frame is not None


def share(source: typing.Any, target: typing.Any, leave_out: collections.abc.Collection[str] = ()) -> None:
    """Have a module hold what another holds, the same tensors, modules, hooks and attributes, but for these names.

    What it held itself gives way, but for buffers, which it keeps beside.
    """
    for name, value in vars(source).items():
        own = vars(target).get(name, ()) if name in ("_buffers", "_non_persistent_buffers_set") else ()
        if isinstance(value, dict):
            value = type(value)({**dict(own), **{key: value[key] for key in value if key not in leave_out}})
        elif isinstance(value, set):
            value = {*own, *value} - {*leave_out}
        elif isinstance(value, list):  # of the weights of a recurrent module, which its attributes are put into
            value = list(value)
        if name not in leave_out:
            vars(target)[name] = value


class Told:
    """Before `torch.nn.Module` among a class' bases: the module is told when it is moved and when it loads.

    Nothing public tells it that it is moved, such as by `to_empty`, which forgets what a buffer holds. Of loading hooks
    do, but they would have to be told apart from those of users where a module is copied to another class.
    """

    def moving(self) -> contextlib.AbstractContextManager[object]:
        """What is entered before parameters and buffers are moved or cast, and left after it."""
        raise NotImplementedError

    def before_loading(self, state_dict: dict[str, typing.Any], prefix: str) -> None:
        """Change what is loaded: names that begin with the prefix are the module's."""
        raise NotImplementedError

    def _apply(self, fn: Function, recurse: bool = True) -> typing.Self:
        with self.moving():
            super()._apply(fn, recurse)  # type: ignore[misc] # torch.nn.Module has it
        return self

    def _load_from_state_dict(self, state_dict: dict[str, typing.Any], prefix: str, *others: typing.Any) -> None:
        self.before_loading(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *others)  # type: ignore[misc] # torch.nn.Module has it


def in_transform() -> bool:
    """Whether this runs in a transform of `torch.func`, or where tensors have tangents (`torch.autograd.forward_ad`).

    What a function holds is not changed in place in the first, and derivatives are taken of what is not recorded.
    """
    import torch

    return torch._C._functorch.maybe_current_level() is not None or torch.autograd.forward_ad._current_level >= 0


def is_traced() -> bool:
    """Whether operators are recorded or have no numbers: in a compiler, or in a mode such as those of `make_fx` are.

    What computes outside of operators would be a constant there.
    """
    import torch

    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def is_replica(module: typing.Any) -> bool:
    """Whether a module is one of the copies that `torch.nn.DataParallel` makes in a call, a device for each."""
    return bool(vars(module).get("_is_replica"))  # of a module, getattr takes long where there is nothing


def allow_recompilations(count: int) -> None:
    """Have torch.compile compile a function for so many kinds of arguments before it runs the next one eagerly.

    `torch.compiler.config` has this name too, but not yet in the oldest torch that is supported.
    """
    import torch

    torch._dynamo.config.recompile_limit = count


def noise_in(module: typing.Any) -> list[typing.Any]:
    """The modules of torch inside a module that have to train for it to make noise: none where it makes none."""
    from torch import nn

    def inside(names: tuple[str, ...]) -> list[typing.Any]:
        return [one for one in module.modules() if isinstance(one, tuple(getattr(nn, name) for name in names))]

    noise = [one for one in inside(NOISE) if getattr(one, "p", getattr(one, "dropout", 0)) > 0]
    return noise + inside(HOLDERS) if noise else []
