"""The Triton kernels compiled for a device that is not there: what their machine code holds.

Usage: triton_compile.py CAPABILITY, for instance 90 for an H100.
"""

import json
import re
import sys

import triton  # isort: skip  # before TensorFlow, which Keras may import: the other way round it aborts the process

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pernodedrop.backends import triton_kernels

FLOATS = {"y", "x", "w", "dx", "dy", "dw"}
WORDS = {"threshold", "seed", "call", "time", "sample", "in_", "out"}
INSTRUCTIONS = {"spills": r"\b(?:STL|LDL)\b", "atomics": r"\b(?:ATOM|ATOMG|ATOMS|RED)\b"}


def compiled(kernel):
    names = kernel.arg_names
    tile = {name: getattr(triton_kernels.TILES, name.removeprefix("tile_")) for name in names if "tile_" in name}
    types = {**dict.fromkeys(FLOATS, "*fp32"), **dict.fromkeys(WORDS, "*i32"), **dict.fromkeys(tile, "constexpr")}
    signature = {name: types.get(name, "i32") for name in names}
    source = ASTSource(kernel, signature, {(names.index(name),): size for name, size in tile.items()})
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    return triton.compile(source, target=target, options=triton_kernels.OPTIONS)


def main():
    seen = {}
    for kernel in (triton_kernels._y_kernel, triton_kernels._dx_kernel, triton_kernels._dw_kernel):
        code = compiled(kernel).asm["sass"]
        seen[kernel.fn.__name__] = {name: len(re.findall(names, code)) for name, names in INSTRUCTIONS.items()}
    print(json.dumps(seen))


main()
