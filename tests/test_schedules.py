"""Rates over time: each schedule against its formula, in layers as they train, and after saving."""

import copy
import dataclasses
import math

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop import schedules
from tests.frameworks import needs_training

BACKEND = keras.backend.backend()


def host(tensor):
    return np.asarray(keras.ops.convert_to_numpy(tensor))


@keras.saving.register_keras_serializable("tests")
def saw(step):
    return 0.1 * (step % 3)


FORMULAS = {
    "constant": (schedules.Constant(0.3), lambda t: 0.3),
    "linear": (schedules.Linear(0.1, 0.5, steps=40, begin=10), lambda t: 0.1 + 0.4 * min(max(t - 10, 0) / 30, 1)),
    "annealed": (schedules.Annealed(0.5, steps=50), lambda t: max(0, 1 - t / 50) * 0.5),
    "exponential": (schedules.Exponential(0.5, steps=100), lambda t: 0.5 * math.exp(-0.1 * min(t, 100))),
    "exponential_gamma": (schedules.Exponential(0.5, gamma=0.01), lambda t: 0.5 * math.exp(-0.01 * t)),
    "curriculum": (schedules.Curriculum(0.5, steps=100), lambda t: 0.5 * (1 - math.exp(-0.1 * min(t, 100)))),
    "curriculum_gamma": (schedules.Curriculum(0.5, gamma=0.01), lambda t: 0.5 * (1 - math.exp(-0.01 * t))),
    "step": (schedules.Step([0.0, 0.2, 0.5], [3, 10]), lambda t: 0.0 if t < 3 else 0.2 if t < 10 else 0.5),
    "custom": (schedules.Custom(saw, steps=12), lambda t: 0.1 * (min(t, 12) % 3)),
}
each_schedule = pytest.mark.parametrize(("schedule", "formula"), FORMULAS.values(), ids=FORMULAS)


@each_schedule
def test_schedule_is_its_formula_on_the_host(schedule, formula):
    for step in (0, 1, 2, 3, 5, 9, 10, 11, 25, 50, 99, 100, 1000):
        assert schedule(step) == pytest.approx(formula(step), abs=1e-12)


@each_schedule
def test_layer_has_the_rate_of_the_schedule_at_its_call_number(schedule, formula):
    layer, x = pnd.Dropout(schedule, seed=1), np.ones((8, 16), "float32")
    for step in (0, 1, 3, 7, 10, 12, 60, 2**31 - 1, 2**31, 2**32 - 1):
        y = host(layer(x, training=True, key=(1, step)))
        wanted = pnd.ops.sample_mask(pnd.Bernoulli(schedule(step)), (1, step), (8, 16, 1), backend="numpy")
        np.testing.assert_array_equal(y, wanted[:, :, 0])


@each_schedule
def test_config_round_trip_keeps_the_schedule(schedule, formula):
    layer = pnd.Dropout(schedule, seed=1)
    again = pnd.Dropout.from_config(layer.get_config())
    assert again.schedule == schedule
    assert again.get_config() == layer.get_config()


@each_schedule
def test_schedules_compare_and_hash_by_value_and_are_frozen(schedule, formula):
    twin = copy.deepcopy(schedule)
    assert twin is not schedule
    assert {schedule: 1}[twin] == 1
    assert schedule != schedules.Constant(0.123)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(schedule, dataclasses.fields(schedule)[0].name, 0.5)


def test_a_long_schedule_changes_at_powers_of_two_and_ends_on_its_end():
    schedule = schedules.Linear(0.0, 0.5, steps=10_000_000)
    shift, rates = schedule.table()
    assert len(rates) <= schedules.TABLE_ROWS
    assert rates[-1] == 0.5
    layer, x = pnd.Dropout(schedule, seed=1), np.ones((8, 16), "float32")
    end = (len(rates) - 1) << shift
    assert schedule.steps <= end < schedule.steps + 2**shift
    for step in (0, 2**shift - 1, 2**shift, 5_000_000, end, end + 7):
        rate = schedule((step >> shift) << shift)
        wanted = pnd.ops.sample_mask(pnd.Bernoulli(rate), (1, step), (8, 16, 1), backend="numpy")
        np.testing.assert_array_equal(host(layer(x, training=True, key=(1, step))), wanted[:, :, 0])


@pytest.mark.parametrize("steps", [1, 2, 4095, 4096, 4097, 8190, 8191, 2**31 - 1])
def test_a_table_has_a_row_for_every_step_or_is_almost_full(steps):
    shift, rates = schedules.Linear(0.0, 0.5, steps=steps).table()
    assert len(rates) - 1 == math.ceil(steps / 2**shift)
    assert len(rates) <= schedules.TABLE_ROWS
    assert shift == 0 or steps > 2 ** (shift - 1) * (schedules.TABLE_ROWS - 1)


NOISES = {"gaussian": pnd.Gaussian(0.1), "uniform": pnd.Uniform(0.1), "partial": pnd.PartialGaussian(0.1, 2.0)}


