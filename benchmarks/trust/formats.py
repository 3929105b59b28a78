"""How far an exported or a quantized model is from the model itself: every layer, with its noise and folded.

    python -m benchmarks.trust.formats                      what formats.json lacks, in a process a backend
    python -m benchmarks.trust.formats --backends torch --ways ONNX --only "drop*" --again

A model of each regularizer (tests/family.py) and of two architectures of others is exported by Keras as it is, with a
batch of any size where the format has such, loaded by what runs the format, and called with a batch of 4. An error is
the largest difference of an output from the model's own, by the largest output. What cannot be done is there with its
reason. What imports a converter, a runtime or a library that is not installed is left out, by name, and measured by a
later run. Figures of other versions than the kept ones are refused: a backend's are of one set of versions.

    pip install onnxruntime tf2onnx onnxscript openvino ai-edge-litert jax2onnx keras-hub
"""

import argparse
import fnmatch
import functools
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

PATH = pathlib.Path(__file__).parent / "formats.json"
BATCH = 4
FORMS = ("raw", "folded")
NOT_FOLDED = "not folded: "
BACKENDS = ("tensorflow", "torch", "jax")
PACKAGES = {
    "tensorflow": ["tensorflow-cpu", "tf2onnx", "onnxruntime", "openvino", "ai-edge-litert"],
    "torch": ["torch", "onnxscript", "onnxruntime"],
    "jax": ["jax", "jax2onnx", "onnxruntime"],
}


def mobile_net(keras, pnd):
    """A small MobileNetV2 with noise in every convolution, of 32 x 32 images."""
    net = keras.applications.MobileNetV2((32, 32, 3), 0.35, weights=None, classes=10, classifier_activation=None)
    return pnd.apply(net, "all-conv", rate=0.1, seed=1)


def vision_transformer(keras, pnd):
    """A ViT of two layers of KerasHub with noise in every product, of 32 x 32 images."""
    import keras_hub

    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    net = keras_hub.models.ViTBackbone(image_shape=(32, 32, 3), patch_size=8, **sizes)
    return pnd.apply(net, "all-linear", rate=0.1, seed=1)


NETWORKS = {"MobileNetV2": mobile_net, "ViT of KerasHub": vision_transformer}


def saved_model(model, x, folder):
    import tensorflow as tf

    model.export(f"{folder}/model", verbose=False)
    loaded = tf.saved_model.load(f"{folder}/model")  # whose variables are gone when it is
    return loaded.serve(x)


def onnx(model, x, folder):
    import onnxruntime

    model.export(f"{folder}/model.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def openvino(model, x, folder):
    import openvino

    model.export(f"{folder}/model.xml", format="openvino", verbose=False)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # it takes bfloat16 where the processor has it
    return openvino.compile_model(f"{folder}/model.xml", "CPU", exact)(x)[0]


def litert(model, x, folder):
    """Its batch is of one size, that of `x`."""
    import keras
    from ai_edge_litert.interpreter import Interpreter

    signature = [keras.InputSpec(dtype="float32", shape=x.shape)]
    model.export(f"{folder}/model.tflite", format="litert", verbose=False, input_signature=signature)
    interpreter = Interpreter(f"{folder}/model.tflite")
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])


def torch_export(model, x, folder):
    import torch

    batch = {0: torch.export.Dim("batch")}
    model.export(f"{folder}/model.pt2", format="torch", verbose=False, dynamic_shapes=batch)
    return torch.export.load(f"{folder}/model.pt2").module()(torch.from_numpy(x))


def jax_export(model, x, folder):
    import jax
    from jax import export

    (batch,) = export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, *x.shape[1:]), "float32")
    exported = export.export(jax.jit(lambda x: model(x)))(shape)
    return export.deserialize(exported.serialize()).call(x)


def quantized(model, x, folder, mode):
    import keras

    keras.models.Model.quantize(model, mode)
    if not any(layer.quantization_mode for layer in model._flatten_layers() if hasattr(layer, "quantization_mode")):
        raise TypeError("Keras quantizes none of its layers")
    return model(x, training=False)


int8, int4 = (functools.partial(quantized, mode=mode) for mode in ("int8", "int4"))
WAYS = {
    "tensorflow": {"SavedModel": saved_model, "ONNX": onnx, "OpenVINO": openvino, "LiteRT": litert},
    "torch": {"torch.export": torch_export, "ONNX": onnx, "int8": int8, "int4": int4},
    "jax": {"jax.export": jax_export, "ONNX": onnx},
}
EMPTY = {"rows": {}, "versions": {}}


def names():
    """What there is a row of."""
    from tests.family import FAMILY

    return [*FAMILY, *NETWORKS]


