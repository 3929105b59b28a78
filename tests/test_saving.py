"""What is saved comes back: every variable, in every kind of file, and nothing that does not fit."""

import base64
import copy
import functools
import itertools
import json
import marshal
import pickle
import random
import sys
import threading

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.layers.base import saving
from tests import zoo
from tests.family import FAMILY, host, inputs, noisy_layer
from tests.processes import cpu_limit

every_layer = pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in FAMILY.items()])


def next_calls(model):
    """What the next calls of a model give: its masks, its rate and where its schedule stands."""
    x = inputs(4, 6)
    rates = [layer.rate for layer in model.layers if isinstance(layer, pnd.layers.Dropout)]
    return [host(model(x, training=training)) for training in (False, True, True)], rates


def assert_goes_on_alike(again, model):
    for found, expected in zip(*(next_calls(one)[0] for one in (again, model)), strict=True):
        np.testing.assert_array_equal(found, expected)


# Where state goes


def branches(seeds=(1, 2)):
    """Two branches, with noise of the same names in both."""
    x = keras.Input((6,))

    def branch(name, seed):
        noise = pnd.GaussianDropout(0.5, seed=seed, name="noise")
        wrapped = pnd.PerNodeDrop(keras.layers.Dense(6), seed=seed, name="wrapper")
        return keras.Sequential([keras.Input((6,)), keras.layers.Dense(6), noise, wrapped], name=name)(x)

    return keras.Model(x, keras.layers.Add()([branch("left", seeds[0]), branch("right", seeds[1])]))


def test_layers_of_one_name_have_paths_of_their_own():
    model = branches()
    paths = [variable.path for variable in model.variables]
    assert len(set(paths)) == len(paths)
    assert {"left/noise/key", "left/noise/stddev", "right/wrapper/key"} <= set(paths)


def test_a_layer_that_was_built_before_has_its_path_too():
    dense = keras.layers.Dense(3, name="dense")
    dense.build((None, 6))
    layer = pnd.PerNodeDrop(dense, name="wrapper")
    keras.Sequential([keras.Input((6,)), layer], name="model")
    assert dense.kernel.path == "model/wrapper/dense/kernel"


