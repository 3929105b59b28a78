"""The contract of native modules: what holds for every one of every library, without Keras; `MODULES` has them all."""

import copy
import dataclasses
import doctest
import functools
import importlib
import inspect
import itertools
import math
import pickle
import re
import subprocess
import sys
import typing

import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.backends import numpy_ops
from pernodedrop.mask import Field
from pernodedrop.members import Members, UniformNumber
from pernodedrop.ops import key_words
from tests import house
from tests.frameworks import NAME, tensor
from tests.libraries import installed
from tests.products import sums

pytestmark = pytest.mark.only_backend("torch", "jax", reason="frameworks with native modules")


@dataclasses.dataclass(frozen=True)
class Case:
    """A kind of module, whatever its library and its dimensions.

    Args:
        truth: (library, module, x, call, noise): what a training call gives with NumPy's masks.
        sizes: what it is made of first.
        shape: of an input, samples first and channels last, with one axis of space, of which there are `dims`.
        own: other arguments.
        zero: those with which there is no noise.
        half: how close an output is in bfloat16.
        linear: whether an output is a linear function of the input, plus a bias.
        straight: whether gradients of weights are other than those of the output.
    """

    truth: typing.Callable
    sizes: tuple = ()
    shape: tuple = (5, 16)
    own: dict = dataclasses.field(default_factory=dict)
    zero: dict = dataclasses.field(default_factory=lambda: {"rate": 0.0})
    linear: bool = True
    straight: bool = False


def numpy_mask(noise, call, shape, sharing, seed=7):
    return pnd.ops.sample_mask(noise, (seed, call), shape, sharing=sharing, backend="numpy")


def product(library, module, x, call, noise):
    """The product of patches, or rows, with the masked kernel of each sample."""
    kernel, bias = library.weights(module)
    rows, shape = patches(x, kernel)
    mask = numpy_mask(noise, call, (*rows.shape, kernel.shape[-1]), module.sharing)
    y = sums(rows, kernel.reshape(-1, kernel.shape[-1]), np.broadcast_to(mask, (*rows.shape, kernel.shape[-1])))
    return y.reshape(shape) + bias


def patches(x, kernel):
    """What a kernel is multiplied by, (batch, position, in), and the shape of the output."""
    *space, _, outputs = kernel.shape
    windows = np.lib.stride_tricks.sliding_window_view(x, space, range(1, x.ndim - 1))
    windows = np.moveaxis(windows, x.ndim - 1, -1)
    positions = windows.shape[1 : x.ndim - 1]
    return windows.reshape(len(x), math.prod(positions), -1), (len(x), *positions, outputs)


def of_gradients(library, module, x, call, noise):
    """The product with one kernel, whose connections are dropped at rates of their own."""
    kernel, bias = library.weights(module)
    rows, shape = patches(x, kernel)
    w = kernel.reshape(1, -1, kernel.shape[-1])
    sizes = abs(np.asarray(library.gradient(module))).reshape(w.shape)
    rises = {name: np.float32(value) for name, value in module.rises_on_host().items()}
    field = Field(noise, noise.params(), key_words((7, call), None, numpy_ops))
    mask = module.preferences.mask(w, sizes, rises, field, numpy_ops)
    return (rows @ (w * mask)[0]).reshape(shape) + bias


def entries(library, module, x, call, noise):
    """Each entry has a number of its own."""
    return x * numpy_mask(noise, call, (*x.shape, 1), "out")[..., 0]


def channels(library, module, x, call, noise):
    """Each channel of a sample has a number."""
    mask = numpy_mask(noise, call, (len(x), x.shape[-1], 1), "out")[..., 0]
    return x * mask.reshape(len(x), *(1 for _ in x.shape[1:-1]), -1)


def paths(library, module, x, call, noise):
    """Each sample has a number."""
    return x * numpy_mask(noise, call, (len(x), 1, 1), "out")[..., 0]


