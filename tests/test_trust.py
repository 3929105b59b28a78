"""The page of trust: it is made of the committed figures, which are made anew as far as that is quick."""

import argparse
import json
import pathlib

import numpy as np
import pytest

from tests.frameworks import NAME as BACKEND
from tests.frameworks import needs_training
from tests.processes import child

ROOT = pathlib.Path(__file__).parent.parent
TRUST = ROOT / "benchmarks" / "trust"
pytestmark = pytest.mark.skipif(not TRUST.exists(), reason="the figures are in the checkout, not beside a wheel")
EXPORTS = {"jax": "jax.export", "tensorflow": "SavedModel", "torch": "torch.export"}


@pytest.mark.once
def test_the_page_is_that_of_the_figures():
    """`python -m benchmarks.trust.page` writes it; README.md has its lines."""
    from benchmarks.trust import page

    assert page.PAGE.read_text() == page.text()
    readme = (ROOT / "README.md").read_text()
    assert [line for line in page.lines() if f"- {line}" not in readme] == []


@pytest.mark.once
def test_the_tests_that_the_page_names_exist():
    from benchmarks.trust import page

    text = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = [test for what in (page.ENGINES, page.WITHOUT_ENGINE, page.CHECKPOINTS) for test in what.values()]
    assert [name for name in named if f"def {name}(" not in text] == []


@pytest.mark.once
def test_the_figures_hold_what_the_page_says():
    from benchmarks.trust import page

    found = page.kills()
    assert found["kills"] > 0
    assert found["runs"] == found["equal"] >= found["resumed"] > 0
    assert found["torn"] > 0
    assert all(error <= page.EXACT for *_, error in page.of_folded() if isinstance(error, float))  # NaN is not
    for of in page.read("soak").values():
        memory = [mib for _, mib in of["memory"][1:]]
        assert max(memory) - min(memory) < 8
        assert of["right"]
        assert of["large"]["equal"]
        assert of["large"]["entries"] > 2**31


@needs_training
@pytest.mark.filterwarnings("ignore")  # the exporters' own
def test_a_row_of_the_formats_comes_out_again():
    from benchmarks.trust import formats

    way = EXPORTS[BACKEND]
    found = formats.outcomes("dropout", {way: formats.WAYS[BACKEND][way]})
    kept = json.loads(formats.PATH.read_text())[BACKEND]["rows"]["dropout"]
    for form in formats.FORMS:
        assert kept[form][way] == pytest.approx(found[form][way], abs=1e-6)


@needs_training
@pytest.mark.filterwarnings("ignore")  # the exporters' own
@pytest.mark.parametrize(
    ("name", "arguments", "way", "library", "words"),
    [
        ("EinsumDense", {"equation": "...i,io->...o", "output_shape": 5}, "int8", None, "object of type 'int'"),
        ("EinsumDense", {"equation": "...i,io->...o", "output_shape": 5}, "int4", None, "object of type 'int'"),
        ("EinsumDense", {"equation": "bti,io->bto", "output_shape": (None, 5)}, "int8", None, None),
        ("EinsumDense", {"equation": "bti,io->bto", "output_shape": (None, 5)}, "int4", None, None),
        ("LSTM", {"units": 2}, "OpenVINO", "openvino", "operations: TensorList"),
        ("LSTM", {"units": 2, "unroll": True}, "OpenVINO", "openvino", None),
        ("Dense", {"units": 5, "activation": "gelu"}, "ONNX", "tf2onnx", "registered for Erfc"),
    ],
)
def test_keras_own_layers_fail_as_the_page_says(name, arguments, way, library, words, tmp_path):
    import keras

    from benchmarks.trust import formats, page

    if library:
        if BACKEND != "tensorflow":
            pytest.skip("converted from TensorFlow")
        pytest.importorskip(library, reason="a format that not every machine has")
    model = keras.Sequential([keras.Input((3, 6)), getattr(keras.layers, name)(**arguments)])
    x = np.ones((4, 3, 6), "float32")
    before = keras.ops.convert_to_numpy(model(x))
    run = {"OpenVINO": formats.openvino, "ONNX": formats.onnx, "int8": formats.int8, "int4": formats.int4}[way]
    if words is None:
        atol = {"int8": 0.03, "int4": 0.3}.get(way, 1e-5) * abs(before).max()
        np.testing.assert_allclose(np.asarray(run(model, x, tmp_path)), before, atol=atol)
        return
    with pytest.raises(Exception) as error:  # noqa: PT011 - of a converter, its words are compared
        run(model, x, tmp_path)
    assert page.explained(formats.reason(error.value)).count(f"Keras' own {name if name != 'Dense' else 'GELU'}") == 1
    assert words in formats.reason(error.value)