def test_a_state_tree_brings_every_key_back():
    model, again = branches((1, 2)), branches((3, 4))
    model(inputs(4, 6), training=True)
    model.compile("sgd"), again.compile("sgd")
    tree = model.get_state_tree(value_format="numpy_array")
    flat = {name: tree[name] for name in ("trainable_variables", "non_trainable_variables")}
    names = [layer.name for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    assert {"left", "right"} <= set(names)
    assert flat["non_trainable_variables"].keys() == {"left", "right"}
    again.set_state_tree(renamed(flat, model, again))
    assert_goes_on_alike(again, model)


def renamed(tree, model, again):
    """A state tree of a model under the names that Keras has made up for the layers of another one."""
    names = {
        old.name: new.name
        for one, other in zip(model.layers, again.layers, strict=True)
        for old, new in zip(one._flatten_layers(), other._flatten_layers(), strict=True)
    }

    def of(value):
        return {names.get(name, name): of(inner) for name, inner in value.items()} if isinstance(value, dict) else value

    return of(tree)


@every_layer
def test_no_path_is_also_the_folder_of_another(case):
    paths = [f"{variable.path}/" for variable in case.model().variables]
    assert not [(one, other) for one in paths for other in paths if one != other and other.startswith(one)]


@pytest.mark.filterwarnings("ignore:.*HDF5")
@pytest.mark.parametrize("name", ["key", "threshold"])
def test_a_layer_may_have_the_name_of_a_variable_of_the_noise_around_it(name, tmp_path):
    def make():
        noisy = pnd.PerNodeDrop(keras.layers.Dense(3, name=name), seed=1, name="noisy")
        return keras.Sequential([keras.Input((6,)), noisy], name="model")

    model, again = make(), make()
    assert {f"model/noisy/own_{name}", f"model/noisy/{name}/kernel"} < {one.path for one in model.variables}
    model(inputs(4, 6), training=True)
    model.compile("sgd"), again.compile("sgd")
    again.set_state_tree(model.get_state_tree(value_format="numpy_array"))
    assert_goes_on_alike(again, model)
    model.save(tmp_path / "m.h5")
    assert_goes_on_alike(keras.saving.load_model(tmp_path / "m.h5", compile=False), model)


def test_projections_of_attention_that_take_noise_one_by_one_have_paths_of_their_own():
    x = keras.Input((4, 6))
    plain = keras.Model(x, keras.layers.MultiHeadAttention(2, 3)(x, x))
    model = pnd.apply(plain, lambda layer: pnd.PerNodeDrop(layer) if hasattr(layer, "equation") else None)
    paths = [f"{variable.path}/" for variable in model.variables]
    assert not [(one, other) for one in paths for other in paths if one != other and other.startswith(one)]


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:.*HDF5")
@every_layer
def test_the_legacy_format_of_keras_brings_every_variable_back(case, tmp_path):
    layer, x = case.make(), case.inputs(4)
    if isinstance(x, list):
        pytest.skip("that format has no operations of one's own between layers")
    model = keras.Sequential([keras.Input(case.shape), layer])
    model(x, training=True)
    model.save(tmp_path / "m.h5")
    again = keras.saving.load_model(tmp_path / "m.h5", compile=False)
    for training in (False, True, True):
        np.testing.assert_array_equal(host(again(x, training=training)), host(model(x, training=training)))


@pytest.mark.only_backend("torch", reason="a state_dict is torch's")
@every_layer
def test_a_state_dict_has_every_variable(case):
    model, again = case.model(), case.model()
    model(inputs(4, 6), training=True)
    state, names = model.state_dict(), [[f"_torch_params.{v.path}" for v in one.variables] for one in (again, model)]
    assert state.keys() == set(names[1])
    again.load_state_dict({new: state[old] for new, old in zip(*names, strict=True)})
    assert_goes_on_alike(again, model)


class Listed(keras.Model):
    """A model that builds nothing itself and has a layer in a list, of which torch knows through the model alone."""

    def __init__(self, case):
        super().__init__()
        self.noisy = [case.make()]

    def call(self, x, training=None):
        return self.noisy[0](x, training=training)


@pytest.mark.only_backend("torch", reason="a state_dict is torch's")
@every_layer
def test_a_model_whose_first_call_trains_has_every_variable_too(case):
    model = Listed(case)
    model(case.inputs(4), training=True)
    held = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert [variable.path for variable in model.variables if variable.value.data_ptr() not in held] == []
    assert {host(variable)[1] for variable in model.variables if variable.name == "key"} <= {0, 1}


@pytest.mark.only_backend("tensorflow", reason="a tf.train.Checkpoint is TensorFlow's")
@every_layer
def test_a_checkpoint_of_tensorflow_has_every_variable(case, tmp_path):
    import tensorflow as tf

    model, again = case.model(), case.model()
    if case.rated and not case.scheduled:
        noisy_layer(model).rate = 0.3
    model(inputs(4, 6), training=True)
    path = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
    tf.train.Checkpoint(model=again).restore(path).assert_consumed()
    assert noisy_layer(again).rate == noisy_layer(model).rate
    assert_goes_on_alike(again, model)


@pytest.mark.once
@pytest.mark.parametrize("again_of", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@every_layer
def test_copies_go_on_alike(case, again_of):
    model = case.model()
    model(inputs(4, 6), training=True)
    assert_goes_on_alike(again_of(model), model)


def test_threads_draw_no_key_twice():
    layer, drawn = pnd.Dropout(0.5, seed=1), []

    def draw():
        drawn.extend([tuple(host(layer.draw()).tolist()) for _ in range(1000)])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=draw) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert sorted(drawn) == [(1, call) for call in range(8000)]


# With noise and without


def pair_of_models():
    """A plain model, and the same with noise of every kind in it: around layers, between them, in an attention."""
    layers = keras.layers

    def model(dense, dropout, attention):
        x = keras.Input((4, 6))
        y = attention(layers.MultiHeadAttention(2, 3, name="attention"))(x, x)
        y = layers.BatchNormalization()(dropout(0.5)(dense(layers.Dense(8))(y)))
        return keras.Model(x, dense(layers.Conv1D(2, 2))(y))

    noisy = model(
        lambda layer: (
            pnd.VariationalDropout(layer, examples=50) if isinstance(layer, layers.Dense) else pnd.Flipout(layer)
        ),
        pnd.Dropout,
        lambda layer: pnd.NoisyAttention(layer, pnd.PerNodeDrop, rate=0.2),
    )
    return model(lambda layer: layer, layers.Dropout, lambda layer: layer), noisy


@pytest.mark.parametrize("back", [False, True])
def test_weights_go_from_a_plain_model_to_one_with_noise_and_back(back):
    source, target = pair_of_models()[:: -1 if back else 1]
    x = inputs(5, 4, 6)
    for number, variable in enumerate(source.trainable_variables):
        variable.assign(np.cos(np.arange(np.prod(variable.shape)) + number).reshape(variable.shape) / 2)
    own = {id(v): host(v) for v in target.variables if v.name in ("key", "log_alpha", "threshold")}
    assert not np.allclose(host(target(x)), host(source(x)), atol=1e-2)
    pnd.copy_weights(source, target)
    outputs = [model.predict(x, verbose=0) for model in (target, source)]
    np.testing.assert_allclose(*outputs, atol=1e-5)
    for variable in target.variables:
        if id(variable) in own:
            np.testing.assert_array_equal(host(variable), own[id(variable)])


def test_weights_of_another_model_are_refused_and_nothing_is_changed():
    plain, noisy = (
        keras.Sequential([keras.Input((6,)), *layers])
        for layers in (
            [keras.layers.Dense(3), keras.layers.Dense(2)],
            [pnd.PerNodeDrop(keras.layers.Dense(3)), keras.layers.Dense(1)],
        )
    )
    before = [host(variable) for variable in noisy.variables]
    with pytest.raises(ValueError, match=r"`target`.*kernel \(3, 1\) for .*kernel \(3, 2\)"):
        pnd.copy_weights(plain, noisy)
    for variable, value in zip(noisy.variables, before, strict=True):
        np.testing.assert_array_equal(host(variable), value)
    with pytest.raises(ValueError, match=r"`source`.*built"):
        pnd.copy_weights(keras.Sequential([keras.layers.Dense(3)]), noisy)
    with pytest.raises(TypeError, match=r"`target`.*keras\.Model"):
        pnd.copy_weights(plain, "noisy")


# What does not fit

NOISES = {
    "Bernoulli": pnd.Bernoulli(0.5),
    "Gaussian": pnd.Gaussian(0.5),
    "PartialGaussian": pnd.PartialGaussian(0.5, 0.5),
    "Uniform": pnd.Uniform(0.5),
    "schedule": pnd.Bernoulli(0.5),
}


def model_of(noise):
    rate = pnd.schedules.Linear(0.1, 0.5, 5) if noise == "schedule" else None
    layer = pnd.PerNodeDrop(keras.layers.Dense(2), rate, noise=NOISES[noise], name="noisy")
    return keras.Sequential([keras.Input((6,)), layer])


@pytest.mark.once
@pytest.mark.parametrize(("saved", "wanted"), [*itertools.permutations(NOISES, 2)])
def test_weights_of_another_noise_are_refused_by_name(saved, wanted, tmp_path):
    path = tmp_path / "m.weights.h5"
    model_of(saved).save_weights(path)
    with pytest.raises(ValueError, match=rf"'noisy'.*{type(NOISES[wanted]).__name__}.*{type(NOISES[saved]).__name__}"):
        model_of(wanted).load_weights(path)


@pytest.mark.once
@pytest.mark.parametrize("threshold", [0, -1, 2**24 + 1])
def test_numbers_that_no_noise_has_are_refused(threshold, tmp_path):
    model, path = model_of("Bernoulli"), tmp_path / "m.weights.h5"
    (variable,) = (one for one in model.variables if one.name == "threshold")
    variable.assign(threshold)
    model.save_weights(path)
    with pytest.raises(ValueError, match="rate"):
        model_of("Bernoulli").load_weights(path)


@pytest.mark.once
def test_weights_of_a_plain_model_say_what_to_do(tmp_path):
    path = tmp_path / "m.weights.h5"
    keras.Sequential([keras.Input((6,)), keras.layers.Dense(2)]).save_weights(path)
    with pytest.raises(ValueError, match="copy_weights"):
        model_of("Bernoulli").load_weights(path)


@pytest.mark.slow
@pytest.mark.once
def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    def model():
        layers = [pnd.Dropout(0.25, seed=1), pnd.GaussianDropout(0.3, seed=2), pnd.TabuDropout(0.5, seed=3)]
        return keras.Sequential([keras.Input((6,)), *layers])

    first, second, path = model(), model(), tmp_path / "m.weights.h5"
    first(inputs(4, 6), training=True)
    first.save_weights(path)
    data, right = path.read_bytes(), [host(one) for one in first.weights]
    generator, noticed = random.Random(0), 0
    for _ in range(400):
        place, flipped = generator.randrange(len(data) * 8), bytearray(data)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        for one, other in zip(second.weights, right, strict=True):
            one.assign(other)
        try:
            second.load_weights(path)
        except Exception:  # h5py has many
            noticed += 1
        else:
            for one, other in zip(second.weights, right, strict=True):
                np.testing.assert_array_equal(host(one), other)
    assert noticed > 20


@pytest.mark.once
def test_weights_of_a_later_format_say_so(tmp_path, monkeypatch):
    path = tmp_path / "m.weights.h5"
    monkeypatch.setattr(saving, "FORMAT", 2)
    model_of("Bernoulli").save_weights(path)
    config = model_of("Bernoulli").layers[0].get_config()
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"'noisy'.*later version of pernodedrop, in format 2; .* up to 1"):
        model_of("Bernoulli").load_weights(path)
    with pytest.raises(ValueError, match="PerNodeDrop was written by a later version of pernodedrop, in format 2"):
        pnd.PerNodeDrop.from_config(config)


