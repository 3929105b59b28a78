"""torch: marks and states that have no public name, or one whose use imports torch._dynamo, which takes seconds."""

import typing

import torch

Function = typing.TypeVar("Function", bound=typing.Callable[..., typing.Any])


def constant_in_graphs(function: Function) -> Function:
    """Have torch.compile take what a function returns for a constant.

    It is what `torch.compiler.assume_constant_result` does, which imports torch._dynamo to do it.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined] # it is a mark, of no type
    return function


def in_checkpoint() -> bool:
    """Whether this runs, eagerly, in what `torch.utils.checkpoint` will run once more in the backward pass."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and "checkpoint" in getattr(hooks[0], "__qualname__", "")


def allow_recompilations(count: int) -> None:
    """Have torch.compile compile a function for so many kinds of arguments before it runs the next one eagerly.

    `torch.compiler.config` has this name too, but not yet in the oldest torch that is supported.
    """
    torch._dynamo.config.recompile_limit = count
