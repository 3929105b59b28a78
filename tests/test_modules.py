"""The native modules of every library beside the Keras layers, whose masks they have."""

import re

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.members import Members
from pernodedrop.state import Regularizer
from tests.frameworks import array, quick, tensor
from tests.libraries import installed

pytestmark = pytest.mark.only_backend("torch", "jax", reason="frameworks with native modules")

KEY = (7, 2)

LINEAR = {
    "dynamic": {"rate": 0.3},
    "schedule": {"rate": pnd.schedules.Step([0.2, 0.7], [1])},
    "gaussian": {"rate": 0.3, "noise": "gaussian", "method": "recomputed"},
    "partial": {"noise": pnd.PartialGaussian(0.5, 2.0)},
    "fixed": {"rate": 0.3, "regime": "fixed"},
    "bank": {"rate": 0.3, "regime": "bank", "bank_size": 3},
    "example": {"rate": 0.3, "regime": "example"},
    "batch": {"rate": 0.3, "sharing": "sample+time"},
    "out": {"rate": 0.3, "sharing": "out"},
    "position": {"rate": 0.3, "sharing": ()},
    "persistence": {"rate": 0.3, "persistence": pnd.schedules.Step([0.2, 0.9], [1])},
}
DROP_CONNECT = {
    "inverted": {"rate": 0.3, "mask_bias": True},
    "not_inverted": {"rate": 0.3, "mask_bias": True, "scaling": "none"},
    "of_samples": {"rate": 0.3, "mask_bias": True, "scaling": "none", "sharing": "time"},
    "dropped_persist": {"rate": 0.3, "persistence": 0.7},
}
DYNAMIC = {
    "small_gradient": {},
    "both_preferences": {"prefer": "small_gradient+big_weight", "weight_rate": 0.1, "calibration": "edge"},
    "big_weight": {"prefer": "big_weight", "threshold": 0.7},
    "of_kernels": {"prefer": "big_gradient"},
}
CONVOLUTIONS = {
    "1d": (1, {"kernel_size": 3, "dilation_rate": 2, "padding": "valid"}),
    "causal": (1, {"kernel_size": 3, "dilation_rate": 2, "padding": "causal"}),
    "2d": (2, {"kernel_size": (3, 2), "strides": (2, 1), "groups": 2, "padding": "valid"}),
    "strided": (2, {"kernel_size": (3, 2), "strides": (2, 1), "groups": 2, "padding": "same"}),
    "same": (2, {"kernel_size": (4, 4), "padding": "same", "use_bias": False}),
    "3d": (3, {"kernel_size": (2, 2, 2), "padding": "valid"}),
}
ACTIVATIONS = {
    "dropout": ("Dropout", "Dropout", {}),
    "shaped": ("Dropout", "Dropout", {"noise_shape": (None, None, 1, 6)}),
    "persistent": ("Dropout", "Dropout", {"persistence": 0.7}),
    "normal": ("GaussianDropout", "GaussianDropout", {"persistence": 0.7}),
    "path": ("DropPath", "DropPath", {}),
    "unscaled": ("DropPath", "DropPath", {"scale_by_keep": False}),
    "spatial": ("SpatialDropout", "SpatialDropout2D", {"data_format": "channels_first"}),
    "spatial_last": ("SpatialDropout", "SpatialDropout2D", {"data_format": "channels_last"}),
    "blocks": ("DropBlock", "DropBlock2D", {"data_format": "channels_first", "block_size": 3}),
    "blocks_last": (
        "DropBlock",
        "DropBlock2D",
        {"data_format": "channels_last", "block_size": 4, "per_channel": False, "normalize": "batch"},
    ),
}
ENSEMBLES = {
    "members": {"axis": 2},
    "in_parts": {"members": 3, "train_assignment": "contiguous"},
    "in_turn": {"scale": 3.0, "train_assignment": "repeat", "rounding": "nearest"},
}
RECURRENT = {
    "lstm": ("LSTM", {"rate": 0.3}),
    "gru": ("GRU", {"rate": 0.3, "kernels": ("kernel", "recurrent_kernel")}),
    "rnn": ("SimpleRNN", {"rate": 0.3, "noise": "gaussian", "regime": "fixed"}),
    "bidirectional": ("GRU", {"rate": 0.3, "kernels": ("kernel",)}),
    "lstm_samples": ("LSTM", {"rate": 0.3, "sharing": "time"}),
    "bidirectional_steps": ("GRU", {"rate": 0.3, "sharing": (), "kernels": ("kernel", "recurrent_kernel")}),
    "slow": ("SimpleRNN", {"rate": 0.3, "noise": "gaussian", "persistence": 0.7}),
    "gates": ("GRU", {"rate": 0.3, "sharing": "time+gate", "regime": "bank", "bank_size": 2}),
    "units": ("GRU", {"rate": 0.3, "sharing": "unit", "kernels": ("kernel", "recurrent_kernel")}),
    "variational": ("LSTM", {"rate": 0.3, "sharing": "time+out", "kernels": ("kernel", "recurrent_kernel")}),
}
ELSEWHERE = {
    "torch": {"causal", "strided"},  # has no such padding
    "nnx": {"1d", "2d", "same", *RECURRENT},
    "equinox": {
        "schedule",
        "position",
        "persistence",
        "dropped_persist",
        "causal",
        "2d",
        "same",
        "3d",
        "blocks_last",
        "in_parts",
        "in_turn",
        *RECURRENT,
    },
}
"""The cases that a library does not have, as Equinox has no schedules and positions, or that another one stands for."""


