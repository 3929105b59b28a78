"""TensorFlow: what a trace is for, which no public name tells, and one op of XLA's."""

import sys
import types

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla
from tensorflow.python.eager import record
from tensorflow.python.ops import control_flow_util

from pernodedrop._types import Shape, Tensor


def is_recorded() -> bool:
    """Whether a gradient tape is active."""
    return record.could_possibly_record()


def is_in_xla() -> bool:
    """Whether the graph that is being built, or one around it, is compiled by XLA."""
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def is_in_recompute_grad() -> bool:
    """Whether this runs in what `tf.recompute_grad` runs once more in the backward pass: only the stack tells."""
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_filename.endswith("custom_gradient.py") and code.co_name in ("inner", "inner_recompute_grad"):
            return True
        frame = frame.f_back
    return False


def written(tensor: Tensor, block: Tensor, start: Shape) -> Tensor:
    """The tensor with a block written from `start` on, inside of XLA, where a loop writes into its own buffer.

    Public ops would stack the blocks and copy them once more.
    """
    return xla.dynamic_update_slice(tensor, block, start)
