"""What a process does whose first call of all is a compiled one, and one after TensorFlow: prints it as JSON."""

import importlib.machinery
import json
import sys
import types

import torch

import pernodedrop as pnd

tensorflow = types.ModuleType("tensorflow")  # in its place, as it takes seconds to import
tensorflow.__spec__ = importlib.machinery.ModuleSpec("tensorflow", None)
sys.modules["tensorflow"] = tensorflow

noise = pnd.Bernoulli(0.5)
product = torch.compile(lambda x, w: pnd.ops.masked_dense(x, w, noise, (1, 0)), fullgraph=True, backend="aot_eager")
x, w = torch.ones(2, 3), torch.ones(3, 4)
equal = bool((product(x, w) == pnd.ops.masked_dense(x, w, noise, (1, 0))).all())
print(json.dumps({"compiled": equal and sys.modules.get("triton", ...) is not None}))
