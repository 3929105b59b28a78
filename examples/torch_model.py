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

EPOCHS = 15  # 60: until the losses are flat
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


def network(seed, dropout=0.0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(),
        torch.nn.Dropout(dropout),
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(),
        torch.nn.Dropout(dropout),
        torch.nn.Linear(64, 10),
    )


loss = torch.nn.functional.cross_entropy


def fit(model, seed):
    optimizer, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for epoch in range(EPOCHS):
        model.train()
        order = torch.Generator().manual_seed(1000 * seed + epoch)
        for batch in torch.randperm(len(train[0]), generator=order).split(30):
            logits = model(train[0][batch])
            optimizer.zero_grad()
            loss(logits, train[1][batch]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            of = [
                torch.nn.functional.cross_entropy(model(x), y) for x, y in (val, test)
            ]
        losses.append([loss.item() for loss in of])
    return min(losses)


# %%
# The line that puts noise in
# ---------------------------
#
# ``apply`` puts it into the modules that it is told, in place, and keeps their
# parameters: checkpoints, optimizers and hooks stay as they are. Here: into all linear
# modules but the last, whose name is "6". In ``eval()`` the model is the plain one.


def noisy(seed, rate):
    model = network(seed)
    return pndt.apply(model, "all-linear", rate=rate, exclude="6", seed=seed)


print(noisy(seed=0, rate=0.1))

# %%
# Which rate?
# -----------
#
# Start with a rate of 0.1 in a small dense network or a transformer, 0.3 in a large
# dense network, 0.5 in the Dense layer behind convolutions; then try a lower and a
# higher one: 0.05 and 0.2, 0.15 and 0.5, 0.25 and 0.75. A few seeds choose, by the
# validation loss. Dropout has the same choice: to beat it at a bad rate proves nothing.

RATES = [0.05, 0.1, 0.2]


def chosen(make):
    """The rate with the least validation loss."""

    def validation(rate):
        return sum(fit(make(seed, rate), seed)[0] for seed in range(2))

    return min(RATES, key=validation)


rate, dropout = chosen(noisy), chosen(network)

# %%
# Did it help?
# ------------
#
# Fresh seeds, and data that nothing was chosen by. ``compare`` says for each pair
# whether the difference is beyond chance.

variants = {
    "no noise": lambda seed: network(seed),
    f"Dropout {dropout}": lambda seed: network(seed, dropout),
    f"PerNodeDrop {rate}": lambda seed: noisy(seed, rate),
}
losses, seconds = ({name: [] for name in variants} for _ in range(2))
for seed in range(1000, 1000 + SEEDS):  # variants in turn, so that their times compare
    for name, make in variants.items():
        start = time.perf_counter()
        losses[name].append(fit(make(seed), seed)[1])
        seconds[name].append(time.perf_counter() - start)

for baseline in list(losses)[:2]:
    for found in pnd.study.compare(losses, baseline):
        print(found)

# %%
# "less" is a lower loss, beyond chance, and "more" a higher one. "tie" means that what
# difference there is could be chance. The verdict goes by p, which counts how many are
# compared (Holm's correction); the interval is that of one comparison by itself.
# "detectable" is the least difference that so many seeds would find: with three it is
# large, and so a tie says little. Make the numbers at the top larger. In a dense
# network as small as this no noise has helped on these images; where it has, the page
# "Results" says.

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
# The quickest training of each. In a network as small as this, much of it is overhead.

for name, times in seconds.items():
    print(f"{name:16} {min(times) / min(seconds['no noise']):.2f} x the time")

# %%
# Save, load, predict
# -------------------
#
# A ``state_dict`` has the noise's rate and its place in the sequence of masks, beside
# the parameters. ``predict`` makes many passes with the noise on, and says where they
# disagree. Of the figures all but the accuracy are better if they are lower; aurc and
# augrc are low where errors are among the uncertain predictions.

model = noisy(seed=0, rate=rate)
fit(model, seed=0)
path = pathlib.Path(tempfile.mkdtemp()) / "model.pt"
torch.save(model.state_dict(), path)
loaded = noisy(seed=1, rate=rate)
loaded.load_state_dict(torch.load(path))
torch.testing.assert_close(loaded.eval()(test[0]), model.eval()(test[0]))

samples = dict(samples=20, seed=1, from_logits=True)
found = pndt.uncertainty.predict(loaded, test[0], **samples)
print(found.report(test[1]))

# %%
# For deployment ``fold`` gives a copy of plain modules that computes the same.

plain = pndt.fold(loaded)
torch.testing.assert_close(plain(test[0]), loaded(test[0]))
