# torch
"""
A PyTorch model, from the first line to *did it help*
=====================================================

The whole way on one page: one line that puts noise into a model that you have, a rate,
whether it helped, what it cost, a checkpoint, and predictions that say how sure they
are. Keras is not needed.

``pip install "pernodedrop[torch,fast,study]"``
"""

import pathlib
import tempfile
import time

import matplotlib.pyplot as plt
import pernodedrop as pnd
import pernodedrop.torch as pndt
import sklearn.datasets
import torch

EPOCHS = 10  # 60: until the losses are flat
SEEDS = 3  # 10: fresh ones, that confirm

# %%
# The data comes with scikit-learn: digits of 8 x 8 pixels. It has three parts: one to
# train, one to choose by, and one to test, by which nothing is chosen.

x, y = sklearn.datasets.load_digits(return_X_y=True)
order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
x, y = torch.tensor(x[order] / 16, dtype=torch.float32), torch.tensor(y[order])
parts = (part[:1200].split([300, 400, 500]) for part in (x, y))
train, val, test = zip(*parts, strict=True)

# %%
# Model and loop, as you have them
# --------------------------------
#
# A seed sets the weights and the order of the batches. The loop returns the validation
# loss of the best epoch, and the test loss of that same epoch.


class Network(torch.nn.Module):
    def __init__(self, seed, dropout=0.0):
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch.nn.Linear(64, 64)
        self.second = torch.nn.Linear(64, 64)
        self.out = torch.nn.Linear(64, 10)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x):
        h = self.dropout(self.first(x).relu())
        h = self.dropout(self.second(h).relu())
        return self.out(h)


loss = torch.nn.functional.cross_entropy


def step(model, optimizer, x, y):
    optimizer.zero_grad()
    loss(model(x), y).backward()
    optimizer.step()


@torch.no_grad()
def evaluate(model, x, y):
    return loss(model(x), y).item()


def begin(model):
    return model, torch.optim.Adam(model.parameters(), 3e-3)


def train_epoch(model, optimizer, seed, epoch):
    model.train()
    order = torch.Generator().manual_seed(1000 * seed + epoch)
    for batch in torch.randperm(len(train[0]), generator=order).split(30):
        step(model, optimizer, train[0][batch], train[1][batch])


def fit(model, seed):
    model, optimizer = begin(model)
    losses = []
    for epoch in range(EPOCHS):
        train_epoch(model, optimizer, seed, epoch)
        model.eval()
        losses.append([evaluate(model, *part) for part in (val, test)])
    return min(losses)


# %%
# The line that puts noise in
# ---------------------------
#
# ``apply`` puts it into the modules that it is told, in place, and keeps their
# parameters: checkpoints, optimizers and hooks stay as they are. Here: into all linear
# modules but the last, which is the attribute "out". After ``eval()`` the model is the
# plain one.


def noisy(seed, rate):
    model = Network(seed)
    return pndt.apply(model, "all-linear", rate=rate, exclude="out", seed=seed)


print(noisy(seed=0, rate=0.1))

# %%
# Which rate?
# -----------
#
# Start with a rate of 0.1 in a small dense network (about 10,000 weights) or a
# transformer, 0.3 in a large one (millions), 0.5 in the Dense layer behind
# convolutions; then try a lower and a higher one: 0.05 and 0.2, 0.15 and 0.5, 0.25 and
# 0.75. A few seeds choose, by the validation loss, when training has ended: noise slows
# it, so too few epochs, as here, choose too low a rate. Dropout has the same choice: to
# beat it at a bad rate proves nothing. If the best rate is the first or the last,
# lengthen the list on that side.

RATES = [0.05, 0.1, 0.2]


def chosen(make):
    """The rate with the least validation loss."""

    def validation(rate):
        return sum(fit(make(seed, rate), seed)[0] for seed in range(2))

    return min(RATES, key=validation)


rate, dropout = chosen(noisy), chosen(Network)

# %%
# Did it help?
# ------------
#
# Fresh seeds, and data that nothing was chosen by. ``compare`` says for each pair
# whether the difference is beyond chance.

variants = {
    "no noise": lambda seed: Network(seed),
    f"Dropout {dropout}": lambda seed: Network(seed, dropout),
    f"PerNodeDrop {rate}": lambda seed: noisy(seed, rate),
}
seeds = range(1000, 1000 + SEEDS)
losses = {
    name: [fit(make(seed), seed)[1] for seed in seeds]
    for name, make in variants.items()
}

for baseline in list(losses)[:2]:
    for found in pnd.study.compare(losses, baseline):
        print(found)

# %%
# "less" is a lower loss, beyond chance, and "more" a higher one. "tie" means that what
# difference there is could be chance. The verdict goes by p, which counts how many are
# compared (Holm's correction); the interval is that of one comparison by itself.
# "detectable" is the least difference that so many seeds would find: with three it is
# large, and so a tie says little. Make the numbers at the top larger. In our studies of
# these images no noise has won in a dense network of this size, not even after 80
# epochs. The page "Results" says where noise has helped.
#
# The two noises are at different places. PerNodeDrop is on the connections of
# ``first`` and ``second``, and so on the pixels' too. Dropout is behind these modules,
# on what goes into ``second`` and ``out``.

figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
for name, values in losses.items():
    axes.plot(values, "o", label=name)
axes.set(xlabel="seed", ylabel="test loss", xticks=range(SEEDS))
axes.legend()
figure

# %%
# What did it cost?
# -----------------
#
# The quickest step of each, after a few to warm up. Variants take turns, so that their
# times compare. On a GPU wait for each step, with ``torch.cuda.synchronize()``. In a
# network as small as this, much of a step is overhead.

runs = {name: begin(make(0).train()) for name, make in variants.items()}
seconds = {name: [] for name in variants}
for turn in range(50):
    for name, run in runs.items():
        start = time.perf_counter()
        step(*run, train[0][:30], train[1][:30])
        if turn >= 5:
            seconds[name].append(time.perf_counter() - start)

for name, times in seconds.items():
    ratio = min(times) / min(seconds["no noise"])
    print(f"{name:16} {ratio:.2f} x the time, {1e3 * min(times):.2f} ms a step")

# %%
# Save, load, go on
# -----------------
#
# The ``state_dict`` of the model has the noise's rate and its place in the sequence of
# masks, beside the parameters. What was loaded goes on with the steps that the first
# run would have made, to the bit.

run = begin(noisy(seed=0, rate=rate))
for epoch in range(EPOCHS):
    train_epoch(*run, seed=0, epoch=epoch)
path = pathlib.Path(tempfile.mkdtemp()) / "run.pt"
torch.save([one.state_dict() for one in run], path)

again = begin(noisy(seed=1, rate=rate))
for one, state in zip(again, torch.load(path), strict=True):
    one.load_state_dict(state)
for one in (run, again):
    train_epoch(*one, seed=0, epoch=EPOCHS)
    one[0].eval()
model, loaded = run[0], again[0]
assert torch.equal(loaded(test[0]), model(test[0]))

# %%
# How sure is it?
# ---------------
#
# ``predict`` makes many passes with the noise on, and says where they disagree. Of the
# figures all but the accuracy are better if they are lower; aurc and augrc are low
# where errors are among the uncertain predictions.

samples = dict(samples=20, seed=1, from_logits=True)
found = pndt.uncertainty.predict(loaded, test[0], **samples)
print(found.report(test[1]))

# %%
# For deployment ``fold`` gives a copy of plain modules that computes the same.

plain = pndt.fold(loaded)
torch.testing.assert_close(plain(test[0]), loaded(test[0]))