def blocks(library, module, x, call, noise):
    """What a block of two places covers whose first corner is drawn is zero, and the rest has the mean of the whole."""
    batch, *space, depth = x.shape
    corners = list(itertools.product(*(range(size - 1) for size in space)))
    chance = noise.rate * math.prod(space) / (2 ** len(space) * len(corners))
    words = pnd.ops.random_bits((7, call), (batch, math.prod(space), depth, 1), backend="numpy").reshape(x.shape)
    kept = np.ones(x.shape)
    for (n, c), corner in itertools.product(np.ndindex(batch, depth), corners):
        if int(words[(n, *corner, c)]) >> 8 >= (1 - chance) * 2**24:
            kept[(n, *(slice(start, start + 2) for start in corner), c)] = 0
    return x * kept / kept.mean(tuple(range(1, x.ndim)), keepdims=True)


def members(library, module, x, call, noise):
    """Each sample has one of the masks of the seed, which a random number chooses or, where it has one, its id."""
    ids = np.arange(len(x)) % 4
    if library.positions:
        chances = pnd.ops.sample_mask(UniformNumber(), (7, call), (len(x), 1, 1), sharing="out", backend="numpy")
        ids = np.minimum(4 * chances, 3).astype(int)
    return x * Members(4, 2.0, "random", "down").masks(x.shape[-1], 7)[ids.ravel()]


def recurrent(library, module, x, call, noise):
    """torch's own module with a masked recurrent kernel, whose gates are in another order than the mask's."""
    import torch

    units, gates = module.hidden_size, len(module.gates)
    mask = numpy_mask(noise, call, (1, x.shape[-1] + units, gates * units), "sample+time")[0, -units:]
    parts = np.split(mask, gates, -1)
    mask = np.concatenate([parts[n] for n in {1: (0,), 3: (1, 0, 2), 4: (0, 1, 2, 3)}[gates]], -1)
    weights = {"weight_hh_l0": module.weight_hh_l0 * torch.from_numpy(mask.T)}
    return torch.func.functional_call(module.fold(), weights, torch.from_numpy(x))[0].detach().numpy()


def attention(library, module, x, call, noise):
    """torch's own module of each sample, with its masked weights."""
    import torch

    found, size = [], module.embed_dim
    for n in range(len(x)):
        plain = copy.deepcopy(module.fold())
        for place, (name, part) in enumerate(module.parts.items()):
            shape = (len(x), size, size)
            mask = pnd.ops.sample_mask(
                noise, (part.seed, call), shape, sharing=module.parts[name].sharing, backend="numpy"
            )
            mask = torch.from_numpy(np.broadcast_to(mask, shape)[n].T.copy())
            weight = plain.out_proj.weight if name == "output" else plain.in_proj_weight[place * size :][:size]
            weight.data *= mask
        found.append(library.call(plain, x[n : n + 1]))
    return np.concatenate(found)


WEIGHT = {"sizes": (16, 4)}
KERNEL = {"sizes": (3, 4), "shape": (5, 3, 3), "own": {"kernel_size": 2, "padding": "valid"}}
DYNAMIC = {"truth": of_gradients, "zero": {"base_rate": 0.0, "gradient_rate": 0.0}, "straight": True}
SPACE = {"shape": (5, 4, 6), "own": {"data_format": "channels_last"}}
STEPS = {"sizes": (3, 8), "shape": (5, 4, 3), "own": {"batch_first": True}, "linear": False}
HEADS = {"sizes": (8, 2), "shape": (5, 3, 8), "own": {"batch_first": True}, "linear": False}
MODULES = {
    "PerNodeLinear": Case(product, **WEIGHT),
    "PerNodeConv": Case(product, **KERNEL),
    "PerNodeMultiheadAttention": Case(attention, **HEADS),
    "DropConnectLinear": Case(product, **WEIGHT),
    "DropConnectConv": Case(product, **KERNEL),
    "DropConnectMultiheadAttention": Case(attention, **HEADS),
    "DynamicDropConnectLinear": Case(**WEIGHT, **DYNAMIC),
    "DynamicDropConnectConv": Case(**KERNEL, **DYNAMIC),
    "NoisyLSTM": Case(recurrent, **STEPS),
    "NoisyGRU": Case(recurrent, **STEPS),
    "NoisyRNN": Case(recurrent, **STEPS),
    "Dropout": Case(entries),
    "GaussianDropout": Case(entries),
    "SpatialDropout": Case(channels, **SPACE),
    "DropBlock": Case(blocks, shape=(5, 4, 6), own={"data_format": "channels_last", "block_size": 2}),
    "DropPath": Case(paths),
    "Masksembles": Case(members, sizes=(16,), zero={"scale": 1.0}),
}
"""Every public module, by its name without its dimensions."""


