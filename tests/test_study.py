"""Studies: what is planned, what a trial is, and that nothing that has finished is lost or done twice."""

import collections
import json
import math
import os
import pathlib
import re
import shlex
import signal
import sqlite3
import subprocess
import sys

import keras
import numpy as np
import pytest

import pernodedrop as pnd
from pernodedrop.commands.cli import main
from pernodedrop.study import named, plan, variants
from pernodedrop.study.epoch_end import Batches, evaluate
from pernodedrop.study.slot import Slot
from pernodedrop.study.storage import Queue, Records
from tests import postgresql, studies
from tests.commands import IMPOSSIBLE, exits
from tests.processes import DEADLOCK, SCRIPTS, child

trains = pytest.mark.skip_backend("numpy", reason="Keras on NumPy cannot train")
command = pytest.mark.only_backend("torch", reason="it says the same on all; torch compiles no trial")

MEASURED = {"seconds_per_epoch", "environment"}


@pytest.fixture
def first_weights_of_numpy():
    """None here, but Keras' own: a process of a study has them, and a trial is the same in each."""


def found(records):
    """Records without what depends on the machine, in an order of their own."""
    plain = [{name: value for name, value in record.items() if name not in MEASURED} for record in records]
    return sorted(plain, key=plan.key)


# The plan


def design(**changes):
    given = {
        "study": "s",
        "variants": {"none": False, "dropout": True},
        "rates": (0.2, 0.5),
        "search": {},
        "settings": {"epochs": 3},
        "select_seeds": 2,
        "seeds": 3,
        "backend": "jax",
    }
    return plan.Design(**{**given, **changes})


def record(trial, *losses):
    return {**trial, "epochs": [{"val_loss": loss} for loss in losses]}


@pytest.mark.once
def test_selection_is_planned_seed_by_seed_and_once_for_what_has_no_rate():
    trials = plan.plan(design(), "select")
    assert [(one["seed"], one["variant"], one["rate"]) for one in trials] == [
        (seed, *of) for seed in (0, 1) for of in (("none", None), ("dropout", 0.2), ("dropout", 0.5))
    ]
    assert all(one["settings"] == {"epochs": 3} and one["stage"] == "select" for one in trials)


@pytest.mark.once
def test_searched_settings_are_tried_each_with_each_and_go_before_the_fixed_ones():
    trials = plan.plan(design(search={"width": (8, 16), "epochs": (1, 2)}, select_seeds=1), "select")
    tried = collections.Counter((one["settings"]["width"], one["settings"]["epochs"]) for one in trials)
    assert tried == {(width, epochs): 3 for width in (8, 16) for epochs in (1, 2)}


@pytest.mark.once
def test_confirmation_has_the_best_mean_of_each_variant_on_fresh_seeds():
    losses = {None: (1.0, 1.0), 0.2: (0.1, 0.9), 0.5: (0.4, 0.5)}  # 0.2 is better once, 0.5 on the average
    selection = plan.plan(design(), "select")
    records = [record(one, 2.0, losses[one["rate"]][one["seed"]], 3.0) for one in selection]
    confirmation = plan.plan(design(), "confirm", reversed(records))
    assert [(one["seed"], one["variant"], one["rate"]) for one in confirmation] == [
        (seed, *of) for seed in (1000, 1001, 1002) for of in (("none", None), ("dropout", 0.5))
    ]
    assert not {one["seed"] for one in selection} & {one["seed"] for one in confirmation}
    more = plan.plan(design(seeds=5), "confirm", records)
    assert more[: len(confirmation)] == confirmation


@pytest.mark.once
def test_confirmation_waits_for_all_of_the_selection():
    records = [record(one, 1.0) for one in plan.plan(design(), "select")]
    with pytest.raises(LookupError, match="has not finished"):
        plan.plan(design(), "confirm", records[:-1])
    with pytest.raises(LookupError, match="has not finished"):
        plan.plan(design(backend="torch"), "confirm", records)


@pytest.mark.once
def test_a_loss_that_is_no_number_is_never_selected():
    losses = {None: (1.0,), 0.2: (math.nan,), 0.5: (math.nan, 9.0, math.inf)}
    records = [record(one, *losses[one["rate"]]) for one in plan.plan(design(), "select")]
    assert plan.selected(design(), records)["dropout"]["rate"] == 0.5


@pytest.mark.once
def test_records_of_a_design_are_those_of_its_settings_whatever_their_seeds():
    ours = [record(one, 1.0) for one in plan.plan(design(), "select")]
    ours += [record(one, 1.0) for one in plan.plan(design(seeds=9), "confirm", ours)]
    others = [{**ours[0], **change} for change in ({"backend": "torch"}, {"settings": {}}, {"variant": "more"})]
    others += [{**ours[1], "rate": 0.3}, {**ours[0], "stage": "grid"}]
    assert plan.belonging(design(select_seeds=1), [*others, *ours]) == ours


@pytest.mark.once
def test_paper_protocol_is_a_grid():
    trials = plan.plan(design(protocol="paper", seeds=1, search={"width": (32, 64)}), "grid")
    assert len(trials) == 2 * 3
    assert {one["stage"] for one in trials} == {"grid"}


