"""Products and gradients by the Triton kernels in Triton's interpreter, which needs no GPU: set TRITON_INTERPRET=1.

Usage: triton_products.py IN OUT. IN holds the arrays of cases as "case/argument", OUT will hold "case/y", "case/dx" and
"case/dw", and of a case that is "kept" "case/bits" and "case/kept y", "case/kept dx" and "case/kept dw", which
are of the kernels that keep decisions and read them. Arguments in Fortran order keep it, coordinates of size 1 are
shared, "tiles" are the sizes of TILES, "dtype" is the name of that of the operands.
"""

import collections
import json
import sys

import triton  # isort: skip  # before TensorFlow, which Keras may import: the other way round it aborts the process

import numpy as np
import torch

from pernodedrop.backends import methods, triton_kernels, triton_shared_kernels

DEFAULT = triton_kernels.TILES, triton_shared_kernels.TILES
triton_kernels.PROGRAMS = 3  # enough for a sum of parts; what a program does first takes the interpreter milliseconds


def words(array):
    return torch.from_numpy(array.view("int32"))


def run(case):
    triton_kernels.TILES, triton_shared_kernels.TILES = DEFAULT
    dtype = getattr(torch, str(case.get("dtype", "float32")))
    x, w, dy = (torch.from_numpy(case[name]).to(dtype) for name in ("x", "w", "dy"))
    threshold, names = torch.from_numpy(case["threshold"]), ("seed", "call", "time", "sample", "in", "out")
    *rows, in_, out = (words(case[name]) for name in names)
    mask = methods.Decisions(threshold, *rows, in_.expand(w.shape[0]), out.expand(w.shape[1]))
    if x.ndim == 3:
        triton_shared_kernels.TILES = triton_shared_kernels.Sizes(*map(int, case.get("tiles", DEFAULT[1])))
        y, (dx, dw) = triton_shared_kernels.forward(x, w, mask), triton_shared_kernels.backward(dy, x, w, mask)
        assert {y.dtype, dx.dtype, dw.dtype} == {dtype}
        return {"y": y, "dx": dx, "dw": dw}
    triton_kernels.TILES = triton_kernels.Sizes(*map(int, case.get("tiles", DEFAULT[0])))
    y, (dx, dw) = triton_kernels.forward(x, w, mask), triton_kernels.backward(dy, x, w, mask)
    found = {"y": y, "dx": dx, "dw": dw}
    if "kept" not in case:
        return found
    kept_y, bits = triton_kernels.forward_keeping(x, w, mask)
    kept_dx, kept_dw = triton_kernels.backward(dy, x, w, mask, bits)
    return {**found, "bits": bits, "kept y": kept_y, "kept dx": kept_dx, "kept dw": kept_dw}


def main():
    cases = collections.defaultdict(dict)
    for name, array in np.load(sys.argv[1]).items():
        case, _, argument = name.rpartition("/")
        cases[case][argument] = array
    results = {}
    for name, case in cases.items():
        found = {of: a.float() if a.is_floating_point() else a for of, a in run(case).items()}
        results |= {f"{name}/{of}": a.numpy() for of, a in found.items()}
    np.savez(sys.argv[2], **results)
    print(json.dumps({"triton": triton.__version__, "cases": len(cases)}))


main()
