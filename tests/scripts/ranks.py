"""Two processes of one group: prints as JSON whether they are warned, and what their masks are of a batch of four.

An op is told where its rows are; a layer takes those that `DistributedSampler` would deal out.
"""

import json
import tempfile
import warnings

import keras
import torch

import pernodedrop as pnd

NOISE, KEY = pnd.Bernoulli(0.5), (1, 0)


def noisy():
    return pnd.PerNodeDrop(keras.layers.Dense(3, kernel_initializer="ones"), rate=0.5, seed=1)


def rank(number, file, results):
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=number, world_size=2)
    x, w = torch.ones(2, 5), torch.eye(5)
    layer = noisy()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        without = pnd.ops.masked_dense(x, w, NOISE, KEY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of_layer = layer(x, training=True)
        with_offset = pnd.ops.masked_dense(x, w, NOISE, KEY, sample_offset=2 * number)
        layer(x, training=True, sample_ids=torch.arange(2) + 2 * number)
        layer(x)
        pnd.PerNodeDrop(keras.layers.Dense(3), rate=0.5, sharing="sample+time")(x, training=True)
        pnd.ops.masked_dense(x, w, NOISE, KEY, sharing="sample+time")
    ours = [one for one in caught if "torch.distributed" in str(one.message)]
    results[number] = len(ours), without.tolist(), with_offset.tolist(), of_layer.tolist()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    results = torch.multiprocessing.Manager().dict()
    with tempfile.TemporaryDirectory() as folder:
        # forked, so that torch is imported once
        torch.multiprocessing.start_processes(rank, (f"{folder}/ranks", results), nprocs=2, start_method="fork")
    counts, without, with_offsets, of_layers = zip(*(results[n] for n in range(2)), strict=True)
    whole = pnd.ops.masked_dense(torch.ones(4, 5), torch.eye(5), NOISE, KEY).tolist()
    seen = {"without": [*without[0], *without[1]], "with offsets": [*with_offsets[0], *with_offsets[1]]}
    layers = {"layers": of_layers, "whole layer": noisy()(torch.ones(4, 5), training=True).tolist()}
    print(json.dumps({"warnings": counts, "whole": whole, **seen, **layers}))