# Variants and the slot


@pytest.mark.once
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3, 0.5, 0.75, 0.9])
def test_masksembles_masks_drop_the_rate(rate):
    layer = pnd.Masksembles(*variants.masksembles(rate), seed=1)
    layer.build((None, 1000))
    kept = keras.ops.convert_to_numpy(layer.masks).mean(axis=1)
    assert kept == pytest.approx(1 - rate, abs=1 / 1000)


@pytest.mark.once
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_dynamic_drop_connect_drops_the_rate_of_normal_gradients(rate):
    base, more = variants.drop_connect_rates(rate)
    v = np.abs(np.random.default_rng(0).normal(size=1_000_000))
    q = 1 / (1 + np.exp((v - v.mean()) / v.std()))
    assert base + more * np.where(q > 0.5, q, 0).mean() == pytest.approx(rate, abs=0.01)
    pnd.DynamicDropConnect(keras.layers.Dense(1), base, more)


@pytest.mark.once
def test_noises_of_one_rate_have_one_variance():
    names = ("per_node_drop", "per_node_drop_gaussian", "per_node_drop_partial_gaussian", "per_node_drop_fixed")
    for name in names:
        (layer,) = variants.get(name).function(keras.layers.Dense(1), 0.2, 1)
        assert layer.noise.variance == pytest.approx(0.25, rel=1e-6)


@pytest.mark.once
def test_a_layer_with_arguments_is_a_variant():
    dense = keras.layers.Dense(1)
    around = variants.of_layer("DropConnect", "mine", sharing="time")
    assert around[1:] == ("mine", True, None, 32)
    (layer,) = around.function(dense, 0.3, 5)
    assert (layer.layer, layer.rate, layer.seed, layer.sharing) == (dense, 0.3, 5, {"time"})
    before, after = variants.of_layer("Dropout", rate=0.2, r_drop=2.0).function(dense, 0.3, 5)
    assert (before.rate, after) == (0.2, dense)
    fixed = variants.of_layer("DynamicDropConnect", base_rate=0.2, gradient_rate=0.1)
    (layer,) = fixed.function(dense, 0.0, 5)
    assert (fixed.has_rate, layer.rate, layer.gradient_rate) == (False, 0.2, 0.1)
    assert variants.of_layer("Dropout", r_drop=2.0).r_drop == 2


@pytest.mark.once
def test_a_layer_with_a_schedule_has_the_rate_of_the_study_unless_that_has_one():
    def made(**schedule):
        variant = variants.of_layer("PerNodeDrop", schedule=schedule)
        (layer,) = variant.function(keras.layers.Dense(1), 0.3, 5)
        return variant.has_rate, layer.schedule

    assert made(kind="Curriculum", steps=9) == (True, pnd.schedules.Curriculum(0.3, steps=9))
    assert made(kind="Annealed", rate=0.1, steps=9) == (False, pnd.schedules.Annealed(0.1, steps=9))
    assert made(kind="Linear", start=0.0, end=0.5, steps=9) == (False, pnd.schedules.Linear(0.0, 0.5, steps=9))


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer": "DropConect"}, "did you mean 'DropConnect'"),
        ({"layer": "DropConnect", "rate": 2.0}, "`rate`"),
        ({"layer": "DropConnect", "rates": 0.2}, "rates"),
        ({"layer": "DropConnect", "r_drop": -1.0}, "`r_drop`"),
        ({"layer": "DropConnect", "schedule": {"kind": "Curiculum"}}, "did you mean 'Curriculum'"),
        ({"layer": "DropConnect", "schedule": {"kind": "Curriculum"}}, "steps"),
        ({"layer": "DropConnect", "schedule": {"kind": "Annealed", "steps": 5}, "rate": 0.1}, "`schedule`"),
        ({"layer": "DropConnect", "schedule": 0.5}, "`schedule`. Expected a dict of a kind"),
        ({"layer": "DropConnect", "title": 5}, "`title`. Expected a str"),
    ],
)
def test_a_layer_that_cannot_be_is_refused_at_once(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        variants.of_layer(**arguments)


@pytest.mark.once
def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="a str that no variant has yet"):
        variants.register("dropout", lambda dense, rate, seed: [dense])
    with pytest.raises(ValueError, match="did you mean 'dropout'"):
        variants.get("dropuot")


def two_slots(slot):
    layers = [*slot(5, activation="relu"), keras.layers.Dense(5), *slot(5), keras.layers.Dense(1)]
    return keras.Sequential([keras.Input((5,)), *layers])


@pytest.mark.parametrize("name", variants.names())
def test_all_variants_start_with_the_weights_of_none(name):
    def start(name, seed):
        keras.utils.set_random_seed(seed)
        slot = Slot(variants.get(name), 0.5, seed)
        model = two_slots(slot)
        return [keras.ops.convert_to_numpy(weight) for weight in slot.start(model)]

    plain, noisy = start("none", 3), start(name, 3)
    assert [weight.shape for weight in plain] == [weight.shape for weight in noisy]
    assert all((a == b).all() for a, b in zip(plain, noisy, strict=True))
    assert not (plain[0] == start(name, 4)[0]).all()


