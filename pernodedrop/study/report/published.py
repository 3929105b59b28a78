"""What the papers found, to stand beside what is found here, by the names of studies and variants."""

PAPER = "arXiv 2512.12663"

LOSSES = {
    "cifar10": {
        "per_node_drop": 0.820,
        "per_node_drop_gaussian": 0.825,
        "dropout": 0.836,
        "gaussian_dropout": 0.854,
        "per_node_drop_gaussian_fixed": 0.875,
        "per_node_drop_fixed": 0.884,
        "drop_connect": 0.913,
        "masksembles": 1.000,
    },
    "rcv1": {
        "per_node_drop_fixed": 0.073,
        "per_node_drop_gaussian_fixed": 0.077,
        "drop_connect": 0.082,
        "per_node_drop": 0.082,
        "dropout": 0.083,
        "gaussian_dropout": 0.083,
        "per_node_drop_gaussian": 0.085,
    },
    "speech": {
        "per_node_drop_gaussian": 0.536,
        "drop_connect": 0.537,
        "per_node_drop": 0.564,
        "per_node_drop_fixed": 0.577,
        "per_node_drop_gaussian_fixed": 0.590,
        "dropout": 0.602,
        "gaussian_dropout": 0.647,
        "masksembles": 0.893,
    },
}
"""The best validation loss of each variant (tables I to III)."""

SECONDS = {
    "cifar10": {"dropout": 3.04, "per_node_drop": 4.43, "per_node_drop_gaussian": 5.27},
    "rcv1": {"dropout": 9.49, "per_node_drop": 9.53},
    "speech": {"dropout": 1.60, "per_node_drop": 3.06, "per_node_drop_gaussian": 3.50},
}
"""Seconds of an epoch on the authors' GPU (table IV)."""

RANKS = {
    "cifar10": {
        "per_node_drop_gaussian": 5.4,
        "per_node_drop": 7.0,
        "dropout": 11.6,
        "gaussian_dropout": 18.0,
        "per_node_drop_gaussian_fixed": 23.0,
        "per_node_drop_fixed": 28.0,
        "drop_connect": 33.0,
        "masksembles": 38.0,
    }
}
"""Mean ranks of the five best records of each variant among all of them (table V)."""

CHI2, W = {"cifar10": 34.600}, {"cifar10": 0.989}

ACCURACIES = {
    "mnist_ddc": {"dynamic_drop_connect": 0.9925, "none": 0.9908},
    "cifar10_ddc": {"dynamic_drop_connect": 0.8425},
}
"""Test accuracies of Dynamic DropConnect on all of MNIST, and on all of CIFAR-10 with AlexNet (arXiv 2502.19948).

With VGG it has 0.9094 on CIFAR-10; no study has that network.
"""
