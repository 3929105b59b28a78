"""The networks of the papers' experiments: what is in them, and where their slots are."""

import itertools

import keras
import pytest

from pernodedrop.study import networks, variants
from pernodedrop.study.slot import Slot

pytestmark = pytest.mark.once


def build(name, **settings):
    """A network with plain Dense layers in slots as studies have: the model, they, and (width, activation) of each."""
    slot = Slot(variants.get("none"), 0.0, 1)
    model = networks.get(name)(slot, **settings)
    return model, slot.dense, [(dense.units, dense.activation.__name__) for dense in slot.dense]


def weights(*sizes):
    """How many weights Dense layers have, one after the other."""
    return sum(a * b + b for a, b in itertools.pairwise(sizes))


CONVOLUTIONS = {
    "mnist": (25 * 32 + 32) + (25 * 32 * 32 + 32) + (25 * 32 * 64 + 64),
    "cifar10": (9 * 3 * 32 + 32) + (9 * 32 * 64 + 64),
    "cifar100": (9 * 3 * 32 + 32) + (9 * 32 * 64 + 64),
    "speech": (9 * 32 + 32) + (9 * 32 * 64 + 64),
    "resnet": (9 * 16 + 16) + 4 * (9 * 16 * 16 + 16 + 4 * 16),  # a batch normalization has four weights a map
    # rows to tokens with a bias each; queries, keys, values and outputs; three layer normalizations
    "transformer": (8 * 32 + 8 * 32) + 4 * (32 * 32 + 32) + 3 * 2 * 32,
}


@pytest.mark.parametrize(
    ("name", "sizes", "widths"),
    [
        ("digits", (64, 64, 64, 10), (64, 64)),
        ("mnist", (2 * 2 * 64, 64, 10), (64,)),  # 256 to 64, as in the authors' network
        ("cifar10", (8 * 8 * 64, 64, 10), (64,)),
        ("cifar100", (8 * 8 * 64, 64, 100), (64,)),
        ("rcv1", (4096, 1024, 256, 128, 25), (128,)),
        ("speech", (16 * 16 * 64, 64, 8), (64,)),
        ("resnet", (2 * 2 * 16, 64, 10), (64,)),
    ],
)
def test_a_network_has_the_weights_of_its_formula_and_slots_of_its_width(name, sizes, widths):
    model, _, slots = build(name)
    assert model.count_params() == CONVOLUTIONS.get(name, 0) + weights(*sizes)
    assert slots == [(width, "relu") for width in widths]
    assert model.output_shape == (None, sizes[-1])
    assert model.layers[-1].activation is keras.activations.get("sigmoid" if name == "rcv1" else "softmax")


def test_hidden_slots_are_behind_a_plain_layer_and_the_output_layer_is_one():
    model, _, slots = build("digits_hidden")
    assert model.count_params() == weights(64, 64, 64, 10)
    assert slots == [(64, "relu"), (10, "softmax")]


def test_a_transformer_has_the_weights_of_its_formula_and_two_slots_a_block():
    model, _, slots = build("transformer")
    assert model.count_params() == CONVOLUTIONS["transformer"] + weights(32, 64, 32) + weights(32, 10)
    assert slots == [(64, "relu"), (32, "linear")]
    assert model.output_shape == (None, 10)
    assert len(build("transformer", blocks=2)[2]) == 4


def test_the_plane_has_two_slots_and_a_height():
    model, _, slots = build("plane", width=8)
    assert slots == [(8, "relu"), (8, "relu")]
    assert (model.output_shape, model.count_params()) == ((None, 1), weights(2, 8, 8, 1))


def test_settings_reach_the_slots_and_the_shapes():
    assert build("cifar10", width=32, slots=2)[2] == [(32, "relu")] * 2
    assert build("rcv1", width=96, slots=3, terms=50, topics=4)[2] == [(1024, "relu"), (256, "relu"), (96, "relu")]
    _, (dense,), _ = build("speech", shape=(128, 128, 1))
    assert dense.kernel.shape == (65_536, 64)  # the paper's
    with pytest.raises(ValueError, match="`slots`"):
        build("rcv1", slots=4)
    with pytest.raises(ValueError, match="did you mean 'cifar10'"):
        networks.get("cifar")


def test_each_network_has_a_loss_for_its_data():
    assert set(networks.LOSSES) == set(networks.NAMES)
    assert networks.LOSSES["rcv1"] == "binary_crossentropy"
