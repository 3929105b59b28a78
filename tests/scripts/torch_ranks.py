"""Two processes of one group, by DDP and by FSDP2, and one alone with the whole batch.

Prints as JSON the weights that each comes to, and how many keys it drew; then those of DynamicDropConnect, whose masks
follow gradients, where all have the whole batch.
"""

import json
import tempfile

import torch
import torch.distributed.fsdp

import pernodedrop.torch as pndt

X = torch.linspace(-1, 1, 40).reshape(8, 5)


def network(kind=pndt.PerNodeLinear):
    torch.manual_seed(0)
    first = kind(5, 4, seed=1)
    if kind is pndt.DynamicDropConnectLinear:
        return torch.nn.Sequential(first, torch.nn.Tanh(), torch.nn.Identity(), torch.nn.Linear(4, 1))
    return torch.nn.Sequential(first, torch.nn.Tanh(), pndt.Dropout(0.5, seed=2), torch.nn.Linear(4, 1))


def trained(model, x):
    """The weights after three steps, and how many keys were drawn."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(x) ** 2).mean().backward()
        optimizer.step()
    layer = getattr(model, "module", model)[0]
    weight = getattr(layer.weight, "full_tensor", layer.weight.detach)()
    return weight.flatten().tolist(), layer.updates


def sharded(model):
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    for part in (model[0], model[3], model):
        torch.distributed.fsdp.fully_shard(part, mesh=mesh)
    return model


def rank(number, file, results):
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=number, world_size=2)
    found = []
    for kind, x in ((pndt.PerNodeLinear, X[number::2]), (pndt.DynamicDropConnectLinear, X)):
        models = torch.nn.parallel.DistributedDataParallel(network(kind)), sharded(network(kind))
        found.append([trained(model, x) for model in models])  # x as DistributedSampler deals samples out, or all of it
    results[number] = found
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    results = torch.multiprocessing.Manager().dict()
    with tempfile.TemporaryDirectory() as folder:
        # forked, so that torch is imported once
        torch.multiprocessing.start_processes(rank, (f"{folder}/ranks", results), nprocs=2, start_method="fork")
    ranks, dynamic = ([*results[0][n], *results[1][n]] for n in range(2))
    dynamic = [trained(network(pndt.DynamicDropConnectLinear), X), *dynamic]
    print(json.dumps({"ranks": ranks, "alone": trained(network(), X), "dynamic": dynamic}))