@pytest.mark.once
@every_layer
def test_a_config_without_one_of_its_arguments_is_refused(case):
    layer = case.make()
    config = layer.get_config()
    for name in config.keys() - saving.OF_ANY_LAYER - {"format"}:
        with pytest.raises((ValueError, KeyError, TypeError), match=name):
            type(layer).from_config({key: value for key, value in config.items() if key != name})
    for name in ("noise", "rate"):
        if isinstance(config.get(name), dict):
            fields = config[name]["config"]
            for field in fields:
                less = {**config[name], "config": {key: value for key, value in fields.items() if key != field}}
                with pytest.raises((ValueError, TypeError), match=field):
                    type(layer).from_config({**config, name: less})


WRONG = [None, -1, 10**9, -0.5, float("nan"), "x", [], {}, True, {"class_name": "Lambda", "config": {}}]
NOT_LOOKED_AT = {"module", "class_name"}  # beside the name that a class is registered under
ALIASES = {
    "sharing": (None, []),
    "data_format": (None,),
    "noise_shape": ([],),
    "from_logits": (None,),
}  # that stand for what is there


@pytest.mark.once
@every_layer
def test_a_config_with_another_value_is_refused_or_means_what_it_says(case):
    kind, right = type(case.make()), case.make().get_config()
    for place in places(right):
        for value in WRONG:
            config = copy.deepcopy(right)
            *folders, name = place
            functools.reduce(dict.__getitem__, folders, config)[name] = value
            if name in NOT_LOOKED_AT or value in ALIASES.get(name, ()):
                continue
            try:
                made = kind.from_config(copy.deepcopy(config))
            except (TypeError, ValueError):
                continue
            assert made.get_config() == config, place