def linear(library, case):
    kind, layer = ("PerNodeLinear", pnd.PerNodeDrop) if case in LINEAR else ("DropConnectLinear", pnd.DropConnect)
    noise = {**LINEAR, **DROP_CONNECT}[case]
    x = inputs(5, 2, 3) if library.positions else inputs(5, 3)
    return library.make(kind, 3, 4, **noise), layer(keras.layers.Dense(4), seed=7, **noise), x


def convolution(library, case):
    dims, form = CONVOLUTIONS[case]
    kind, layer, noise = ("PerNodeConv", pnd.PerNodeDrop, {"rate": 0.4})
    if case in ("1d", "causal", "3d"):
        kind, layer = "DropConnectConv", pnd.DropConnect
        noise = {"rate": 0.4, "sharing": "time", "mask_bias": True, "scaling": "none"}
    elif case in ("2d", "strided"):
        noise = {"rate": 0.4, "sharing": ()}  # which has patches, and no kernels
    plain = getattr(keras.layers, f"Conv{dims}D")(6, **form)
    return (
        library.make(kind, 4, 6, dims=dims, **form, **noise),
        layer(plain, seed=7, **noise),
        inputs(2, *[7 - dims] * dims, 4),
    )


def dynamic(library, case):
    noise = DYNAMIC[case]
    if case == "of_kernels":
        form = {"kernel_size": (3, 2), "groups": 2, "padding": "valid"}
        module = library.make("DynamicDropConnectConv", 4, 6, dims=2, **form, **noise)
        return module, pnd.DynamicDropConnect(keras.layers.Conv2D(6, **form), seed=7, **noise), inputs(2, 5, 5, 4)
    module = library.make("DynamicDropConnectLinear", 30, 20, **noise)
    return module, pnd.DynamicDropConnect(keras.layers.Dense(20), seed=7, **noise), inputs(5, 30)


def activation(library, case):
    kind, layer, arguments = ACTIVATIONS[case]
    dims = 2 if kind in ("SpatialDropout", "DropBlock") and library.folder == "torch" else 0
    module = library.make(kind, dims=dims, rate=0.3, **arguments)
    return module, getattr(pnd, layer)(rate=0.3, seed=7, **arguments), inputs(5, 3, 4, 6)


def ensemble(library, case):
    arguments = ENSEMBLES[case]
    x = inputs(5, 3, 8, 6)
    channels = x.shape[arguments.get("axis", -1)]
    return library.make("Masksembles", channels, **arguments), pnd.Masksembles(seed=7, **arguments), x


def recurrent(library, case):
    name, noise = RECURRENT[case]
    both = {"bidirectional": True} if case.startswith("bidirectional") else {}
    module = library.make(f"Noisy{name.removeprefix('Simple')}", 3, 4, batch_first=True, **both, **noise)
    plain = getattr(keras.layers, name)(4, return_sequences=True)
    return module, pnd.NoisyRNN(keras.layers.Bidirectional(plain) if both else plain, seed=7, **noise), inputs(5, 6, 3)


CASES = {
    **dict.fromkeys([*LINEAR, *DROP_CONNECT], linear),
    **dict.fromkeys(DYNAMIC, dynamic),
    **dict.fromkeys(CONVOLUTIONS, convolution),
    **dict.fromkeys(ACTIVATIONS, activation),
    **dict.fromkeys(ENSEMBLES, ensemble),
    **dict.fromkeys(RECURRENT, recurrent),
}
LIBRARIES = installed(keras.backend.backend())
EACH = [(library, case) for library in LIBRARIES for case in CASES if case not in ELSEWHERE[library.folder]]
every_module = pytest.mark.parametrize(
    ("library", "case"), EACH, ids=[f"{library.folder}-{case}" for library, case in EACH]
)
every_library = pytest.mark.parametrize("library", LIBRARIES, ids=[library.folder for library in LIBRARIES])


