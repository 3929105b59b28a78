"""The suite's own machinery."""

import pytest

from tests import conftest

OTHER = "numpy" if conftest.BACKEND != "numpy" else "jax"


def test_a_marked_test_runs_on_the_backends_that_it_says():
    for names, is_under_test in (((conftest.BACKEND,), True), ((OTHER,), False), ((OTHER, conftest.BACKEND), True)):
        skip, only = (getattr(pytest.mark, name)(*names, reason="why") for name in ("skip_backend", "only_backend"))
        assert conftest.reason_to_skip(skip.mark, "a test") == ("why" if is_under_test else None)
        assert conftest.reason_to_skip(only.mark, "a test") == (None if is_under_test else "why")
    assert conftest.reason_to_skip(pytest.mark.parametrize("x", [1]).mark, "a test") is None


@pytest.mark.parametrize("name", ["skip_backend", "only_backend"])
@pytest.mark.parametrize(
    ("names", "rest"),
    [
        ((), {"reason": "why"}),
        (("nunpy",), {"reason": "why"}),
        (("numpy", "theano"), {"reason": "why"}),
        (("numpy",), {}),
        (("numpy",), {"reason": ""}),
        (("numpy",), {"reason": "why", "strict": True}),
    ],
    ids=str,
)
def test_a_mark_without_a_known_backend_and_a_reason_is_an_error(name, names, rest):
    with pytest.raises(
        pytest.UsageError, match=f"^{name} of a test: expected names of numpy, .*, and reason='...'. Received: "
    ):
        conftest.reason_to_skip(getattr(pytest.mark, name)(*names, **rest).mark, "a test")