OF_KERAS = {"layer", "loss", "model"}
"""What a config has in the words of Keras, which reads them."""


def places(config, above=()):
    """The places of all values in a config that are this library's own to read."""
    for name, value in config.items():
        if above or name not in {*OF_KERAS, "initializer", *saving.OF_ANY_LAYER}:
            yield (*above, name)
            if isinstance(value, dict):
                yield from places(value, (*above, name))


CALLED = []


def called(step):
    """A function that nothing in a file may call."""
    CALLED.append(step)
    return 0.5


@pytest.mark.once
@pytest.mark.parametrize(
    "function", ["keras.config.set_epsilon", "set_epsilon", "tests.test_saving.called", "Dense", 3]
)
def test_a_file_calls_no_function_that_was_not_registered(function):
    config = {"function": function, "steps": 3}
    with pytest.raises(ValueError, match="`function`"):
        pnd.schedules.Custom.from_config(config)
    described = {"class_name": "Custom", "registered_name": "pernodedrop>Custom", "config": config}
    layer = {**pnd.Dropout(0.5).get_config(), "rate": described}
    with pytest.raises(ValueError, match="`function`"):
        pnd.Dropout.from_config(layer)
    assert not CALLED


@pytest.mark.once
@pytest.mark.parametrize(
    "described",
    [
        {"class_name": "function", "registered_name": "VGG16", "module": "keras.applications", "config": "VGG16"},
        {"class_name": "Dense", "registered_name": None, "module": "keras.layers", "config": {"units": 3}},
        {"class_name": "Dropout", "registered_name": "pernodedrop>Dropout", "config": {"rate": 0.5}},
        {"class_name": ["Bernoulli"], "config": {}},
        {},
    ],
)
def test_a_config_makes_nothing_but_noises_and_schedules(described):
    with pytest.raises(ValueError, match="noise"):
        pnd.PerNodeDrop.from_config({**model_of("Gaussian").layers[0].get_config(), "noise": described})