@pytest.mark.once
@pytest.mark.parametrize("name", ["fractal_block", "experts"])
def test_copies_start_unlike_each_other_and_what_comes_after_and_alike_for_a_seed(name):
    def kernels():
        keras.utils.set_random_seed(3)
        slot = Slot(variants.get(name), 0.5, 3)
        model = keras.Sequential([keras.Input((5,)), *slot(5), *slot(5), keras.layers.Dense(5)])
        return [keras.ops.convert_to_numpy(weight) for weight in model.trainable_weights if len(weight.shape) == 2]

    found = kernels()
    assert len({one.tobytes() for one in found}) == len(found) > 5
    np.testing.assert_array_equal([one.sum() for one in found], [one.sum() for one in kernels()])


@pytest.mark.once
@pytest.mark.parametrize("name", variants.names())
def test_functional_models_of_studies_start_with_the_weights_of_none(name):
    """Their layers are built while they are made, before `random` gives the seeds of those after them."""

    def start(name):
        keras.utils.set_random_seed(3)
        slot = Slot(variants.get(name), 0.5, 3)
        x = y = keras.Input((5,))
        for layer in [*slot(5), keras.layers.Dense(5)]:
            y = layer(y)
        for layer in [*slot(5), keras.layers.Dense(1)]:
            y = layer(y)
        return [keras.ops.convert_to_numpy(weight) for weight in slot.start(keras.Model(x, y))]

    for plain, noisy in zip(start("none"), start(name), strict=True):
        np.testing.assert_array_equal(plain, noisy)


@pytest.mark.parametrize("name", ["dropout", "per_node_drop", "drop_connect"])
def test_slots_of_a_model_have_masks_of_their_own(name):
    slot = Slot(variants.get(name), 0.5, 3)
    two_slots(slot)
    noisy = [layer for layer in slot.layers if hasattr(layer, "seed")]
    assert len({layer.seed for layer in noisy}) == 2
    again = Slot(variants.get(name), 0.5, 3)
    two_slots(again)
    assert [layer.seed for layer in again.layers if hasattr(layer, "seed")] == [layer.seed for layer in noisy]


@pytest.mark.once
def test_batches_have_every_sample_once_in_an_order_of_the_seed_and_the_epoch():
    x = np.arange(10)

    def epochs(seed):
        batches = Batches(x, -x, 4, seed)
        for _ in range(2):
            pairs = [batches[n] for n in range(len(batches))]
            assert all((a == -b).all() for a, b in pairs)
            yield [a for a, _ in pairs]
            batches.on_epoch_end()

    first, second = (np.concatenate(epoch) for epoch in epochs(1))
    assert sorted(first) == sorted(second) == list(x)
    assert list(first) != list(second)
    assert list(np.concatenate(next(epochs(1)))) == list(first) != list(np.concatenate(next(epochs(2))))


# The loss at the end of an epoch


def by_hand(model, x, y):
    """The mean crossentropy of a model's logits in float64."""
    logits = model.predict(x, verbose=0).astype("float64")
    logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    return -logs[np.arange(len(y)), y].mean()


@trains
def test_epoch_end_loss_is_that_of_a_loop_by_hand():
    x, y = studies.data()

    def made():
        keras.utils.set_random_seed(1)
        model = studies.model(Slot(variants.get("per_node_drop"), 0.5, 1))
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
        return model

    model, again = made(), made()
    history = model.fit(
        x, y, batch_size=20, shuffle=False, epochs=2, verbose=0, callbacks=[pnd.study.EpochEndLoss((x, y))]
    )
    losses = []
    for _ in range(2):
        for n in range(0, 60, 20):
            again.train_on_batch(x[n : n + 20], y[n : n + 20])
        losses.append(by_hand(again, x, y))
    assert history.history["train_loss"] == pytest.approx(losses, rel=1e-5)
    assert history.history["loss"] != pytest.approx(losses, rel=1e-3)
    right = (model.predict(x, verbose=0).argmax(1) == y).mean()
    assert history.history["train_accuracy"][-1] == pytest.approx(right)