@dataclasses.dataclass(frozen=True)
class Module:
    """A public module under test."""

    library: typing.Any
    name: str

    @property
    def kind(self):
        return re.sub(r"\dd$", "", self.name)

    @property
    def case(self):
        return MODULES[self.kind]

    @property
    def dims(self):
        """How many axes of space an input has."""
        of_name = re.search(r"(\d)d$", self.name)
        return int(of_name[1]) if of_name else 2 if len(self.case.shape) > 2 else 0

    @property
    def of_class(self):
        """The class."""
        return getattr(self.library.modules, self.name)

    @property
    def has_steps(self):
        """Whether an input has one more axis of steps, and none of space."""
        return not self.case.linear

    def make(self, **arguments):
        own = {self.rate: 0.3} if self.rate else {}
        own |= {**self.case.own, **arguments}
        if "kernel_size" in own:
            own["kernel_size"] = (own["kernel_size"],) * self.dims
        of_name = self.dims if "kernel_size" in own or self.kind != self.name else 0
        module = self.library.make(self.kind, *self.case.sizes, dims=of_name, **own)
        if getattr(module, "gradient", None) is not None:
            kernel = np.shape(self.library.weights(module)[0])
            module = self.library.with_gradient(module, np.random.default_rng(1).normal(size=kernel).astype("float32"))
        return module

    @property
    def rate(self):
        """The name of the argument that is its rate, or None."""
        return next((name for name in ("rate", "base_rate") if name in self.arguments), None)

    @property
    def arguments(self):
        """The names of those of the constructor."""
        return inspect.signature(self.of_class.__init__).parameters

    @property
    def x(self):
        batch, *space, channels = self.case.shape
        space = space if self.has_steps else space * self.dims
        return np.random.default_rng(0).normal(size=(batch, *space, channels)).astype("float32")

    def noise(self, rate):
        """That of the module at a rate."""
        return pnd.Gaussian(rate=rate) if self.kind == "GaussianDropout" else pnd.Bernoulli(rate)

    def check(self, module, found, rate=0.3):
        """Raise unless outputs of training calls from the first on are those of NumPy's masks, at one rate or some."""
        rates = rate if isinstance(rate, list) else [rate] * len(found)
        for call, (y, own) in enumerate(zip(found, rates, strict=True)):
            expected = self.case.truth(self.library, module, self.x, call, self.noise(own))
            np.testing.assert_allclose(y, expected, atol=5e-6)


LIBRARIES = installed(NAME)
EACH = [
    Module(library, one.__name__) for library in LIBRARIES for one in sorted(library.noisy, key=lambda k: k.__name__)
]
every_library = pytest.mark.parametrize("library", LIBRARIES, ids=[library.folder for library in LIBRARIES])
KNOWN = [one for one in EACH if one.kind in MODULES]
each_module = pytest.mark.parametrize("one", KNOWN, ids=[f"{one.library.folder}-{one.name}" for one in KNOWN])
with_rate = pytest.mark.parametrize(
    "one", [one for one in KNOWN if one.rate], ids=[f"{one.library.folder}-{one.name}" for one in KNOWN if one.rate]
)


def test_every_public_module_is_in_the_table():
    assert {one.kind for one in EACH} <= {*MODULES}


@each_module
def test_the_masks_are_those_of_numpy(one):
    """Of two calls one after another: so another call is another mask, and an equal seed an equal one."""
    module = one.make()
    found = one.library.calls(module, one.x, 2)
    one.check(module, found)
    is_one = one.kind == "Masksembles" and not one.library.positions  # which goes by the ids
    assert is_one or not np.array_equal(*found)


@each_module
def test_rows_of_a_batch_have_masks_of_their_own_or_one(one):
    """Which of the two says the sharing: equal rows show it."""
    module, x = one.make(), np.repeat(one.x[:1], 5, axis=0)
    (y,) = one.library.calls(module, x)
    shares = "sample" in (module.one if hasattr(module, "parts") else module).sharing
    assert np.allclose(y, y[:1], atol=1e-5) == shares