def inputs(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def pair(library, case):
    """A module, the Keras layer with its weights, an input, and what tells its rows apart, as both take it."""
    module, layer, x = CASES[case](library, case)
    layer.build(x.shape)
    if hasattr(layer, "layer"):
        layer.layer.set_weights(library.weights(module))
    if hasattr(layer, "gradient"):
        noted = inputs(*layer.layer.kernel.shape)
        layer.gradient.assign(np.stack([noted, -noted]))
        module = library.with_gradient(module, noted)
    ids = {} if "sample" in module.sharing else {"sample_ids": np.arange(len(x), dtype="int32")}
    return module, layer, x, ids


@every_module
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")  # of torch's own convolution
def test_a_module_is_the_keras_layer(library, case):
    module, layer, x, ids = pair(library, case)
    assert (module.schedule, module.rate) == (layer.schedule, layer.rate)
    if module.schedule is None and module.rate is not None:
        layer.rate, module = 0.2, library.with_rate(module, 0.2)
    expected = array(quick(lambda x: layer(x, training=True, key=KEY, **ids))(tensor(x)))
    np.testing.assert_allclose(library.call(module, x, key=KEY, **ids), expected, atol=2e-6)
    of_place = ids if module.members else {}
    expected = array(quick(lambda x: layer(x, training=False, **of_place))(tensor(x)))
    np.testing.assert_allclose(library.call(module, x, training=False, **of_place), expected, atol=2e-6)
    if not module.members:
        np.testing.assert_allclose(library.call(module.fold(), x, training=False), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("library", "assignment"),
    [
        pytest.param(library, assignment, id=f"{library.folder}-{assignment}")
        for library in LIBRARIES
        for assignment in ("random", "contiguous", "repeat")
        if library.positions or assignment == "random"  # else a call is one sample's, and knows no batch
    ],
)
def test_samples_have_the_members_that_they_have_in_keras(library, assignment):
    """In training too, where the key or the place chooses; of the masks that NumPy makes of the seed."""
    how = {} if library.folder == "equinox" else {"train_assignment": assignment}
    x, module = inputs(7, 16), library.make("Masksembles", 16, **how)
    layer = pnd.Masksembles(train_assignment=assignment, seed=7)
    masks = Members(4, 2.0, assignment, "down").masks(16, 7)
    np.testing.assert_array_equal(np.asarray(library.masks(module)), masks)
    for training in (True, False):
        ids = {} if library.folder != "equinox" or training else {"sample_ids": np.arange(7, dtype="int32")}
        found = library.call(module, x, training=training, key=KEY, **ids)
        rows = x[:1] if library.folder == "equinox" and training else x  # each call is the first of a batch
        expected = array(layer(tensor(rows), training=training, key=KEY))
        np.testing.assert_array_equal(found[: len(rows)], expected)
        assert {tuple(row) for row in found != 0} <= {tuple(mask > 0) for mask in masks}
    with pytest.raises(ValueError, match="`members`"):
        module.fold()


@every_library
def test_gradients_are_noted_in_training_as_keras_notes_them(library):
    module, layer, x = dynamic(library, "small_gradient")
    layer.build(x.shape)
    layer.layer.set_weights(library.weights(module))
    model, targets = keras.Sequential([keras.Input(x.shape[1:]), layer]), inputs(5, 20)[::-1].copy()
    model.compile(keras.optimizers.SGD(0.5), "mse")
    model.fit(x, targets, batch_size=len(x), epochs=3, verbose=0)
    module = library.trained(module, x, targets, steps=3, rate=0.5)
    for found, expected in zip(library.weights(module), layer.layer.get_weights(), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(library.gradient(module), keras.ops.convert_to_numpy(layer.gradient)[0], atol=1e-6)
    plain = library.weights(library.trained(module.fold(), x, targets, steps=3, rate=0.5))
    assert np.abs(plain[0] - layer.layer.get_weights()[0]).max() > 0.01  # what was dropped makes a difference


@every_library
def test_every_module_has_a_case(library):
    kinds = {type(CASES[case](library, case)[0]) for one, case in EACH if one is library}
    of_one_input = {one for one in library.noisy if issubclass(one, Regularizer)}  # attention has tests of its own
    without_dims = [{re.sub(r"\dd$", "", one.__name__) for one in many} for many in (kinds, of_one_input)]
    assert without_dims[0] == without_dims[1]
