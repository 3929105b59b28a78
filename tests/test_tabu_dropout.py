"""TabuDropout against a loop over steps in plain Python, and its rate against the exact Markov chain; its callback."""

import fractions
import json

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.layers.activation.adaptive_tenure import AdaptiveTenure
from pernodedrop.layers.activation.tabu_dropout import TabuDropout
from tests.frameworks import needs_training
from tests.reference import bits

BACKEND = keras.backend.backend()
SEED = 1


def host(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def tried(call, units, p):
    """Which units are tried in a call."""
    return (bits(SEED, call, (1, units, 1))[0, :, 0] >> 8) >= round((1 - p) * 2**24)


def drops(units, steps, tenure, p):
    """Which units are dropped in each step, from what was dropped in the steps before: (steps, units).

    `tenure` and `p` are numbers, or have one for each step.
    """
    tenures, p = np.broadcast_to(tenure, steps), np.broadcast_to(p, steps)
    dropped = []
    for step in range(steps):
        lately = [row for before, row in enumerate(dropped) if step - before <= tenures[before]]
        dropped.append(
            [bool(s) and not any(row[j] for row in lately) for j, s in enumerate(tried(step, units, p[step]))]
        )
    return np.array(dropped)


def stationary_rate(p, tenure):
    """By the chain of one unit: state k is k steps of safety left, and it is dropped when it comes to `tenure`."""
    chain = np.zeros((tenure + 1, tenure + 1))
    chain[0, tenure], chain[0, 0] = p, 1 - p
    for k in range(1, tenure + 1):
        chain[k, k - 1] = 1
    values, vectors = np.linalg.eig(chain.T)
    distribution = np.real(vectors[:, np.argmin(np.abs(values - 1))])
    return (distribution / distribution.sum())[0] * p


@pytest.mark.parametrize(("tenure", "p"), [(1, 0.5), (2, 0.5), (5, 0.5), (3, 0.9), (1, 0.0)])
@pytest.mark.parametrize("shape", [(3, 40), (2, 3, 40)])
def test_training_steps_are_those_of_the_definition(tenure, p, shape):
    layer, x = TabuDropout(p, tenure, seed=SEED), np.ones(shape, "float32")
    scale = 1 / (1 - stationary_rate(p, tenure))
    for step, dropped in enumerate(drops(40, 12, tenure, p)):
        y = host(layer(x, training=True))
        np.testing.assert_allclose(y, np.broadcast_to(np.where(dropped, 0, scale), shape), rtol=1e-6, err_msg=str(step))
        np.testing.assert_array_equal(host(layer(x)), x)


@pytest.mark.parametrize(("tenure", "published"), [(1, 0.333), (2, 0.25), (5, 0.143)])
def test_stationary_rate_is_the_published_one(tenure, published):
    """The chain has it, and so, to 6 of a binomial's standard deviations, have 50 steps of 2000 units after the first
    ones: a unit's drops keep away from each other, so the false-alarm rate is below 2e-9; the seed is fixed.
    """
    assert stationary_rate(0.5, tenure) == pytest.approx(published, abs=0.0005)
    layer, x = TabuDropout(0.5, tenure, seed=SEED), np.ones((1, 2000), "float32")
    steps = np.array([host(layer(x, training=True))[0] for _ in range(80)])[30:]
    q = stationary_rate(0.5, tenure)
    assert abs((steps == 0).mean() - q) < 6 * np.sqrt(q * (1 - q) / steps.size)
    assert steps.mean() == pytest.approx(1, abs=6 * np.sqrt(q / (1 - q) / steps.size))


@pytest.mark.parametrize(("tenure", "q"), [(1, fractions.Fraction(1, 3)), (3, fractions.Fraction(1, 5))])
def test_effective_rate_is_the_one_in_the_long_run(tenure, q):
    p = float(q / (1 - tenure * q))
    assert stationary_rate(p, tenure) == pytest.approx(float(q), abs=1e-12)
    layer, other = TabuDropout(float(q), tenure, effective=True, seed=SEED), TabuDropout(p, tenure, seed=SEED)
    x = np.ones((2, 50), "float32")
    for _ in range(8):
        np.testing.assert_array_equal(host(layer(x, training=True)), host(other(x, training=True)))
    assert layer.rate == float(q)
    layer.rate, other.rate = 0.1, 0.1 / (1 - 0.1 * tenure)
    np.testing.assert_array_equal(host(layer(x, training=True)), host(other(x, training=True)))
    assert layer.rate == 0.1
    again = TabuDropout.from_config(layer.get_config())
    assert (again.rate, again.tenure, again.effective) == (layer.rate, tenure, True)


TENURES = [1, 1, 4, 4, 4, 2, 2, 1, 1, 6, 6, 6, 1, 1]


@pytest.mark.parametrize(("rate", "effective"), [(0.7, False), (0.13, True), (1 / 9, True)])
def test_a_tenure_that_is_set_is_that_of_the_units_dropped_from_the_next_step_on(rate, effective):
    layer, x = TabuDropout(rate, effective=effective, seed=SEED), np.ones((2, 50), "float32")
    p = [rate / (1 - tenure * rate) if effective else rate for tenure in TENURES]
    rows = drops(50, len(TENURES), TENURES, p)
    assert (rows != drops(50, len(TENURES), 1, p)).any()
    for tenure, tries, dropped in zip(TENURES, p, rows, strict=True):
        layer.tenure = tenure
        assert (layer.tenure, layer.rate, layer.get_config()["tenure"]) == (tenure, rate, tenure)
        scale = 1 / (1 - stationary_rate(tries, tenure))
        assert scale == pytest.approx(1 / (1 - rate)) or not effective
        y = host(layer(x, training=True))
        np.testing.assert_allclose(y, np.broadcast_to(np.where(dropped, 0, scale), x.shape), rtol=1e-6)


def test_a_rate_and_a_tenure_may_be_set_in_turn():
    layer = TabuDropout(0.45, effective=True, seed=SEED)
    layer.rate = 0.1
    layer.tenure = 8
    assert (layer.rate, layer.tenure) == (0.1, 8)
    with pytest.raises(ValueError, match=r"`tenure`.*below 1 / rate - 1, with rate=0.1.*tenure=9"):
        layer.tenure = 9
    with pytest.raises(ValueError, match=r"`rate`.*below 1 / \(1 \+ tenure\), with tenure=8"):
        layer.rate = 0.2
    assert (layer.rate, layer.tenure) == (0.1, 8)


def test_schedule_sets_the_rate_and_the_scale_of_a_step():
    layer = TabuDropout(pnd.schedules.Step([0.0, 0.5], [2]), tenure=2, seed=SEED)
    x = np.ones((1, 60), "float32")
    values = [set(np.unique(host(layer(x, training=True)))) for _ in range(4)]
    assert values == [{1.0}, {1.0}, {0.0, np.float32(4 / 3)}, {0.0, np.float32(4 / 3)}]


def test_state_is_saved_with_the_model(tmp_path):
    model, x = keras.Sequential([keras.Input((30,)), TabuDropout(0.7, 4, seed=SEED)]), np.ones((1, 30), "float32")
    for _ in range(3):
        model(x, training=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for _ in range(4):
        np.testing.assert_array_equal(host(again(x, training=True)), host(model(x, training=True)))


@pytest.mark.parametrize("effective", [False, True])
def test_weights_bring_the_tenure_with_them(effective, tmp_path):
    def made(rate=0.2):
        return keras.Sequential([keras.Input((30,)), TabuDropout(rate, effective=effective, seed=SEED)])

    model, again, x = made(), made(0.3), np.ones((1, 30), "float32")
    model.layers[0].tenure = 3
    model(x, training=True)
    model.save_weights(tmp_path / "model.weights.h5")
    again.load_weights(tmp_path / "model.weights.h5")
    assert (again.layers[0].rate, again.layers[0].tenure) == (0.2, 3)
    for _ in range(4):
        np.testing.assert_array_equal(host(again(x, training=True)), host(model(x, training=True)))
    config = json.loads(json.dumps(again.layers[0].get_config()))
    assert TabuDropout.from_config(config).tenure == 3


@needs_training
@pytest.mark.parametrize("jit_compile", [False, True] if BACKEND == "tensorflow" else [BACKEND == "jax"])
def test_compiled_steps_advance_the_state(jit_compile):
    """The kernel's gradients, after a step on each of seven batches, say which units were dropped."""
    layer, tenures = TabuDropout(0.6, 2, seed=SEED), [2, 2, 2, 5, 5, 1, 1]
    head = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((40,)), layer, head])
    model.compile(keras.optimizers.SGD(1.0), lambda y, out: -keras.ops.mean(out), jit_compile=jit_compile)
    x = np.ones((2, 40), "float32")
    before = np.zeros((40, 1))
    for tenure, dropped in zip(tenures, drops(40, 7, tenures, 0.6), strict=True):
        layer.tenure = tenure
        model.train_on_batch(x, x[:, :1])
        after = host(head.kernel)
        np.testing.assert_array_equal((after - before == 0)[:, 0], dropped)
        before = after