@each_module
def test_inference_is_the_plain_module(one):
    module = one.make()
    if module.members:  # which has its masks there too
        y = one.library.call(module, one.x, training=False, **({} if one.library.positions else {"sample_ids": IDS}))
        np.testing.assert_array_equal(y, one.x * Members(4, 2.0, "random", "down").masks(16, 7)[IDS % 4])
        return
    y = one.library.call(module, one.x, training=False)
    if not one.case.sizes:  # which stands between others
        np.testing.assert_array_equal(y, one.x)
        return
    plain = module.fold()
    assert type(plain).__module__.startswith(one.library.package)
    np.testing.assert_allclose(y, one.library.call(plain, one.x, training=False), atol=1e-6)


IDS = np.arange(5, dtype="int32")


@each_module
def test_without_noise_training_is_inference(one):
    module = one.make(**one.case.zero)
    (y,) = one.library.calls(module, one.x)
    quiet = one.library.call(module, one.x, training=False, **({"sample_ids": IDS} if module.members else {}))
    np.testing.assert_allclose(y, quiet, atol=2e-6)


@each_module
def test_a_copy_and_a_saved_state_go_on_with_the_next_mask(one):
    first = {one.rate: 0.4} if one.rate else {}
    module, fresh = one.make(**first), one.make(**first, **{"seed": 8} if one.library.positions else {})
    if one.rate:
        module = one.library.with_rate(module, 0.3)
    one.library.calls(module, one.x)
    others = [copy.deepcopy(module), pickle.loads(pickle.dumps(module)), one.library.resumed(module, fresh)]
    expected = one.library.calls(module, one.x, 2)
    if one.library.positions:
        assert {other.updates for other in others} == {module.updates - 2}
    for other in others:
        assert other.rate == module.rate
        np.testing.assert_array_equal(one.library.calls(other, one.x, 2), expected)


@pytest.mark.parametrize("one", [one for one in KNOWN if one.library.folder == "torch"], ids=lambda one: one.name)
def test_a_module_of_torch_keeps_its_state_on_any_device_and_in_any_dtype(one):
    """And takes a checkpoint of the plain module."""
    import torch

    module = one.make()
    one.library.calls(module, one.x)
    saved, moved = module.state_dict(), copy.deepcopy(module).to("meta").to_empty(device="cpu")
    moved.load_state_dict(saved)
    half = copy.deepcopy(module).to(torch.bfloat16)
    states = [{name: value for name, value in saved.items() if name.endswith("_extra_state")}]
    states += [{name: each.state_dict()[name] for name in states[0]} for each in (moved, half)]
    assert states[0]
    assert all(torch.equal(each[name], states[0][name]) for each in states for name in states[0])
    if not module.members:
        module.load_state_dict({name: saved[name] for name in module.fold().state_dict()}, strict=True)
    np.testing.assert_array_equal(one.library.calls(moved, one.x, 2), one.library.calls(module, one.x, 2))


@with_rate
def test_a_rate_can_be_set(one):
    module = one.make()
    module = one.library.with_rate(module, 0.45)
    assert module.rate == 0.45
    one.check(module, one.library.calls(module, one.x), 0.45)


@with_rate
def test_a_rate_may_follow_a_schedule_or_is_refused_by_name(one):
    schedule = pnd.schedules.Step([0.2, 0.45], [1])
    if not one.library.positions:
        with pytest.raises((TypeError, ValueError), match="rate"):
            one.make(**{one.rate: schedule})
        return
    module = one.make(**{one.rate: schedule})
    found = one.library.calls(module, one.x, 2)
    one.check(module, found, [0.2, 0.45])
    with pytest.raises(AttributeError, match="cannot be set"):
        one.library.with_rate(module, 0.3)


@each_module
def test_gradients_flow(one):
    """Of an output that is linear in x, or in the weights, the sum is that of the gradient's products with it."""
    module, x = one.make(), one.x
    (y,) = one.library.calls(one.make(), x)
    upstream = np.random.default_rng(2).normal(size=y.shape).astype("float32")
    found, of_x, others = one.library.gradients(module, x, upstream)
    np.testing.assert_allclose(found, y, atol=5e-6)
    for gradient in (of_x, *others.values()):
        assert np.isfinite(gradient).all()
        assert gradient.any()
    if not one.case.linear:
        return
    own = one.library.parameters(module)
    of_bias = (own["bias"] * others["bias"]).sum() if "bias" in own else 0.0
    np.testing.assert_allclose((of_x * x).sum() + of_bias, (y * upstream).sum(), rtol=1e-4, atol=1e-4)
    if others and not one.case.straight:
        (name,) = own.keys() - {"bias"}
        of_weight = (own[name] * others[name]).sum()
        np.testing.assert_allclose(of_weight + of_bias, (y * upstream).sum(), rtol=1e-4, atol=1e-4)


