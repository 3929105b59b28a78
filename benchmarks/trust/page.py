"""docs/trust.md, made of the figures beside this file: `python -m benchmarks.trust.page`.

README.md has its lines in short, `lines()`.
"""

import json
import pathlib
import re

from benchmarks.trust.formats import NOT_FOLDED
from benchmarks.trust.soak import COMPILED
from pernodedrop.report.table import as_markdown

FOLDER = pathlib.Path(__file__).parent
PAGE = FOLDER.parent.parent / "docs" / "trust.md"
BACKENDS = {"numpy": "NumPy", "jax": "JAX", "tensorflow": "TensorFlow", "torch": "PyTorch"}
ENGINES = {  # and the test that compares masks
    "`keras.distribution.DataParallel`, JAX": "test_every_engine_of_jax_has_the_masks_of_one_device",
    "`keras.distribution.ModelParallel`, JAX": "test_every_engine_of_jax_has_the_masks_of_one_device",
    "`jax.shard_map`": "test_every_engine_of_jax_has_the_masks_of_one_device",
    "`tf.distribute.MirroredStrategy`": "test_mirrored_replicas_have_the_masks_of_one_device",
    "`tf.distribute.MultiWorkerMirroredStrategy`": "test_workers_have_the_masks_of_one_process",
    "`DistributedDataParallel`, PyTorch": "test_ranks_of_a_process_group_train_like_one_process_with_the_whole_batch",
    "FSDP2, PyTorch": "test_ranks_of_a_process_group_train_like_one_process_with_the_whole_batch",
}
WITHOUT_ENGINE = {
    "Keras layers in ranks of a process group of PyTorch": "test_ranks_make_the_whole_in_layers_and_by_offsets_in_ops",
    "gradient accumulation, on one device": "test_parts_of_a_batch_accumulate_to_the_whole_with_one_key",
}
CHECKPOINTS = {
    "`tf.train.Checkpoint`": "test_a_checkpoint_of_tensorflow_has_every_variable",
    "Orbax, with Flax": "test_a_state_that_was_split_or_saved_resumes",
    "`torch.distributed.checkpoint`": "test_a_distributed_checkpoint_resumes",
    "a weights file, from each backend to NumPy and back": "test_state_crosses_backends",
    "a `.keras` file, on each backend": "test_what_was_saved_once_is_loaded_for_good",
    "a `.keras` file with its optimizer, from each backend that trains to each other, in `fit`": (
        "test_a_classifier_of_texts_goes_on_elsewhere_and_back_as_if_nothing_had_been"
    ),
}
EXACT = 1e-5
"""Up to which error an exported model is the same: the rounding of float32, in sums of another order."""

