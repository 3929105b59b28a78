"""Records of a study that was never run, of which the truth is known."""

import numpy as np

TITLES = {
    "none": "no regularizer",
    "dropout": "Dropout",
    "per_node_drop": "PerNodeDrop Bernoulli",
    "per_node_drop_gaussian": "PerNodeDrop Gaussian",
}

ENVIRONMENT = {"pernodedrop": "0.1.0", "python": "3.12.1", "keras": "3.15.1", "numpy": "2.1.0", "backend": "jax"}
ENVIRONMENT |= {"framework": "0.10.2", "device": "cpu:0", "cores": 2, "processor": "a processor"}


def records(effects, seeds=10, stages=("select", "confirm"), deviation=0.02, study="made-up"):
    """Records of variants whose test loss is 1 plus their effect, a seed's own part, and chance.

    Args:
        effects: from each variant to what it adds.
        seeds: how many confirm, each of which is the same for all variants but for `deviation`.
        stages: the stages that there are; those that try settings have three rates and two seeds.
        deviation: of chance.
    """
    rng = np.random.default_rng(0)
    found = []
    for stage in stages:
        for variant, effect in effects.items():
            for rate in rates_of(variant, stage):
                for seed in range(1000, 1000 + seeds) if stage == "confirm" else range(2):
                    own = 0.1 * np.random.default_rng(seed).normal() + deviation * rng.normal()
                    found.append(record(study, stage, variant, rate, seed, 1 + effect + own))
    return found


def rates_of(variant, stage):
    return [None] if variant == "none" else [0.5] if stage == "confirm" else [0.3, 0.5, 0.8]


def record(study, stage, variant, rate, seed, loss):
    loss += 0 if rate is None else (rate - 0.5) ** 2
    losses = loss + 1 / np.arange(1, 7) + 0.05 * np.maximum(np.arange(6) - 4, 0)
    epochs = [{"train_loss": 0.9 * value, "val_loss": value, "val_accuracy": 0.5} for value in losses.tolist()]
    best = int(losses.argmin())
    trial = {"study": study, "stage": stage, "variant": variant, "rate": rate, "seed": seed, "backend": "jax"}
    return {
        **trial,
        "settings": {"epochs": 6, "batch_size": 64, "width": 64},
        "epochs": epochs,
        "best_epoch": best,
        "test": {"loss": float(loss), "accuracy": float(1 - loss / 4)} if stage == "confirm" else None,
        "seconds_per_epoch": 1.5 if variant.startswith("per_node") else 1.0,
        "environment": ENVIRONMENT,
        "format": 1,
    }