@each_module
def test_half_precision_has_the_same_masks(one):
    y, dtype = one.library.half(one.make(), one.x)
    (expected,) = one.library.calls(one.make(), one.x)
    assert dtype == "bfloat16"
    np.testing.assert_allclose(y, expected, atol=0.06)


BAD = {
    "rate": 1.0,
    "base_rate": -0.1,
    "noise": "gausian",
    "regime": "dynamc",
    "sharing": "smaple",
    "method": "recompute",
    "seed": 1.5,
    "bank_size": 3,
    "persistence": 1.5,
    "scaling": "inverse",
    "mask_bias": 1,
    "kernels": ("bias",),
    "projections": ("keys",),
    "prefer": "small",
    "threshold": 1.0,
    "calibration": "edges",
    "gradient_rate": -1.0,
    "weight_rate": 0.1,
    "straight_through": 1,
    "noise_shape": (0, 0),
    "data_format": "last",
    "block_size": 0,
    "per_channel": 1,
    "normalize": "samples",
    "scale_by_keep": 1,
    "channels": 0,
    "members": 0,
    "scale": 0.5,
    "train_assignment": "turns",
    "rounding": "up",
    "axis": 2**32,
    "deterministic": 0,
    "inference": 1,
}
"""What no module takes, by the names of arguments."""

OF_FRAMEWORK = {"self", "args", "kwargs", "rngs", "key"}


@each_module
def test_what_an_argument_cannot_be_is_refused_by_its_name(one):
    for argument in one.arguments.keys() - OF_FRAMEWORK:
        make = functools.partial(one.make, **{argument: BAD[argument]})
        if argument == "channels":  # which is a size
            make = functools.partial(one.library.make, one.name, BAD[argument])
        with pytest.raises((TypeError, ValueError), match=f"`{argument}`"):
            make()


@every_library
def test_every_sample_of_a_prediction_goes_through_all_members(library):
    module, x = library.make("Masksembles", 16), np.ones((5, 16), "float32")
    found = library.modules.uncertainty.predict(module, tensor(x), keep=True, batch_size=3, probabilities=False)
    np.testing.assert_array_equal(found.outputs, x * Members(4, 2.0, "random", "down").masks(16, 7)[:, None])


@every_library
def test_a_printed_module_says_its_noise_in_words(library):
    module = library.make("PerNodeLinear", 3, 4, rate=0.25, regime="fixed")
    shown = str(library.with_rate(module, 0.75))
    for words in ("noise=Bernoulli(rate=0.75)", "regime='fixed'", "seed=7"):
        assert words in shown
    for bits in ("noise_", "State(", f"seed={None}"):
        assert bits not in shown
    scheduled = {} if library.folder == "equinox" else {"rate": pnd.schedules.Step([0.2, 0.7], [1])}
    assert f"noise={scheduled.get('rate', 'Bernoulli(rate=0.5)')}" in str(
        library.make("PerNodeLinear", 3, 4, **scheduled)
    )


@pytest.mark.slow
@every_library
def test_the_modules_need_no_keras_and_no_other_framework(library):
    others = {"keras", "torch", "jax", "tensorflow", "flax", "equinox"} - {library.package}
    others -= set() if library.folder == "torch" else {"jax"}
    code = f"import sys; sys.modules['keras'] = None; {library.code}"
    code += f"print({others} & {{name for name, module in sys.modules.items() if module}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@every_library
def test_the_examples_of_docstrings_run(library):
    for name in (name for name in house.modules() if name.startswith(f"{library.folder}.") or name == library.folder):
        if name == "torch.of_transformers":  # see tests/test_torch_modules.py
            continue
        found = doctest.testmod(importlib.import_module(f"pernodedrop.{name}"))
        assert found.failed == 0