TEXT = """% Made by `python -m benchmarks.trust.page` from the figures in benchmarks/trust.

# Trust

Figures of what may go wrong, each with the command that makes it. Whether probabilities can be trusted is the matter of
[Calibration](calibration.md).

## Killed and resumed

{kills}

Training is killed with SIGKILL, after random steps or at random moments, and resumed by a new process, again and again.
Each batch is a function of the number of its step, as where [you keep the order](reproducibility.md#resuming) of the
data; Keras' own shuffling is not saved. At its end all weights, the optimizer's, the keys of the noise and the next
training call are compared with those of a run that nothing disturbed. As training is deterministic, one that silently
starts anew ends there too: so every process has to begin at the very step that was last saved. A run counts as resumed
if its last process began after step 0; one whose last kill came before the first save has to start anew.

{kill_table}

    python benchmarks/trust/kills.py --kills 150

ModelCheckpoint and `state_dict` are killed while they write, too. A torn file of ModelCheckpoint is refused when it is
loaded, and the one before is taken, if there is one; of those in the table, at least one of each backend was torn by
hand. Other ways to save are tests of the suite:

{checkpoint_table}

## Many devices

{devices} [Many devices](guides/devices.md) says how: `jax.shard_map` and gradient accumulation are told which
samples a part has, the others find it out. `DynamicDropConnect` makes its masks of gradients, too, of which ranks of
PyTorch have their own: there its masks are those of the first rank, or differ.

{device_table}

Without an engine, parts of a batch have the masks of the whole:

{part_table}

    python -m tests -k "devices or device or workers or ranks or accumulate"

## Inputs

{inputs}

Junk is numbers, things, tensors of other frameworks, ranks, dtypes and sizes, one argument at a time; the
outcome has to be a right value, an error that names the argument, what was expected and what was received, or the
refusal of the framework whose part it is.

{fuzz_table}

    python -m tests.junk

## Formats

{formats}

Each layer stands in a small model of others, which Keras exports as it is ("raw") and as what `pnd.fold`
makes of it. An error is the largest difference from the model's own output, by the largest output. One figure or reason
stands for both where they agree; "exact" is an error up to {exact:.0e}.

{wrong}

{format_table}

{reasons}

{mobile_net}

Versions: {versions}.

    python -m benchmarks.trust.formats

{not_here}

## Soak

{soak}

A step is a product with a new mask{compiled}. Products were compared with those of NumPy's
mask at {times} times. Then rows of a product with a mask of {entries:,} entries, which is more than 2^31, were compared
with the same rows by themselves.

{soak_table}

    python benchmarks/trust/soak.py
"""
WRONG = """**Fold before OpenVINO**: a mask that is part of the model (regimes "fixed" and "bank") is made in the
exported graph, and there OpenVINO computes other numbers without an error, as the table shows. Folded it is in the
kernel; a bank cannot be folded."""
MOBILE_NET = """MobileNetV2 is untrained, with the statistics it starts with, and its outputs are about 1e-11: its int8
is all error because the inputs of its last layer, about 1e-10, are below Keras' epsilon, as in Keras' own MobileNetV2.
With the statistics of a batch of normal numbers, measured once by hand, its outputs are about 2, the errors of int8 and
int4 0.01 and 0.07, and those of the exports 1e-5 to 4e-5, so not exact, but for torch.export, which is; there one
rounding of each input moves the outputs by 1e-5 to 2e-5."""
EXPLAINED = {  # and what tests/test_trust.py says of Keras' own layers
    "object of type 'int' has no len()": (
        "Keras' own EinsumDense fails so, too, where its equation has an ellipsis, as here; others are quantized."
    ),
    "operations: TensorList": "Keras' own LSTM fails so, too; with `unroll=True` it is converted.",
    "operations: Erfinv": "Inference as published draws normal numbers, by this function.",
    "registered for Erfc": "Keras' own GELU fails so, too.",
    "registered for PartitionedCall": (
        "A bank has a mask for each sample at inference; that product is a function of its own in TensorFlow's graph."
    ),
}
"""What is added to a reason that has such words."""
NOT_HERE = """Not here: ONNX of models on PyTorch and JAX, LiteRT and OpenVINO of models on PyTorch, where one to three
layers were tried, with errors below 2e-7; `SpatialDropout` and `DropBlock` of one and three dimensions,
`GradientRouting`, `PerNodeDense`, and of `contrast` all but `FractalJoin`; OpenVINO of models on JAX, whose converter
refuses them; int8 and int4 on other backends than PyTorch."""


def read(name):
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


KILLS = {
    "kills": "kills",
    "runs": "runs",
    "equal": "equal to the bit",
    "resumed": "resumed after step 0",
    "torn": "torn files",
}


def kills():
    """The sums of what KILLS names."""
    counts = [of for ways in read("kills").values() for of in ways.values()]
    return {what: sum(of[what] for of in counts) for what in KILLS}


def outcomes():
    """Every outcome of a format: (backend, way, row, form, outcome)."""
    for backend, of in read("formats").items():
        for row, forms in of["rows"].items():
            for form, ways in forms.items():
                for way, outcome in ways.items():
                    yield backend, way, row, form, outcome


def of_folded():
    """Every export of a model that was folded: (way, row, outcome)."""
    for _, way, row, form, outcome in outcomes():
        if way not in ("int8", "int4") and form == "folded" and not str(outcome).startswith(NOT_FOLDED):
            yield way, row, outcome


def is_exact(outcome):
    """Whether an outcome is an error, and a small one: none is, and NaN is not."""
    return isinstance(outcome, float) and outcome <= EXACT


def exports():
    """A sentence of the folded models: the errors of those that came out right, and the others by name."""
    found = list(of_folded())
    right = [(way, outcome) for way, _, outcome in found if is_exact(outcome)]
    formats, largest = {way for way, _ in right}, max(outcome for _, outcome in right)
    wrong = [f"{row} as {way}" for way, row, outcome in found if not is_exact(outcome)]
    return (
        f"{len(right)} of {len(found)} exports of folded models in {len(formats)} formats have an error of at most "
        f"{largest:.0e}; " + (f"{len(wrong)} fail: {', '.join(wrong)}." if wrong else "none fails.")
    )


