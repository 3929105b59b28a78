"""Products and gradients by the Triton kernels in Triton's interpreter, which needs no GPU: set TRITON_INTERPRET=1.

Usage: triton_products.py IN OUT. IN holds the arrays of cases as "case/argument", OUT will hold "case/y", "case/dx" and
"case/dw". Arguments in Fortran order keep it, coordinates of size 1 are shared, "tiles" are the sizes of TILES.
"""

import collections
import json
import sys

import triton  # isort: skip  # before TensorFlow, which Keras may import: the other way round it aborts the process

import numpy as np
import torch

from pernodedrop.backends import methods, triton_kernels

DEFAULT = triton_kernels.TILES


def words(array):
    return torch.from_numpy(array.view("int32"))


def run(case):
    triton_kernels.TILES = triton_kernels.Sizes(*map(int, case["tiles"])) if "tiles" in case else DEFAULT
    x, w, dy = (torch.from_numpy(case[name]) for name in ("x", "w", "dy"))
    threshold, names = torch.from_numpy(case["threshold"]), ("seed", "call", "time", "sample", "in", "out")
    *rows, in_, out = (words(case[name]) for name in names)
    mask = methods.Decisions(threshold, *rows, in_.expand(w.shape[0]), out.expand(w.shape[1]))
    return triton_kernels.forward(x, w, mask), *triton_kernels.backward(dy, x, w, mask)


def main():
    cases = collections.defaultdict(dict)
    for name, array in np.load(sys.argv[1]).items():
        case, _, argument = name.rpartition("/")
        cases[case][argument] = array
    results = {}
    for name, case in cases.items():
        results |= {f"{name}/{of}": a.numpy() for of, a in zip(("y", "dx", "dw"), run(case), strict=True)}
    np.savez(sys.argv[2], **results)
    print(json.dumps({"triton": triton.__version__, "cases": len(cases)}))


main()
