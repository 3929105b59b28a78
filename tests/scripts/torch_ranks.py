"""Two processes of one group, and one alone with the whole batch: prints as JSON the weights that each comes to."""

import json
import tempfile

import torch

import pernodedrop.torch as pndt


def network():
    torch.manual_seed(0)
    first = pndt.PerNodeLinear(5, 4, rate=0.5, seed=1)
    return torch.nn.Sequential(first, torch.nn.Tanh(), pndt.Dropout(0.5, seed=2), torch.nn.Linear(4, 1))


def trained(model, x):
    """The weights after three steps, and how many keys were drawn."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) ** 2).mean().backward()
        optimizer.step()
    layer = getattr(model, "module", model)[0]
    return layer.weight.flatten().tolist(), layer.updates


def rank(number, file, results):
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=number, world_size=2)
    x = torch.linspace(-1, 1, 40).reshape(8, 5)
    model = torch.nn.parallel.DistributedDataParallel(network())
    results[number] = trained(model, x[number::2])  # as DistributedSampler deals samples out
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    results = torch.multiprocessing.Manager().dict()
    with tempfile.TemporaryDirectory() as folder:
        # forked, so that torch is imported once
        torch.multiprocessing.start_processes(rank, (f"{folder}/ranks", results), nprocs=2, start_method="fork")
    alone = trained(network(), torch.linspace(-1, 1, 40).reshape(8, 5))
    print(json.dumps({"ranks": [results[0], results[1]], "alone": alone}))