@keras.saving.register_keras_serializable("tests")
def wave(step):
    return 0.1 * (step % 3)


def described(name, module="pernodedrop", config=None):
    """What Keras has for an object in a config."""
    return {"class_name": name, "module": module, "registered_name": f"{module}>{name}", "config": config}


def of_keras(name, module, config):
    return {**described(name, module, config), "registered_name": None}


def nested(depth):
    """A schedule of a schedule of a ..."""
    found = described("Bernoulli", config={"rate": 0.5})
    for _ in range(depth):
        found = described("Custom", config={"function": found, "steps": 3})
    return found


DELETED = object()
CODE = base64.b64encode(marshal.dumps((lambda step: called(step)).__code__)).decode()
TAMPERED = [
    DELETED, None, True, "x", -1, -0.5, 10**9, 10**400, 1e308, float("nan"), float("inf"), [], {}, [[["x"]]],
    [0.5] * 10**4, "x" * 10**5, "keras.config.set_epsilon", "tests.test_saving.called", nested(100),
    described("NoSuch"), described("Bernoulli"), described("Bernoulli", config=[0.5]), described("Custom", config="x"),
    described("Custom", config={"function": ["x"], "steps": 3}), described("Dropout", config={"rate": 0.5}),
    of_keras("function", "keras.config", "set_epsilon"), of_keras("function", "tests.test_saving", "called"),
    of_keras("called", "tests.test_saving", {"step": 1}), of_keras("function", "os", "abort"),
    keras.saving.serialize_keras_object(keras.layers.Dense(3)), of_keras("VGG16", "keras.applications", {}),
    of_keras("__lambda__", "builtins", {"value": CODE, "defaults": None, "closure": None}),
    of_keras("Lambda", "keras.layers", {"function": of_keras("__lambda__", "builtins", {"value": CODE})}),
    of_keras("__numpy__", "builtins", {"value": [1.0], "dtype": "float32"}),
]  # fmt: skip


def savable():
    """One of everything that a config can be of, by name."""
    custom = pnd.schedules.Custom(wave, 9)
    schedules = [custom, pnd.schedules.Linear(0.0, 0.5, 10), pnd.schedules.Step([0.1, 0.5], [10])]
    schedules += [pnd.schedules.Constant(0.5), *(getattr(pnd.schedules, name)(0.5, 10) for name in BY_STEPS)]
    scheduled = pnd.Dropout(custom, persistence=pnd.schedules.Linear(0.0, 0.5, 9), seed=1)
    losses = [pnd.losses.RDrop("kl_divergence"), pnd.RDropModel(FAMILY["dropout"].model())]
    others = [*NOISES.values(), *schedules, scheduled, *losses]
    return {name: case.make() for name, case in FAMILY.items()} | {repr(one): one for one in others}