@trains
def test_a_model_with_masksembles_is_evaluated_as_the_mean_of_its_members():
    x, y = studies.data(61)
    keras.utils.set_random_seed(1)
    slot = Slot(variants.get("masksembles"), 0.5, 1)
    layers = [*slot(6, activation="relu"), keras.layers.Dense(2, activation="softmax")]
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(16), *layers])
    model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    masks = model.layers[1].masks
    members = keras.ops.convert_to_numpy(masks)
    outputs = []
    for member in members:
        masks.assign(np.tile(member, (len(members), 1)))
        outputs.append(model.predict(x, verbose=0).astype("float64"))
    masks.assign(members)
    mean = np.mean(outputs, 0)
    found = evaluate(model, (x, y))
    assert found["loss"] == pytest.approx(-np.log(mean[np.arange(61), y]).mean(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((mean.argmax(1) == y).mean())
    assert model.evaluate(x, y, verbose=0, return_dict=True)["loss"] != pytest.approx(found["loss"], rel=1e-3)


# Trials


@trains
@pytest.mark.parametrize("variant", ["none", "per_node_drop", "masksembles", "dynamic_drop_connect"])
def test_a_trial_is_the_same_again_from_its_record(variant, tmp_path):
    study = studies.small(tmp_path, variants=[variant])
    (planned,) = study.plan("select")
    first = study.trial({**planned, "stage": "confirm"})
    again = studies.small(tmp_path, variants=[variant]).trial(json.loads(json.dumps(first)))
    assert found([first]) == found([again])
    assert first["best_epoch"] == int(np.argmin([epoch["val_loss"] for epoch in first["epochs"]]))
    assert first["test"]["loss"] > 0


@trains
def test_a_trial_with_r_drop_is_that_model_in_fit(tmp_path):
    part = studies.data()
    with_it, without = (variants.of_layer("Dropout", r_drop=alpha) for alpha in (3.0, None))
    study = studies.small(tmp_path, variants={"with": with_it, "without": without}, data=(part, part, part))
    planned, plain = study.plan("select")
    found, other = study.trial(planned)["epochs"], study.trial(plain)["epochs"]
    keras.utils.set_random_seed(planned["seed"])
    model = pnd.RDropModel(studies.model(Slot(with_it, planned["rate"], planned["seed"])))
    crossentropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), pnd.losses.RDrop(crossentropy, 3.0))
    model.fit(Batches(*part, 18, planned["seed"]), epochs=2, verbose=0, shuffle=False)
    assert found[-1]["val_loss"] == pytest.approx(by_hand(model, *part), rel=1e-5)
    assert other[-1]["val_loss"] != pytest.approx(by_hand(model, *part), rel=1e-5)


@trains
def test_r_drop_refuses_a_model_that_is_compiled(tmp_path):
    def compiled(slot):
        model = studies.model(slot)
        model.compile("sgd", "mse")
        return model

    study = studies.small(tmp_path, variants={"with": variants.of_layer("Dropout", r_drop=1.0)}, model=compiled)
    with pytest.raises(ValueError, match="not compiled yet, for R-Drop"):
        study.trial(study.plan("select")[0])


@trains
def test_a_test_is_of_the_weights_of_the_best_epoch(tmp_path):
    study = studies.small(tmp_path, variants=["none"], optimizer="sgd", learning_rate=30.0, epochs=4)
    (planned,) = study.plan("select")
    diverging = study.trial({**planned, "stage": "confirm"})
    losses = [epoch["val_loss"] for epoch in diverging["epochs"]]
    best = int(np.argmin(losses))
    assert best < 3
    until_then = {**planned["settings"], "epochs": best + 1}
    stopped = study.trial({**planned, "stage": "confirm", "settings": until_then})
    assert stopped["test"] == diverging["test"]


@trains
def test_patience_ends_a_trial(tmp_path):
    study = studies.small(tmp_path, variants=["none"], optimizer="sgd", learning_rate=30.0, epochs=30, patience=2)
    (planned,) = study.plan("select")
    record = study.trial(planned)
    assert len(record["epochs"]) == record["best_epoch"] + 3


@trains
def test_rules_of_apply_are_variants_of_a_model_without_a_slot(tmp_path):
    def rule(layer, rate, seed):
        return pnd.PerNodeDrop(layer, rate, seed=seed, name=layer.name) if layer.name == "first" else None

    def model():
        return keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, name="first"), keras.layers.Dense(2)])

    study = studies.small(tmp_path, model=model, variants={"none": None, "noisy": rule}, epochs=1)
    plain, noisy = (study.trial(one) for one in study.plan("select"))
    assert plain["start"] == noisy["start"]
    assert plain["epochs"] != noisy["epochs"]


@pytest.mark.slow
@trains
def test_a_model_that_comes_compiled_is_reported_with_its_own_optimizer(tmp_path):
    def model(slot):
        made = studies.model(slot)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        made.compile(keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.03, 10)), loss)
        return made

    study = studies.small(tmp_path, model=model, variants=["none", "per_node_drop"], epochs=1, seeds=1)
    assert study.run(progress=False)
    assert [one["stage"] for one in study.records()] == ["select", "select", "confirm", "confirm"]
    assert all(one["compiled"] == {"optimizer": "SGD", "learning_rate": 0.03} for one in study.records())
    text = study.report().with_name("report.md").read_text(encoding="utf-8")
    assert "learning_rate 0.03 (as compiled), optimizer SGD (as compiled)" in text


@trains
def test_rules_leave_a_model_compiled_as_it_came(tmp_path):
    def squares(y, outputs):
        return keras.ops.mean(outputs * outputs, -1)

    def model():
        made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(6), keras.layers.Dense(2)])
        made.compile(keras.optimizers.SGD(0.25), squares, metrics=["accuracy"])
        return made

    def same(layer, rate, seed):
        return pnd.PerNodeDrop(layer, 0.0, seed=seed, name=layer.name) if layer.units == 6 else None

    study = studies.small(tmp_path, model=model, variants={"none": None, "same": same}, epochs=1)
    plain, noisy = (study.trial(one) for one in study.plan("select"))
    assert plain["compiled"] == noisy["compiled"] == {"optimizer": "SGD", "learning_rate": 0.25}
    (one,), (other,) = plain["epochs"], noisy["epochs"]
    assert one.keys() == other.keys() >= {"val_accuracy"}
    assert all(math.isclose(one[name], other[name], rel_tol=1e-4) for name in one)  # noise at rate 0 is none


