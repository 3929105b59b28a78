"""Two processes of one group, by DDP and by FSDP2, and one alone with the whole batch.

Prints as JSON the weights that each comes to, how many keys it drew, and what is 0 in the next two masks; and how a
normalisation over the whole batch is refused.
"""

import json
import tempfile

import torch
import torch.distributed.fsdp

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
    weight = getattr(layer.weight, "full_tensor", layer.weight.detach)()
    return weight.flatten().tolist(), layer.updates


def next_zeros(model, rows):
    """Where the next masks are 0: that of the kernel at rows of the identity, that of what comes behind it."""
    parts, zeros = getattr(model, "module", model), []
    hooks = [parts[n].register_forward_hook(lambda _, x, y: zeros.append((y == 0).tolist())) for n in (0, 2)]
    bias = parts[0].bias
    with torch.no_grad():
        bias.zero_()
        model(torch.eye(5).repeat(2, 1)[rows])
    for hook in hooks:
        hook.remove()
    return zeros


def refusal():
    try:
        pndt.DropBlock2d(0.3, 2, normalize="batch", seed=1)(torch.ones(2, 3, 4, 4))
    except ValueError as error:
        return str(error)


def sharded(model):
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    for part in (model[0], model[3], model):
        torch.distributed.fsdp.fully_shard(part, mesh=mesh)
    return model


def rank(number, file, results):
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=number, world_size=2)
    x = torch.linspace(-1, 1, 40).reshape(8, 5)
    models = torch.nn.parallel.DistributedDataParallel(network()), sharded(network())
    ours = slice(number, 8, 2)  # as DistributedSampler deals samples out
    results[number] = [(*trained(model, x[ours]), next_zeros(model, ours)) for model in models], refusal()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    results = torch.multiprocessing.Manager().dict()
    with tempfile.TemporaryDirectory() as folder:
        # forked, so that torch is imported once
        torch.multiprocessing.start_processes(rank, (f"{folder}/ranks", results), nprocs=2, start_method="fork")
    model = network()
    alone = *trained(model, torch.linspace(-1, 1, 40).reshape(8, 5)), next_zeros(model, slice(0, 8))
    print(json.dumps({"ranks": [results[0], results[1]], "alone": alone}))
