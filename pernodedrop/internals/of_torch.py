"""torch: marks and states that have no public name, or one whose use imports torch._dynamo, which takes seconds.

Importing this file does not import torch: what no framework is needed for is marked with it.
"""

import sys
import typing

Function = typing.TypeVar("Function", bound=typing.Callable[..., typing.Any])


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


def allow_recompilations(count: int) -> None:
    """Have torch.compile compile a function for so many kinds of arguments before it runs the next one eagerly.

    `torch.compiler.config` has this name too, but not yet in the oldest torch that is supported.
    """
    import torch

    torch._dynamo.config.recompile_limit = count
