"""Whatever anything public is given, there is a right result or an error that says what was wrong.

What is called is that of tests/everything.py, what is given that of tests/junk.py, at random.
`HYPOTHESIS_PROFILE=thorough` tries thousands; `python -m tests.junk` all of the junk, one argument at a time.
"""

import functools
import importlib
import re

import hypothesis
import pytest
from hypothesis import strategies as st

from tests import everything, house, junk
from tests.frameworks import NAME
from tests.test_public_api import MODULES

EXAMPLES = 3 * hypothesis.settings.default.max_examples


@functools.cache
def targets(kind):
    return {target.name: target for target in everything.targets() if target.kind == kind}


@pytest.mark.parametrize("kind", ["constructor", "function", "layer call"])
def test_junk_is_refused_by_name_or_has_a_right_result(kind):
    @hypothesis.settings(max_examples=EXAMPLES)
    @hypothesis.given(st.data())
    def of_kind(data):
        target = targets(kind)[data.draw(st.sampled_from(sorted(targets(kind))))]
        arguments = data.draw(st.lists(st.sampled_from(sorted(target.arguments)), min_size=1, max_size=2, unique=True))
        places = {name: data.draw(st.integers(0, len(junk.junk_for(target, name)) - 1)) for name in arguments}
        given = {name: junk.junk_for(target, name)[place]() for name, place in places.items()}
        outcome, error = junk.outcome(target, given)
        shown = {name: junk.shown(value) for name, value in given.items()}
        assert outcome in junk.GOOD, f"{target.name} of {shown}: {outcome}: {error!r}"

    of_kind()


def test_everything_public_is_called():
    called = [target.name for target in everything.targets()]
    words = {word for name in called for word in re.findall(r"\w+", name)}
    left = set().union(*everything.NOT_CALLED.values())
    for module in MODULES:
        wing, place = module.partition(".")[0], module.rpartition(".")[2]
        if NAME not in house.WINGS.get(wing, {NAME}):
            continue
        namespace = importlib.import_module(f"pernodedrop.{module}")
        for name in namespace.__all__:
            if callable(getattr(namespace, name)) and f"{place}.{name}" not in left:
                is_called = f"{wing}.{name}" in called if wing in house.WINGS else name in words
                assert is_called, f"{module}.{name} is no target in tests/everything.py"


@pytest.mark.only_backend("numpy", "torch", reason="the others compile for each shape")
def test_no_layer_takes_inputs_of_another_shape_or_invents_a_batch():
    for name, target in targets("layer call").items():
        for make in junk.INPUTS[: len(junk.SHAPES)] if name.endswith("at inference") else ():
            outcome, error = junk.outcome(target, {"inputs": (x := make())})
            assert outcome in junk.GOOD, f"{name} of {tuple(x.shape)}: {outcome}: {error!r}"
