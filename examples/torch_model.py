# torch
"""
Noise in a PyTorch model, in one line
=====================================

A model that you already have, its training loop, and one line that puts noise into it.
Keras is not needed.
"""

import matplotlib.pyplot as plt
import pernodedrop.torch as pndt
import sklearn.datasets
import torch

EPOCHS = 15  # 60
RATE = 0.2  # try half and double: small networks want less noise than large ones

x, y = sklearn.datasets.load_digits(return_X_y=True)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
x, y = torch.tensor(x[order] / 16, dtype=torch.float32), torch.tensor(y[order])
x, y, x_val, y_val = x[:300], y[:300], x[300:], y[300:]

# %%
# Model and loop, as they were
# ----------------------------


def network():
    torch.manual_seed(0)
    first, second, last = (
        torch.nn.Linear(64, 64),
        torch.nn.Linear(64, 64),
        torch.nn.Linear(64, 10),
    )
    return torch.nn.Sequential(first, torch.nn.ReLU(), second, torch.nn.ReLU(), last)


def train(model):
    optimizer, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for epoch in range(EPOCHS):
        model.train()
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(30):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            losses.append(
                torch.nn.functional.cross_entropy(model.eval()(x_val), y_val).item()
            )
    return losses


# %%
# The line
# --------
#
# ``apply`` puts noise into the modules that it is told, in place, and keeps their
# parameters: checkpoints, optimizers and hooks stay as they are. Here: into all linear
# modules but the last, whose name is "4".

noisy = pndt.apply(network(), "all-linear", rate=RATE, exclude="4", seed=1)
print(noisy)

curves = {"without noise": train(network()), "with noise": train(noisy)}
for name, losses in curves.items():
    print(f"{name}: loss {losses[-1]:.3f} on other images")

figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
for name, losses in curves.items():
    axes.plot(range(1, EPOCHS + 1), losses, label=name)
axes.set(xlabel="epoch", ylabel="loss on other images", yscale="log")
axes.legend()
figure

# %%
# With noise a model learns more slowly, and one training of each says nothing yet about
# which is better: ``pernodedrop.study.compare`` takes the losses of several seeds, and
# says whether they differ beyond chance. In a dense network as small as this no noise
# has helped on these images, but it has in a small ResNet: the page "Results".
#
# And then
# --------
#
# The model says how sure it is, and ``fold`` gives a copy of plain modules for
# deployment.

found = pndt.uncertainty.predict(noisy, x_val, samples=20, seed=1, from_logits=True)
wrong = torch.as_tensor(found.mean).argmax(-1) != y_val
doubt = torch.as_tensor(found.mutual_information)
print(f"disagreement of the passes: {doubt[wrong].mean():.2f} where it is wrong,")
print(f"                            {doubt[~wrong].mean():.2f} where it is right")

plain = pndt.fold(noisy)
torch.testing.assert_close(plain(x_val), noisy.eval()(x_val))