@pytest.mark.slow
@pytest.mark.only_backend("torch", reason="the seeds are the same on all; the others take wider ones")
@pytest.mark.parametrize("has_slot", [True, False])
def test_seeds_of_functions_of_ones_own_are_those_that_keras_dropout_takes(has_slot, tmp_path):
    seeds = []

    def layers(dense, rate, seed):
        seeds.append(seed)
        return [keras.layers.Dropout(rate, seed=seed), dense]

    def rule(layer, rate, seed):
        seeds.append(seed)
        return keras.layers.Dropout(rate, seed=seed) if isinstance(layer, keras.layers.Dropout) else None

    def model():
        return keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.1), keras.layers.Dense(2)])

    own = {"variants": {"own": layers}} if has_slot else {"variants": {"own": rule}, "model": model}
    study = studies.small(tmp_path, **own, epochs=1)
    for seed in range(4):  # of wide seeds half are above the int32 in which Keras keeps one on torch
        study.trial(study.candidate("own", 0.5, seed=seed))
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) < 2**31


@pytest.mark.once
def test_named_variants_have_the_seeds_of_the_studies_that_were_run():
    taken = []

    def function(dense, rate, seed):
        taken.append(seed)
        return [dense]

    for named_one in (variants.get("none"), variants.get("per_node_drop"), variants.of_layer("Dropout")):
        slot = Slot(named_one._replace(function=function), 0.5, 1000)
        for _ in range(4):
            slot(3)
    wide = [int(np.random.SeedSequence([1000, 1, place]).generate_state(1)[0]) for place in range(4)]
    assert taken == 3 * wide
    assert max(wide) >= 2**31


@trains
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ["dropuot"]}, "did you mean 'dropout'"),
        ({"variants": {"none": None, "noisy": "all-linear"}}, r"variants\['noisy'\]"),
        ({"rates": [1.0]}, "`rates`"),
        ({"epochs": 0}, "`epochs`. Expected an int from 1"),
        ({"optimizer": "adma"}, "did you mean 'adam'"),
        ({"protocol": "sond"}, "did you mean 'sound'"),
        ({"name": "a/b"}, "`name`"),
        ({"name": "x" * 10**4}, "`name`. Expected a path"),
        ({"baselines": "dropout"}, "`baselines`. Expected a sequence of names"),
        ({"baselines": 0.5}, "`baselines`. Expected a sequence of names"),
        ({"baselines": ["dropout", None]}, "`baselines`. Expected a str"),
        ({"model": lambda: None}, "a dict of rules"),
        ({"data": studies.data()[:1]}, "`data`. Expected a tuple"),
        ({"data": [*studies.data(), None, None]}, "`data`. Expected a tuple"),
        ({"data": (studies.data()[0], studies.data(59)[1])}, "equal length"),
    ],
)
def test_wrong_arguments_are_named_at_once(changes, message, tmp_path):
    with pytest.raises((TypeError, ValueError), match=message):
        studies.small(tmp_path, **changes)


@trains
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": lambda slot: keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])}, "calls its slot"),
        ({"model": lambda slot: keras.Sequential(slot(2))}, "a built model"),
        ({"model": lambda slot: slot(2)}, "returns a Keras model"),
        ({"data": lambda: studies.data()[:1]}, "`data`. Expected a tuple"),
        ({"sizes": [30, 20, 50]}, "`sizes`"),
        ({"data": (studies.data()[0], studies.data()[0])}, "`loss`"),
    ],
)
def test_wrong_models_and_data_are_named_by_the_first_trial(changes, message, tmp_path):
    study = studies.small(tmp_path, **changes)
    with pytest.raises((TypeError, ValueError), match=message):
        study.trial(study.plan("select")[0])


@pytest.mark.once
def test_data_are_tuples_or_lists(tmp_path):
    whole, listed = (studies.small(tmp_path, data=kind(studies.data())).data for kind in (tuple, list))
    parts = studies.small(tmp_path, data=[list(part) for part in whole]).data
    for train, *others in zip(whole, listed, parts, strict=True):
        assert all((one == same).all() for other in others for one, same in zip(train, other, strict=True))


# Running, and going on


@pytest.mark.slow
@command
def test_a_study_selects_and_confirms_and_goes_on_with_more_seeds(tmp_path):
    study = studies.small(tmp_path, epochs=1)
    assert study.status() == {"select": (0, 2), "confirm": (0, None)}
    assert study.run(progress=False)
    assert study.status() == {"select": (2, 2), "confirm": (4, 4)}
    records = study.records()
    assert [one["stage"] for one in records] == ["select"] * 2 + ["confirm"] * 4
    assert all((one["test"] is None) == (one["stage"] == "select") for one in records)
    more = studies.small(tmp_path, epochs=1, seeds=3)
    assert more.run(progress=False)
    assert more.records()[:6] == records
    assert len(more.records()) == 8


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What a run that nothing ends finds, in a process such as those that are killed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert child("study_run.py", folder, 0)[0]
    return found(studies.small(folder).records())