@needs_training
@pytest.mark.skip_backend("tensorflow", reason="Keras' TensorFlow backend rematerializes in graphs only")
def test_rematerialization_makes_no_step_of_its_own():
    with keras.RematScope("full"):
        layer = TabuDropout(0.6, 2, seed=SEED)
    head = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    model = keras.Sequential([keras.Input((40,)), layer, head])
    model.compile(keras.optimizers.SGD(1.0), lambda y, out: -keras.ops.mean(out), jit_compile=BACKEND == "jax")
    x = np.ones((2, 40), "float32")
    for _ in range(4):
        before = host(head.kernel).copy()
        model.train_on_batch(x, x[:, :1])
    np.testing.assert_array_equal((host(head.kernel) == before)[:, 0], drops(40, 4, 2, 0.6)[3])
    assert layer.updates == 4


def sloped(*layers):
    return keras.Sequential([keras.Input((3,)), *layers, keras.layers.Dense(1)])


@pytest.mark.parametrize(
    ("arguments", "losses", "tenures"),
    [
        ({}, [5, 4, 3, 3, 4, 3.5, 2, 2, 2, 2, 2], [2, 1, 1, 2, 3, 4, 3, 4, 5, 5, 5]),
        ({"patience": 2}, [5, 6, 6, 6, 6, 4, 4, 3, 3, 3, 3], [2, 2, 3, 3, 4, 3, 3, 2, 2, 3, 3]),
        ({"mode": "max"}, [0.1, 0.2, 0.3, 0.3, 0.2, 0.4], [2, 1, 1, 2, 3, 2]),
        ({}, [np.nan, 3, np.nan, 2, np.inf], [2, 1, 2, 1, 2]),
    ],
)
def test_the_tenure_follows_the_figure_that_is_monitored(arguments, losses, tenures):
    inner, outer = TabuDropout(0.1, 2, effective=True), TabuDropout(0.5, 2)
    callback = AdaptiveTenure(highest=5, monitor="figure", **arguments)
    callback.set_model(sloped(keras.Sequential([keras.Input((3,)), inner]), outer))
    for _ in range(2):  # a second training begins anew
        inner.tenure = outer.tenure = 2
        callback.on_train_begin()
        found = []
        for epoch, loss in enumerate(losses):
            callback.on_epoch_end(epoch, {"loss": -loss, "figure": loss})
            found.append((inner.tenure, outer.tenure))
        assert found == [(tenure, tenure) for tenure in tenures]
    assert inner.rate == 0.1


