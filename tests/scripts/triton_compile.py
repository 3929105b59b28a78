"""The Triton kernels compiled for a device that is not there: what their machine code holds.

Usage: triton_compile.py CAPABILITY, for instance 90 for an H100; before that the kernels of tensor cores alone.
"""

import json
import re
import sys

import triton  # isort: skip  # before TensorFlow, which Keras may import: the other way round it aborts the process

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pernodedrop.backends import triton_kernels, triton_shared_kernels

FLOATS = {"y", "x", "w", "dx", "dy", "dw"}
WORDS = {"threshold", "seed", "call", "time", "sample", "in_", "out", "folded"}
INSTRUCTIONS = {"spills": r"\b(?:STL|LDL)\b", "atomics": r"\b(?:ATOM|ATOMG|ATOMS|RED)\b"}
OF_ROWS = ("_y_kernel", "_dx_kernel", "_dw_kernel", "_kept_dx_kernel", "_kept_dw_kernel", "_words_kernel")
SHARED = {"_y_kernel": "inputs", "_dx_kernel": "outputs", "_dw_kernel": "times"}
BYTES = {"fp32": 4, "bf16": 2}
DTYPES = {"fp32": triton.language.float32, "bf16": triton.language.bfloat16}


def compiled(kernel, module, operands="fp32", depth=None, **constants):
    """Its machine code, for operands of a dtype, and a depth along the axis `depth` if there is one."""
    names = kernel.arg_names
    sizes = module.TILES if depth is None else module.TILES._replace(**{depth: module.DEPTH // BYTES[operands]})
    tile = {name: getattr(sizes, name.removeprefix("tile_")) for name in names if "tile_" in name}
    constants = {name: value for name, value in {**tile, **constants}.items() if name in names}
    types = {**dict.fromkeys(FLOATS, f"*{operands}"), **dict.fromkeys(WORDS, "*i32"), "bits": "*i16"}
    types |= {**dict.fromkeys(constants, "constexpr"), "dw": "*fp32"}
    signature = {name: types.get(name, "i32") for name in names}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    return triton.compile(source, target=target, options=module.OPTIONS).asm["sass"]


def main():
    code, of_rows = {}, OF_ROWS if int(sys.argv[1]) >= 90 else ()
    if of_rows:
        code = {name: compiled(getattr(triton_kernels, name), triton_kernels, bits=None) for name in SHARED}
    for name in of_rows:
        kernel = getattr(triton_kernels, name)
        code[name if name != "_y_kernel" else f"{name} keeping"] = compiled(kernel, triton_kernels)
    for name, depth in SHARED.items():
        for dtype in DTYPES:
            kernel = getattr(triton_shared_kernels, name)
            constants = {"depth": depth, "dtype": DTYPES[dtype], "precision": "tf32x3"}
            code[f"{name} {dtype}"] = compiled(kernel, triton_shared_kernels, dtype, **constants)
    seen = {name: {what: len(re.findall(n, sass)) for what, n in INSTRUCTIONS.items()} for name, sass in code.items()}
    print(json.dumps(seen))


main()