@command
def test_after_kill_9_the_records_are_those_of_an_undisturbed_run(undisturbed, tmp_path):
    """Killed in the selection, and in the middle of the confirmation."""
    for fatal in (2, 3):
        process = started(tmp_path / "killed", fatal)
        process.communicate(timeout=DEADLOCK)
        assert process.returncode == -signal.SIGKILL
    finished, begun = child("study_run.py", tmp_path / "killed", 0)
    assert (finished, begun) == (True, 6 - (1 + 2))
    assert found(studies.small(tmp_path / "killed").records()) == undisturbed
    lines = (tmp_path / "killed" / "records.jsonl").read_text().splitlines()
    assert len(lines) == len({plan.key(json.loads(line)) for line in lines}) == 6


def started(*arguments):
    """A process that runs the small study."""
    root = pathlib.Path(pnd.__file__).parents[1]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(SCRIPTS / "study_run.py"), *map(str, arguments)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@command
@pytest.mark.slow
@pytest.mark.skipif(postgresql.BINARIES is None, reason="there is no PostgreSQL here")
def test_workers_on_one_postgresql_of_which_one_is_killed_do_every_trial_once(undisturbed, tmp_path):
    with postgresql.server() as url:
        killed = started(tmp_path / "killed", 2, url)
        killed.communicate(timeout=DEADLOCK)
        assert killed.returncode == -signal.SIGKILL
        workers = [started(tmp_path / str(n), 0, url) for n in range(2)]
        ends = [worker.communicate(timeout=DEADLOCK) for worker in workers]
        assert [worker.returncode for worker in workers] == [0, 0], ends
    answers = [json.loads(output.splitlines()[-1]) for output, _ in ends]
    assert [finished for finished, _ in answers] == [True, True]
    assert sum(begun for _, begun in answers) == 6 - 1  # the killed one finished one trial
    studies_of = [studies.small(tmp_path / str(n)).records() for n in range(2)]
    assert found(studies_of[0]) == found(studies_of[1])
    assert found(studies_of[0]) == undisturbed


def faked(study, monkeypatch, end=None, error=None):
    """Give a study trials without training, of which one, by its number, raises an error; returns what was run."""
    run = []

    def trial(planned, on_epoch=None):
        if len(run) == end:
            raise error
        run.append(plan.key(planned))
        losses = {"train_loss": 1.0, "val_loss": 1.0 + planned["seed"]}
        on_epoch(0, losses)
        return {**planned, "epochs": [losses], "best_epoch": 0, "test": None, "start": "", "format": 1}

    monkeypatch.setattr(study, "trial", trial)
    return run


@pytest.mark.once
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_an_end_within_a_trial_loses_that_trial_alone(error, tmp_path, monkeypatch):
    first = studies.small(tmp_path)
    run = faked(first, monkeypatch, end=3, error=error)
    with pytest.raises(type(error)):
        first.run(progress=False)
    assert [plan.key(one) for one in first.records()] == run
    assert len(run) == 3
    second = studies.small(tmp_path)
    rest = faked(second, monkeypatch)
    assert second.run(progress=False)
    assert len(rest) == 3
    assert sorted(run + rest) == sorted(plan.key(one) for one in second.records())
    assert faked(second, monkeypatch) == []
    assert second.run(progress=False)