def outcomes(name, ways):
    """What comes of a model in each way, raw and folded: {form: {way: error, or why there is none}}.

    A way that imports what is not installed is not in it.
    """
    import keras
    import numpy as np

    import pernodedrop as pnd
    from tests.family import FAMILY

    def model_of(form):
        keras.utils.set_random_seed(0)
        model = NETWORKS[name](keras, pnd) if name in NETWORKS else FAMILY[name].model()
        return pnd.fold(model) if form == "folded" else model

    def leave_out(way, error):
        print(f"left out: {name}, {way}: {reason(error)}", file=sys.stderr, flush=True)

    found = {form: {} for form in FORMS}
    try:
        shape = model_of("raw").input_shape[1:]
    except ImportError as error:  # a library of architectures
        leave_out("all formats", error)
        return found
    for form in FORMS:
        try:
            model_of(form)
        except (TypeError, ValueError) as error:  # of `fold`, as the raw one is there
            found[form] = dict.fromkeys(ways, NOT_FOLDED + reason(error))
            continue
        x = np.random.default_rng(0).normal(size=(BATCH, *shape)).astype("float32")
        for way, run in ways.items():
            model = model_of(form)
            y = keras.ops.convert_to_numpy(model(x, training=False))
            with tempfile.TemporaryDirectory() as folder:
                try:
                    again = run(model, x, folder)
                    again = np.asarray(keras.ops.convert_to_numpy(again))
                    found[form][way] = float(f"{np.abs(again - y).max() / np.abs(y).max():.1e}")
                except ImportError as error:
                    leave_out(way, error)
                except Exception as error:  # of any converter
                    found[form][way] = reason(error)
    return found


def reason(error):
    """An error as one line, without paths and colours, and without the one in which Keras says where it was.

    Of a converter, the line that names the operation that it has not.
    """
    text = re.sub(r"\x1b\[\d*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip() and "encountered when" not in line]
    missing = re.search(r"No (?:conversion rule found for operations: \w+(?:, \w+)*|Op registered for \w+)", text)
    said = missing.group() if missing else (lines or ["no words"])[0]
    return re.sub(r"/[\w./-]+/", "", f"{type(error).__name__}: {said}")[:300]


def work(some, ways):
    """Print the outcomes of rows as lines of JSON."""
    import keras

    ways = {way: WAYS[keras.backend.backend()][way] for way in ways}
    for name in some:
        print(json.dumps([name, outcomes(name, ways)]), flush=True)


def measured(backend, some, ways):
    """Pairs of a row and its outcomes, by a process of its own, and anew after one that a converter has ended."""
    while some:
        env = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, "-m", "benchmarks.trust.formats", "--ways", *ways, "--worker", *some]
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                if line.startswith("["):
                    name, found = json.loads(line)
                    some = some[some.index(name) + 1 :]
                    yield name, found
        if process.returncode and some:
            ended = f"the process ended with {process.returncode}"
            yield some[0], {form: dict.fromkeys(ways, ended) for form in FORMS}
            some = some[1:]


def has(row, ways):
    """Whether there is an outcome of each way."""
    return all(way in row.get(form, {}) for form in FORMS for way in ways)


def versions(backend):
    """What is installed of what takes part, None for what is not."""
    found = {}
    for package in ["keras", *PACKAGES[backend]]:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def joined(backend, before, now):
    """The versions of figures kept before and of new ones, which are those of before but for what had none."""
    both = [name for name in before if before[name] and now.get(name)]
    other = [f"{name} {before[name]}, not {now[name]}" for name in both if before[name] != now[name]]
    if other:
        raise SystemExit(
            f"The figures on {backend} are of {'; '.join(other)}. Install what they are of, or remove them from "
            f"{PATH.name}, to measure all of them anew."
        )
    return {name: now[name] or before.get(name) for name in now}


def main():
    """Fill in what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--ways", nargs="+", help="default: all")
    parser.add_argument("--only", default="*", help="a pattern of names")
    parser.add_argument("--again", action="store_true", help="rows that are there, too")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.ways)
        return
    os.environ.setdefault("KERAS_BACKEND", "numpy")
    rows = [name for name in names() if fnmatch.fnmatch(name, arguments.only)]
    for backend in arguments.backends:
        before = kept().get(backend, EMPTY)
        joined(backend, before["versions"], versions(backend))
        ways = [way for way in WAYS[backend] if way in (arguments.ways or WAYS[backend])]
        some = [name for name in rows if arguments.again or not has(before["rows"].get(name, {}), ways)]
        for name, outcome in measured(backend, some, ways) if ways else ():
            print(f"{backend}: {name}", file=sys.stderr, flush=True)
            if any(outcome.values()):
                keep(backend, name, outcome)


def kept():
    return json.loads(PATH.read_text()) if PATH.exists() else {}


def keep(backend, name, outcome):
    """Add to what is there now, which another process may have added to."""
    found = kept()
    of = found.get(backend, EMPTY)
    row = of["rows"].get(name, {})
    rows = {**of["rows"], name: {form: {**row.get(form, {}), **new} for form, new in outcome.items()}}
    found[backend] = {"rows": rows, "versions": joined(backend, of["versions"], versions(backend))}
    PATH.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
