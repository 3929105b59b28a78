"""Whatever anything public is given, there is a right result or an error that says what was wrong.

What is given is that of tests/junk.py, at random.
`HYPOTHESIS_PROFILE=thorough` tries thousands; `python -m tests.junk` all of the junk, one argument at a time.
"""

import functools

import hypothesis
import pytest
from hypothesis import strategies as st

from tests import junk

EXAMPLES = 3 * hypothesis.settings.default.max_examples


@functools.cache
def targets(kind):
    return {target.name: target for target in junk.targets() if target.kind == kind}


@pytest.mark.parametrize("kind", ["constructor", "function", "layer call"])
def test_junk_is_refused_by_name_or_has_a_right_result(kind):
    @hypothesis.settings(max_examples=EXAMPLES)
    @hypothesis.given(st.data())
    def of_kind(data):
        target = targets(kind)[data.draw(st.sampled_from(sorted(targets(kind))))]
        arguments = data.draw(st.lists(st.sampled_from(sorted(target.arguments)), min_size=1, max_size=2, unique=True))
        places = {name: data.draw(st.integers(0, len(target.junk(name)) - 1)) for name in arguments}
        given = {name: target.junk(name)[place]() for name, place in places.items()}
        outcome, error = target.outcome(given)
        shown = {name: junk.shown(value) for name, value in given.items()}
        assert outcome in junk.GOOD, f"{target.name} of {shown}: {outcome}: {error!r}"

    of_kind()