@pytest.mark.parametrize("noise", NOISES.values(), ids=NOISES)
def test_a_schedule_moves_the_rate_of_any_noise(noise):
    schedule = schedules.Step([0.2, 0.6], [1])
    layer = pnd.PerNodeDense(3, schedule, noise=noise, method="materialized", kernel_initializer="ones", seed=1)
    for step, rate in enumerate([0.2, 0.6, 0.6]):
        mask = pnd.ops.sample_mask(noise.with_rate(rate), (1, step), (2, 4, 3), backend="numpy")
        np.testing.assert_allclose(host(layer(np.ones((2, 4), "float32"), training=True)), mask.sum(1), atol=1e-4)
    again = pnd.PerNodeDrop.from_config(layer.get_config())
    assert (again.schedule, again.mask.noise) == (schedule, noise.with_rate(0.2))


@needs_training
@pytest.mark.parametrize("jit_compile", [False, True] if BACKEND == "tensorflow" else [BACKEND == "jax"])
def test_schedule_is_alive_in_fit_and_goes_on_after_saving(jit_compile, tmp_path):
    """At rate 0 a step of this model has loss 0; from update 4 on a kept entry is 2 and a dropped one 0."""
    layer = pnd.Dropout(schedules.Step([0.0, 0.5], [4]), seed=1)
    identity = keras.layers.Dense(64, use_bias=False, kernel_initializer="identity")
    model = keras.Sequential([keras.Input((64,)), identity, layer])
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=jit_compile)
    x, losses = np.ones((4, 64), "float32"), []
    record = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: losses.append(logs["loss"]))
    model.fit(np.concatenate([x] * 3), np.concatenate([x] * 3), batch_size=4, verbose=0, callbacks=[record])
    assert losses == [0.0] * 3
    assert (layer.updates, layer.rate) == (3, 0.0)
    model.save(tmp_path / "model.keras")
    model = keras.saving.load_model(tmp_path / "model.keras")
    losses.clear()
    for _ in range(3):
        model.fit(x, x, batch_size=4, verbose=0, callbacks=[record])
    assert losses == [0.0, 1.0, 1.0]
    assert (model.layers[-1].updates, model.layers[-1].rate) == (6, 0.5)


def test_present_noise_follows_and_cannot_be_set():
    layer = pnd.Dropout(schedules.Linear(0.0, 0.5, steps=4), seed=1)
    for rate in (0.0, 0.125, 0.25, 0.375, 0.5, 0.5):
        assert (layer.rate, layer.noise) == (rate, pnd.Bernoulli(rate))
        layer(np.ones((2, 3), "float32"), training=True)
    with pytest.raises(AttributeError, match="follows Linear"):
        layer.rate = 0.1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: schedules.Linear(0.0, 1.0, steps=5), r"`end`.*\[0, 1"),
        (lambda: schedules.Linear("0.1", 0.5, steps=5), r"`start`.*'0.1'"),
        (lambda: schedules.Constant([0.1]), r"`rate`.*\[0.1\]"),
        (lambda: schedules.Exponential(10**400, steps=5), r"`rate`.*1000"),
        (lambda: schedules.Linear(0.0, 0.5, steps=0), r"`steps`.*steps=0"),
        (lambda: schedules.Linear(0.0, 0.5, steps=5, begin=5), r"`begin`.*below steps=5"),
        (lambda: schedules.Annealed(float("nan"), steps=5), r"`rate`.*nan"),
        (lambda: schedules.Curriculum(0.5), r"`steps` and `gamma`. Expected one of the two"),
        (lambda: schedules.Curriculum(0.5, gamma=1e-310), r"`gamma`.*of a size that float32 has"),
        (lambda: schedules.Curriculum(0.5, gamma=-1.0), r"`gamma`.*above zero"),
        (lambda: schedules.Step([0.1, 0.2], [5, 3]), r"`boundaries`.*rise"),
        (lambda: schedules.Step([0.1], [5]), r"`rates`.*2 rates"),
        (lambda: schedules.Step([0.1, 1.5], [5]), r"`rates`.*1.5"),
        (lambda: schedules.Custom("saw", steps=5), r"`function`.*'saw'"),
        (lambda: schedules.Step(0.1, [5]), r"`rates`.*a sequence"),
        (lambda: schedules.Step([0.1, 0.2], range(10**9)), r"`boundaries`.*at most 4095"),
        (lambda: schedules.Custom(lambda step: 2.0 * (step == 3), steps=5).table(), r"`function\(3\)`.*2.0"),
        (lambda: schedules.Constant(0.1)(-1), r"`step`.*step=-1"),
        (lambda: pnd.PerNodeDense(3, schedules.Constant(0.1), regime="fixed"), r"`rate`.*regime='fixed'"),
    ],
)
def test_bad_arguments_are_refused_by_name(make, words):
    with pytest.raises((TypeError, ValueError), match=words):
        make()