@pytest.mark.once
def test_a_reason_is_what_is_missing_without_where_and_colours():
    from benchmarks.trust import formats

    of_keras = (
        "Exception encountered when calling Dense.call().\n\n\x1b[1mno kernel in /tmp/a/b.py\x1b[0m\n\nArguments:"
    )
    of_openvino = (
        "Check 'false' failed at src/a.cpp:151:\nSummary:\n-- No conversion rule found for operations: Erfinv\nTo"
    )
    assert formats.reason(TypeError(of_keras)) == "TypeError: no kernel in b.py"
    assert formats.reason(ValueError(of_openvino)) == "ValueError: No conversion rule found for operations: Erfinv"
    assert formats.reason(ValueError("")) == "ValueError: no words"


@pytest.mark.once
def test_a_format_without_its_converter_is_left_for_a_later_run(capsys):
    from benchmarks.trust import formats

    def absent(model, x, folder):
        raise ModuleNotFoundError("No module named 'converter'")

    def refused(model, x, folder):
        raise TypeError("of the converter")

    found = formats.outcomes("dropout", {"absent": absent, "refused": refused})
    assert found == {form: {"refused": "TypeError: of the converter"} for form in formats.FORMS}
    assert "left out: dropout, absent: ModuleNotFoundError: No module named 'converter'" in capsys.readouterr().err
    assert formats.has(found, ["refused"])
    assert not formats.has(found, ["absent"])


@pytest.mark.once
def test_a_model_that_is_not_folded_says_so_for_every_format():
    from benchmarks.trust import formats

    found = formats.outcomes("zoneout", {"same": lambda model, x, folder: model(x)})
    assert found["raw"] == {"same": 0.0}
    assert found["folded"]["same"].startswith(f"{formats.NOT_FOLDED}ValueError: Layer 'zoneout")


@pytest.mark.once
def test_formats_are_of_one_set_of_versions():
    from benchmarks.trust import formats

    kept = {"keras": "3.15.1", "openvino": "1", "tf2onnx": None}
    later = formats.joined("torch", kept, {"keras": "3.15.1", "openvino": None, "tf2onnx": "2"})
    assert later == {"keras": "3.15.1", "openvino": "1", "tf2onnx": "2"}
    with pytest.raises(SystemExit, match="on torch are of openvino 1, not 2"):
        formats.joined("torch", kept, {**kept, "openvino": "2"})


@pytest.mark.once
def test_the_page_names_the_exports_that_fail(monkeypatch):
    from benchmarks.trust import page

    cells = {"right": 1e-7, "apart": 0.5, "nothing": float("nan"), "refused": "TypeError: it", "bank": "not folded: it"}
    rows = {row: {"raw": {"ONNX": 1.0}, "folded": {"ONNX": outcome, "int8": 0.1}} for row, outcome in cells.items()}
    monkeypatch.setattr(page, "read", lambda name: {"torch": {"rows": rows}})
    assert page.exports() == (
        "1 of 4 exports of folded models in 1 formats have an error of at most 1e-07; "
        "3 fail: apart as ONNX, nothing as ONNX, refused as ONNX."
    )


@needs_training
@pytest.mark.slow
def test_after_kill_9_training_comes_to_the_same_end():
    """Ten times by each way; benchmarks/trust/kills.py has hundreds.

    The script fails where training does not begin at what was saved.

    Of what it killed after random steps, of one seed, a run resumed. ModelCheckpoint had a torn file, and took the one
    before.
    """
    ways = ["BackupAndRestore", "ModelCheckpoint", *(["state_dict"] if BACKEND == "torch" else [])]
    seen = child(TRUST / "kills.py", "--worker", 10, "--ways", *ways)
    assert list(seen) == ways
    for counts in seen.values():
        assert counts["kills"] == 10
        assert counts["equal"] == counts["runs"] > 0
    assert seen["BackupAndRestore"]["resumed"] > 0
    assert seen["ModelCheckpoint"]["resumed"] > 0  # that with the torn file
    assert seen["ModelCheckpoint"]["torn"] > 0


@pytest.mark.only_backend("numpy", "torch", reason="the others would compile it")
def test_a_short_soak_is_right():
    from benchmarks.trust import soak

    found = soak.soaked(BACKEND, 20)
    assert found["right"]
    assert len(found["memory"]) == soak.TENTHS + 1
    x, w = soak.operands(soak.SHAPE)
    assert not soak.is_right(0, np.einsum("bi,io->bo", x, w))


@pytest.mark.once
def test_a_soak_of_no_tenths_is_refused():
    from benchmarks.trust import soak

    assert soak.step_count("10") == soak.TENTHS
    with pytest.raises(argparse.ArgumentTypeError, match=r"at least 10, .* Received: 9"):
        soak.step_count("9")