def lines():
    """What README.md says."""
    of = kills()
    soak = read("soak")
    return [
        f"{of['kills']:,} kills of training: {of['equal']:,} of {of['runs']:,} runs ended in the bits of an "
        f"undisturbed one; {of['resumed']:,} of them had resumed.",
        f"{len(ENGINES)} engines of many devices have the masks of one device, to the bit.",
        f"{sum(read('fuzz').values()):,} calls with junk ended in a right value or a named error.",
        exports(),
        f"{sum(one['steps'] for one in soak.values()):,} steps' masks, on {len(soak)} backends, in flat memory.",
    ]


def kill_table():
    rows = [("backend", "saved by", *KILLS.values())]
    for backend, ways in read("kills").items():
        for way, counts in ways.items():
            rows.append((BACKENDS[backend], way, *(f"{counts[what]:,}" for what in KILLS)))
    return as_markdown(rows)


def cell(raw, folded, reasons):
    """One outcome or both, a reason as the number of its note."""

    def shown(outcome):
        if isinstance(outcome, str):
            outcome = re.sub(r"(?:_\d+)+", "", outcome)  # the numbers that Keras gives to names
            return f"[{reasons.setdefault(outcome, len(reasons) + 1)}]"
        return "exact" if is_exact(outcome) else f"{outcome:.1g}"

    texts = [shown(outcome) for outcome in (raw, folded) if outcome is not None]
    return " / ".join(dict.fromkeys(texts))


def format_table():
    """The table and its notes."""
    found, reasons = read("formats"), {}
    columns = [(backend, way) for backend, of in found.items() for way in ways_of(of)]
    rows = [("raw / folded", *(f"{way}, {BACKENDS[backend]}" for backend, way in columns))]
    for name in dict.fromkeys(row for of in found.values() for row in of["rows"]):
        cells = []
        for backend, way in columns:
            row = found[backend]["rows"].get(name, {})
            cells.append(cell(*(row.get(form, {}).get(way) for form in ("raw", "folded")), reasons) or "not run")
        rows.append((f"`{name}`" if name.islower() else name, *cells))
    return as_markdown(rows), "\n".join(f"- [{number}] {explained(reason)}" for reason, number in reasons.items())


def explained(reason):
    """A reason and what is to be said of it, as a note."""
    words = [said for part, said in EXPLAINED.items() if part in reason]
    return " ".join([f"{reason.replace('`', '').rstrip('.')}.", *words])


def ways_of(of):
    return dict.fromkeys(way for row in of["rows"].values() for ways in row.values() for way in ways)


def soak_table():
    rows = [("backend", "steps", "MiB at first", "MiB after a tenth", "MiB at the end", "right", "large mask right")]
    for backend, of in read("soak").items():
        memory = [f"{of['memory'][n][1]:.1f}" for n in (0, 1, -1)]
        told = ["yes" if right else "no" for right in (of["right"], of["large"]["equal"])]
        rows.append((BACKENDS[backend], f"{of['steps']:,}", *memory, *told))
    return as_markdown(rows)


def tests_of(found):
    return [("", "test"), *((what, f"`{test}`") for what, test in found.items())]


def text():
    """The page."""
    of_kills, of_devices, of_inputs, of_formats, of_soak = lines()
    formats, reasons = format_table()
    installed = [pair for of in read("formats").values() for pair in of["versions"].items() if all(pair)]
    soak = read("soak")
    compiled = " and ".join(BACKENDS[backend] for backend in soak if backend in COMPILED)
    return TEXT.format(
        kills=of_kills,
        kill_table=kill_table(),
        checkpoint_table=as_markdown(tests_of(CHECKPOINTS)),
        devices=of_devices,
        device_table=as_markdown(tests_of(ENGINES)),
        part_table=as_markdown(tests_of(WITHOUT_ENGINE)),
        inputs=of_inputs,
        fuzz_table=as_markdown([("backend", "calls"), *((BACKENDS[b], f"{n:,}") for b, n in read("fuzz").items())]),
        formats=of_formats,
        wrong=WRONG,
        exact=EXACT,
        format_table=formats,
        reasons=reasons,
        mobile_net=MOBILE_NET,
        versions=", ".join(sorted({" ".join(pair) for pair in installed})),
        not_here=NOT_HERE,
        soak=of_soak,
        compiled=compiled and f", compiled on {compiled}",
        times=min(len(of["memory"]) for of in soak.values()),
        entries=max(of["large"]["entries"] for of in soak.values()),
        soak_table=soak_table(),
    )


if __name__ == "__main__":
    PAGE.write_text(text())