@pytest.mark.once
def test_a_study_goes_on_from_its_records_alone(tmp_path, monkeypatch):
    first = studies.small(tmp_path / "here")
    run = faked(first, monkeypatch, end=3, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        first.run(progress=False)
    (tmp_path / "there").mkdir()
    text = (tmp_path / "here" / "records.jsonl").read_text()
    (tmp_path / "there" / "records.jsonl").write_text(text + '{"study": "small", "sta')
    second = studies.small(tmp_path / "there")
    rest = faked(second, monkeypatch)
    assert second.run(progress=False)
    assert len(rest) == 3
    assert not set(rest) & set(run)
    assert (tmp_path / "there" / "records.jsonl").read_text().startswith(text)


@pytest.mark.once
def test_other_settings_are_other_trials(tmp_path, monkeypatch):
    first = studies.small(tmp_path)
    faked(first, monkeypatch, end=0, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        first.run(progress=False)
    second = studies.small(tmp_path, batch_size=7)
    rest = faked(second, monkeypatch)
    assert second.run(progress=False)
    assert len(rest) == 6  # and not the one that waited with the other batch size
    assert sorted(rest) == sorted(plan.key(one) for one in second.records())


@pytest.mark.once
def test_no_trial_begins_after_the_time_is_over(tmp_path, monkeypatch):
    study = studies.small(tmp_path)
    run = faked(study, monkeypatch)
    assert not study.run(hours=1e-9, progress=False)
    assert run == []
    with pytest.raises(ValueError, match="`hours`"):
        study.run(hours=0)


@trains
@pytest.mark.parametrize("has_slot", [True, False])
def test_a_start_tells_networks_of_the_same_weights_from_each_other(tmp_path, has_slot):
    def rule(layer, rate, seed):
        return pnd.PerNodeDrop(layer, rate, seed=seed)

    def starts(activation):
        def with_slot(slot):
            first, last = keras.layers.Dense(6, activation), keras.layers.Dense(2)
            return keras.Sequential([keras.Input((4,)), first, *slot(4, activation="relu"), last])

        def without():
            return keras.Sequential([keras.Input((4,)), keras.layers.Dense(6, activation), keras.layers.Dense(2)])

        variants = ["none", "per_node_drop"] if has_slot else {"none": None, "noisy": rule}
        model = with_slot if has_slot else without
        study = studies.small(tmp_path / activation, model=model, variants=variants, epochs=1, select_seeds=1)
        plain, noisy = study.plan("select")
        return {study.trial(one)["start"] for one in (plain, {**noisy, "stage": "confirm"})}

    of_relu = starts("relu")
    assert len(of_relu) == 1
    assert len(of_relu | starts("tanh")) == 2


@pytest.mark.once
def test_unequal_starts_are_noticed(tmp_path, monkeypatch):
    study = studies.small(tmp_path)
    faked(study, monkeypatch)
    trial = study.trial
    monkeypatch.setattr(
        study, "trial", lambda planned, on_epoch: {**trial(planned, on_epoch), "start": planned["variant"]}
    )
    with pytest.raises(RuntimeError, match="the network or its initial weights differ"):
        study.run(progress=False)


@pytest.mark.once
def test_a_trial_that_ends_its_process_again_and_again_is_told(tmp_path):
    queue = Queue(None, "s", tmp_path)
    (planned,) = plan.plan(design(variants={"none": False}, select_seeds=1), "select")

    def dies(planned):
        raise SystemExit

    for _ in range(4):
        assert queue.fill([planned])["waiting"] == 1
        with pytest.raises(SystemExit):
            queue.work([planned], dies)
        queue.free_the_dead()
    with pytest.raises(RuntimeError, match="ended 4 times"):
        queue.fill([planned])


@pytest.mark.once
@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed to be used with Study.optimize")
def test_a_trial_that_dies_before_its_first_heartbeat_is_queued_again(tmp_path):
    planned = plan.plan(design(variants={"none": False}, select_seeds=1), "select")
    dying, other = (Queue(None, "s", tmp_path) for _ in range(2))
    dying.fill(planned)
    dying.study.ask()  # it runs, and no heart beats
    assert other.fill(planned) == {"complete": 0, "running": 1, "waiting": 0}
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = '2000-01-01 00:00:00.000000'")
    assert other.fill(planned) == {"complete": 0, "running": 0, "waiting": 1}


@pytest.mark.once
def test_a_worker_that_was_taken_for_dead_goes_on_and_its_trial_counts_once(tmp_path):
    queue = Queue(None, "s", tmp_path)
    planned = plan.plan(design(variants={"none": False}), "select")

    def stopped(planned):
        queue.free_the_dead()
        queue.fill([planned])
        return record(planned, 1.0)

    queue.fill(planned)
    queue.work(planned, stopped)
    assert queue.records() == []
    for _ in range(2):
        queue.work(planned, lambda planned: record(planned, 1.0))
    assert sorted(map(plan.key, queue.records())) == sorted(map(plan.key, planned))
    assert queue.fill(planned) == {"complete": 2, "running": 0, "waiting": 0}


@pytest.mark.once
def test_records_are_kept_once_and_a_torn_line_is_none(tmp_path):
    records = Records(tmp_path)
    one, two = (record(trial, 1.0) for trial in plan.plan(design(variants={"none": False}), "select"))
    records.add([one, one])
    records.add([one])
    assert records.read() == [one]
    with records.path.open("a") as file:
        file.write(json.dumps(two)[:20])
    assert records.read() == [one]
    records.add([two])
    assert records.read() == [one, two]
    assert records.path.read_text().count("\n") == 2


# The command line


TINY = """
title = "Tiny"
data = "digits"
network = "digits"
metrics = ["accuracy"]
variants = ["none", "dropout"]
rates = [0.5]
select_seeds = 1
seeds = 2
epochs = 1
batch_size = 30

[options]
sizes = [60, 50, 50]
"""


@pytest.mark.slow
@command
def test_a_file_is_run_shown_and_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    assert exits(["study", "status", "tiny.toml"]) == 2
    assert "has begun (pernodedrop study run tiny.toml)" in capsys.readouterr().err
    assert main(["study", "run", "tiny.toml", "--hours", "1"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"confirm +4 +4\n(?s:.*)report: study-results/tiny/report.html", output)
    page = (tmp_path / "study-results" / "tiny" / "report.html").read_text()
    assert "Handwritten digits" in page
    records = (tmp_path / "study-results" / "tiny" / "records.jsonl").read_text()
    assert main(["study", "resume", "tiny.toml"]) == main(["study", "status", "tiny.toml"]) == 0
    assert (tmp_path / "study-results" / "tiny" / "records.jsonl").read_text() == records
    assert main(["study", "report", "tiny.toml", "--folder", "study-results/tiny"]) == 0


@pytest.mark.once
@pytest.mark.parametrize("rate_of", [variants.drop_connect_rates, variants.masksembles])
@pytest.mark.parametrize("bad", [1.0, -0.1, float("nan"), "x", None, np.zeros(3), 10**400], ids=str)
def test_rates_of_variants_are_drop_rates(rate_of, bad):
    with pytest.raises((TypeError, ValueError), match=r"`rate`. Expected a drop rate, from 0 and below 1"):
        rate_of(bad)


@pytest.mark.once
def test_masksembles_of_a_variant_have_no_more_members_than_the_layer():
    assert variants.masksembles(1e-50) == (4, 1.0)
    assert variants.masksembles(1 - 2 / 1024)[0] == 1024
    with pytest.raises(ValueError, match=r"`rate`. Expected a drop rate that 1024 members have"):
        variants.masksembles(0.9999)


@pytest.mark.once
@pytest.mark.parametrize("bad", [5, None, "", "\0.toml", "x" * 10**4 + ".toml", "digitz"])
def test_what_is_no_study_is_refused_by_name(bad):
    with pytest.raises((TypeError, ValueError), match=r"`name`. Expected (a path|one of ')"):
        named.load(bad)


@trains
@pytest.mark.once
def test_a_file_has_layers_of_its_own(tmp_path):
    table = '[layers.mine]\nlayer = "DropConnect"\ntitle = "My own"\nrate = {}\n'
    (tmp_path / "tiny.toml").write_text(TINY + table.format(0.2))
    study = named.load(str(tmp_path / "tiny.toml"))
    assert study.design.variants == {"none": False, "dropout": True, "mine": False}
    assert study.variants["mine"].title == "My own"
    (tmp_path / "tiny.toml").write_text(TINY + table.format(2))
    with pytest.raises(ValueError, match=r"tiny.toml, layers.mine: .*`rate`"):
        named.load(str(tmp_path / "tiny.toml"))
    guide = pathlib.Path(__file__).parent.parent / "docs" / "guides" / "study.md"
    (tmp_path / "guide.toml").write_text(re.search("```toml\n(.+?)```", guide.read_text(), re.DOTALL)[1])
    assert named.load(str(tmp_path / "guide.toml")).variants["r_drop"].r_drop == 1


@command
@pytest.mark.parametrize("folder", IMPOSSIBLE)
def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("mine")
    assert exits(["study", "run", "digits", "--folder", folder]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"argument `folder`. Expected a (folder that can be written|path\.)", line)
    assert (tmp_path / "taken").read_text() == "mine"


@command
@pytest.mark.parametrize(
    ("options", "again"),
    [
        ([], ""),
        (["--hours", "1", "--seeds", "2", "--folder", "of mine"], " --folder 'of mine' --seeds 2"),
        (["--storage", "sqlite:///mine.db"], " --storage URL"),
    ],
)
def test_an_interrupted_command_says_how_to_go_on(options, again, tmp_path, monkeypatch, capsys):
    def interrupted(self, planned, on_epoch=None):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TINY)
    monkeypatch.setattr(pnd.study.Study, "trial", interrupted)
    assert main(["study", "run", "tiny.toml", *options]) == 130
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == f"To go on: pernodedrop study resume tiny.toml{again}"
    assert "Traceback" not in captured.err
    if "URL" not in again:
        assert main(shlex.split(captured.out.splitlines()[-1].partition("pernodedrop ")[2])) == 130


@trains
@pytest.mark.once
def test_the_command_lists_studies_and_all_of_them_can_be_planned(capsys):
    assert main(["study", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Minutes on any machine: the data come with scikit-learn." in [line.strip() for line in lines]
    listed = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert listed == list(named.names())
    for name in listed:
        study = named.load(name)
        rated, design = sum(study.design.variants.values()), study.design
        each_seed = len(design.rates) * rated + len(study.variants) - rated
        stage, seeds = ("grid", design.seeds) if name == "digits_paper" else ("select", design.select_seeds)
        searched = {"digits_paper": 2 * 2, "rcv1_width": 3, "rcv1_learning_rate": 4}.get(name, 1)
        assert len(study.plan(stage)) == seeds * searched * each_seed
        assert set(study.baselines) & set(study.variants)


@trains
@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["run", "digit"], "did you mean 'digits'"),
        (["run", "none.toml"], "or a .toml file"),
        (["run", "wrong.toml"], "a file of TOML"),
        (["run", "untitled.toml"], "`title`"),
        (["run", "unknown.toml"], "unexpected keyword argument 'epoch'"),
        (["run", "digits", "--hours", "-1"], "`hours`"),
        (["run", "digits", "--seeds", "0"], "`seeds`"),
        (["report", "digits"], "has begun"),
        (["run", "cifar10", "--data", "nowhere"], "nowhere"),
    ],
)
def test_what_is_wrong_with_a_command_is_said_in_one_line(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wrong.toml").write_text("title =")
    (tmp_path / "untitled.toml").write_text(TINY.replace("title", "untitled"))
    (tmp_path / "unknown.toml").write_text(TINY.replace("epochs", "epoch"))
    assert exits(["study", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "study-results").exists()