@needs_training
def test_tenures_rise_in_fit_and_are_there_when_it_is_resumed(tmp_path):
    """Nothing is learned and nothing dropped, so no epoch is better than the first."""

    class Stop(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 3:
                raise InterruptedError

    def run(*callbacks):
        layer = TabuDropout(0.0)
        model = sloped(layer)
        model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=BACKEND == "jax")
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        seen = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: tenures.append(layer.tenure))
        callbacks = [AdaptiveTenure(highest=4), seen, backup, *callbacks]
        model.fit(np.ones((4, 3)), np.ones((4, 1)), epochs=7, callbacks=callbacks, verbose=0)

    tenures = []
    with pytest.raises(InterruptedError):
        run(Stop())
    run()
    assert tenures == [1, 2, 3, 3, 4, 4, 4]


@pytest.mark.parametrize(
    ("layers", "highest", "words"),
    [
        ([], 3, r"`model`.*with a TabuDropout"),
        ([TabuDropout(0.5, tenure=4, name="tabu")], 3, r"`highest`.*from 4, the tenure of 'tabu'.*highest=3"),
        (
            [TabuDropout(0.25, effective=True, name="tabu")],
            3,
            r"`highest`.*'tabu' can have.*highest=3.*`tenure`.*below 1 / rate - 1, with rate=0.25",
        ),
        ([TabuDropout(pnd.schedules.Linear(0.1, 0.2, 5), name="tabu")], 2, r"`highest`.*'tabu' goes with.*Linear"),
    ],
)
def test_a_model_whose_tenures_cannot_follow_is_refused_when_training_begins(layers, highest, words):
    callback = AdaptiveTenure(highest)
    callback.set_model(sloped(*layers))
    with pytest.raises(ValueError, match=words):
        callback.on_train_begin()