def as_text(config):
    """Equal for equal configs: 1 is 1.0, but not True, and NaN is NaN."""
    return json.dumps(json.loads(json.dumps(config), parse_int=float), sort_keys=True)


BY_STEPS = ("Annealed", "Exponential", "Curriculum")


@pytest.mark.once
def test_a_tampered_config_is_refused_or_means_what_it_says_and_nothing_is_called():
    """A thousand of them, and there is a minute for all."""
    objects = {
        name: json.loads(json.dumps(keras.saving.serialize_keras_object(one))) for name, one in savable().items()
    }
    choices = [
        (name, place, number)
        for name, config in objects.items()
        for place in [*places(config["config"]), *((one,) for one in OF_KERAS & config["config"].keys())]
        for number, value in enumerate(TAMPERED)
        if place[-1] not in NOT_LOOKED_AT and (place[-1], value) != ("format", DELETED)
    ]
    epsilon, refused = keras.config.epsilon(), 0
    with cpu_limit(seconds=60):
        before = set(sys.modules)
        for name, place, number in random.Random(0).sample(choices, 1000):
            config, value = copy.deepcopy(objects[name]), copy.deepcopy(TAMPERED[number])
            *folders, last = ("config", *place)
            within = functools.reduce(dict.__getitem__, folders, config)
            within.pop(last) if TAMPERED[number] is DELETED else within.update({last: value})
            given = as_text(config)
            try:
                made = keras.saving.deserialize_keras_object(config)
            except (TypeError, ValueError):
                refused += 1
                continue
            again = as_text(keras.saving.serialize_keras_object(made))
            stands = any(type(value) is type(one) and value == one for one in ALIASES.get(last, ()))
            assert again == given or stands, (name, place, number)
    assert refused > 900
    assert not CALLED
    assert keras.config.epsilon() == epsilon
    assert {one for one in set(sys.modules) - before if not one.startswith("keras")} == set()


@pytest.mark.once
def test_a_function_of_ones_own_is_saved_by_its_registered_name(tmp_path):
    model = keras.Sequential([keras.Input((6,)), pnd.Dropout(pnd.schedules.Custom(wave, steps=9), seed=1)])
    model(inputs(4, 6), training=True)
    model.save(tmp_path / "m.keras")
    assert_goes_on_alike(keras.saving.load_model(tmp_path / "m.keras"), model)


@pytest.mark.once
def test_a_function_that_could_not_be_found_again_is_refused_when_it_is_saved(tmp_path):
    model = keras.Sequential([keras.Input((6,)), pnd.Dropout(pnd.schedules.Custom(lambda step: 0.5, steps=9))])
    with pytest.raises(ValueError, match=r"`function`.*register_keras_serializable"):
        model.save(tmp_path / "m.keras")


@pytest.mark.once
def test_no_more_is_made_than_anyone_needs():
    with pytest.raises(ValueError, match=r"`boundaries`. Expected at most 4095 update numbers"):
        pnd.schedules.Step([0.5] * 100001, range(1, 100001))
    with pytest.raises(ValueError, match=r"`members`.*at most 1024"):
        pnd.Masksembles(members=10**6)


# What was saved before


@pytest.mark.parametrize("name", zoo.ANIMALS)
def test_what_was_saved_once_is_loaded_for_good(name):
    """The files are of the version that added them, written on NumPy, and are never written anew."""
    model = keras.saving.load_model(zoo.path_of(name))
    expected = json.loads(zoo.ANSWERS.read_text())[name]
    for found, right in zip(zoo.next_outputs(zoo.ANIMALS[name], model), expected, strict=True):
        np.testing.assert_allclose(found, right, atol=1e-4)