def test_a_figure_that_is_not_logged_is_refused():
    callback = AdaptiveTenure(2, monitor="val_loss")
    callback.set_model(sloped(TabuDropout(0.1)))
    callback.on_train_begin()
    with pytest.raises(ValueError, match=r"`monitor`.*one of \['acc', 'loss'\].*val_loss"):
        callback.on_epoch_end(0, {"loss": 1.0, "acc": 0.5})


@pytest.mark.parametrize("effective", [False, True])
def test_a_tenure_of_a_rate_with_a_schedule_cannot_be_set(effective):
    layer = TabuDropout(pnd.schedules.Linear(0.1, 0.2, 5), tenure=2, effective=effective)
    with pytest.raises(AttributeError, match=r"tenure of 'tabu_dropout.*Linear.*cannot be set"):
        layer.tenure = 3
    assert layer.tenure == 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: setattr(TabuDropout(0.5), "tenure", 0), r"`tenure`.*from 1"),
        (lambda: setattr(TabuDropout(0.5), "tenure", 1.5), r"`tenure`.*from 1"),
        (lambda: setattr(TabuDropout(0.3, effective=True), "tenure", 3), r"`tenure`.*rate=0.3 in the long run"),
        (lambda: TabuDropout(0.5).noise.with_params({"threshold": 2**23, "tenure": 0}), r"`tenure`.*from 1"),
        (lambda: AdaptiveTenure(0), r"`highest`.*from 1"),
        (lambda: AdaptiveTenure(3, monitor=None), r"`monitor`.*a str"),
        (lambda: AdaptiveTenure(3, mode="auto"), r"`mode`.*'min', 'max'"),
        (lambda: AdaptiveTenure(3, patience=0), r"`patience`.*from 1"),
        (lambda: TabuDropout(1.0), r"`rate`.*\[0, 1"),
        (lambda: TabuDropout(0.5, tenure=0), r"`tenure`.*from 1"),
        (lambda: TabuDropout(0.5, effective=True), r"`rate`.*below 1 / \(1 \+ tenure\)"),
        (lambda: TabuDropout(0.9, tenure=3, effective=True), r"`rate`.*below 1 / \(1 \+ tenure\), with tenure=3"),
        (lambda: TabuDropout(0.1, effective="no"), r"`effective`.*True or False"),
        (lambda: TabuDropout(0.5).build((None, None)), r"`inputs`.*last axis of known size"),
        (lambda: TabuDropout(0.5)(np.ones((2, 3), "int32"), training=True), r"`inputs`.*floating"),
        (
            lambda: TabuDropout(0.5)(np.ones((2, 3), "float32"), training=True, sample_ids=np.array([1, 2])),
            r"`sample_ids`.*same for all samples",
        ),
    ],
)
def test_bad_arguments_are_refused_by_name(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()
