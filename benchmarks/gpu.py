"""Masks, times and limits on a GPU, in less than 8 minutes: `python -m benchmarks.gpu`, in the root of a checkout.

Of each framework that is installed and has a GPU, in a process of its own: whether masks are NumPy's, in every kernel
and its gradients; what the device can do at best (its memory, its products, the generator's words alone); the time of
steps and of forward passes with a mask a row and with one for all positions of a row, in float32 and bfloat16, beside
Dense, Dropout + Dense and the fastest masks by hand; and of steps of two networks. What has been measured is in
`gpu-results` at once, as results.json and results.md, and the same command goes on from there.

`--device cpu --sizes tiny` runs all of it without a GPU, Triton's kernels in its interpreter, to see that it runs.
"""

import argparse
import contextlib
import functools
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import typing

import numpy as np

FLOAT32, BFLOAT16 = DTYPES = ("float32", "bfloat16")
BACKENDS = ("torch", "jax", "tensorflow")
KEY, RATE = (7, 3), 0.3
WORKER = "--worker"


class Sizes(typing.NamedTuple):
    """How large a run is.

    Attributes:
        mask: (row, in, out) of the masks that are compared.
        paper, wide, shared: shapes of products, of which the last has positions.
        numbers, side, words: those that are copied, the side of matrices, and words that are made, for the limits.
        network: steps of an epoch, batch and epochs.
        transformer: arguments of `pernodedrop.study.networks.transformer`.
        rounds, seconds: of a part, as of `pernodedrop.commands.bench.matrix.Profile`.
        compiled: rows that are timed with torch.compile as well, which takes 10 seconds for each.
    """

    mask: tuple[int, ...]
    paper: tuple[int, ...]
    wide: tuple[int, ...]
    shared: tuple[int, ...]
    numbers: int
    side: int
    words: int
    network: tuple[int, int, int]
    transformer: dict[str, int]
    rounds: int
    seconds: float
    compiled: tuple[str, ...]


SIZES = {
    "full": Sizes(
        mask=(5, 300, 200),
        paper=(128, 4096, 64),
        wide=(256, 4096, 1024),
        shared=(64, 256, 1024, 1024),
        numbers=2**28,
        side=8192,
        words=2**31,
        network=(20, 128, 2),
        transformer={"width": 512, "heads": 8, "blocks": 2},
        rounds=9,
        seconds=3,
        compiled=("bernoulli", "by_hand"),
    ),
    "tiny": Sizes(
        mask=(2, 9, 70),
        paper=(4, 9, 5),
        wide=(3, 5, 17),
        shared=(2, 3, 5, 4),
        numbers=2**10,
        side=16,
        words=2**15,
        network=(2, 2, 1),
        transformer={"width": 8, "heads": 2, "blocks": 1},
        rounds=1,
        seconds=0,
        compiled=(),
    ),
}

BESIDE = ("dense", "dropout", "bernoulli", "by_hand")
VARIANTS = ("dropout", "none", "bernoulli")


def parts(backend, sizes):
    """What is timed in turn, as lists of cases, what matters most first."""
    from pernodedrop.commands.bench.matrix import FORWARD, MODES, Case

    def part(rows, shape, dtype, modes):
        return [Case(backend, row, shape, dtype, mode) for mode in modes for row in rows]

    for shape in (sizes.paper, sizes.shared, sizes.wide):
        for dtype in DTYPES:
            more = ("gaussian", "keras_dropout") if (shape, dtype) == (sizes.paper, FLOAT32) else ()
            yield part((*BESIDE, *more), shape, dtype, MODES[backend])
            yield part(BESIDE, shape, dtype, [f"{mode} {FORWARD}" for mode in MODES[backend]])
    if backend == "torch" and sizes.compiled:  # it may do without a mask in memory
        yield part(sizes.compiled, sizes.paper, FLOAT32, ["compiled"])


# The process of a framework.


def work(backend, device, sizes, seconds, done):
    """Measure what is not done as long as there is time, and write each figure as a line of JSON once it is there."""
    sizes = SIZES[sizes]
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what frameworks print is not for the parent
    until = time.monotonic() + seconds

    def say(**message):
        print(json.dumps(message), file=channel, flush=True)

    def attempt(kind, function, *arguments):
        try:
            say(**{kind: function(*arguments)})
        except Exception as error:  # such as too little memory; what comes after may go on
            what = f"{backend} {kind} {arguments[1]}"
            say(**{kind: {"case": what, "failed": f"{type(error).__name__}: {str(error)[:500]}"}})

    import keras

    from pernodedrop.commands.bench import network, steps, timing
    from pernodedrop.report.environment import environment

    steps.prepare(backend)
    name = str(keras.ops.zeros(()).device).lower()
    if device == "gpu" and not ("cuda" in name or "gpu" in name):
        return say(left_out="it has no GPU")
    say(environment=environment(backend))
    pace, available = {}, memory()
    interprets = device == "cpu" and backend == "torch" and importlib.util.find_spec("triton")
    with interpreted() if interprets else contextlib.nullcontext():
        for shared, dtype in itertools.product((False, True), DTYPES):
            attempt("checks", check, backend, dtype, shared, sizes.mask)
        for dtype in DTYPES:
            attempt("rates", rates, backend, dtype, sizes)
        for part in parts(backend, sizes):
            if time.monotonic() > until or all(case.key in done for case in part):
                continue
            for record in timing.measure(part, sizes.rounds, sizes.seconds, available, lambda text: None, pace):
                say(times=record)
    step_count, batch, epochs = sizes.network
    transformer = functools.partial(transformer_of, sizes=sizes)
    for title, make in (("CIFAR-10", network.network), ("transformer", transformer)):
        for dtype in DTYPES:
            if f"{backend}/{title}/{dtype}/{VARIANTS[0]}" in done or time.monotonic() > until:
                continue
            keras.config.set_dtype_policy("float32" if dtype == FLOAT32 else "mixed_bfloat16")
            for record in network.measure(VARIANTS, epochs, step_count, batch, lambda text: None, make):
                say(networks={"network": title, "dtype": dtype, **record})


@contextlib.contextmanager
def interpreted():
    """Let tensors of torch on a CPU take the kernels for CUDA, which run in Triton's interpreter then."""
    from pernodedrop.backends import torch_products, triton_kernels, triton_shared_kernels

    before = torch_products.TRITON_KERNELS, torch_products.takes_triton
    torch_products.TRITON_KERNELS, torch_products.takes_triton = (triton_kernels, triton_shared_kernels), lambda x: True
    try:
        yield
    finally:
        torch_products.TRITON_KERNELS, torch_products.takes_triton = before


def memory():
    """Bytes that a product by hand may take: half of the device's."""
    from pernodedrop.report.environment import total_memory

    return (device()["memory"] or total_memory() or 2**33) // 2


def device():
    """The name, the bytes of memory and the driver of the first GPU, as far as there is one."""
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0].split(", ")
    except (OSError, subprocess.CalledProcessError, IndexError):
        return {"name": None, "memory": None, "driver": None}
    return {"name": told[0], "memory": int(told[1]) * 2**20, "driver": told[2]}


def check(backend, dtype, shared, shape):
    """The hashes of a mask that a product and its gradients show, beside that of NumPy's mask.

    Positions of a row see one input each, then one output each in the gradient, and the last one of the first row all.
    """
    import keras

    import pernodedrop as pnd
    from pernodedrop.commands.bench import matrix, steps

    rows, inputs, outputs = shape
    x, dy = (np.zeros((rows, inputs + outputs + 1, size), "float32") for size in (inputs, outputs))
    x[:, :inputs], dy[:, inputs:-1] = np.eye(inputs), np.eye(outputs)
    x[0, -1] = dy[0, -1] = 1
    options = {}
    if not shared:
        options["sample_ids"] = keras.ops.convert_to_tensor(np.repeat(np.arange(rows, dtype="int32"), x.shape[1]))
        x, dy = (a.reshape(-1, a.shape[-1]) for a in (x, dy))

    def product(x, w, key):
        return pnd.ops.masked_dense(x, w, pnd.Bernoulli(RATE), key, **options)

    tensors = [keras.ops.cast(keras.ops.convert_to_tensor(a), dtype) for a in (x, np.ones(shape[1:], "float32"), dy)]
    if backend == "torch":
        tensors[:2] = (tensor.requires_grad_() for tensor in tensors[:2])
    key = keras.ops.convert_to_tensor(np.array(KEY, "int32"))
    found = steps.step(product, backend, matrix.MODES[backend][0])(*tensors, key)
    y, dx, dw = (keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32")) for tensor in found)
    y, dx = (a.reshape(rows, inputs + outputs + 1, -1) for a in (y, dx))
    mask = pnd.ops.sample_mask(pnd.Bernoulli(RATE), KEY, shape, backend="numpy")
    wanted = {"y": mask, "dx": mask, "dw": mask[0]}
    shown = {"y": y[:, :inputs], "dx": dx[:, inputs:-1].transpose(0, 2, 1), "dw": dw}
    hashes = {of: [digest(shown[of]), digest(wanted[of])] for of in wanted}
    right = all(one == other for one, other in hashes.values())
    close = all(np.allclose(shown[of], wanted[of], rtol=2**-7 if dtype == BFLOAT16 else 1e-6) for of in wanted)
    what = "shared" if shared else "rows"
    return {"key": f"{backend}/{what}/{dtype}", "hashes": hashes, "right": right and close}


def digest(mask):
    """What tells which entries of a mask are kept."""
    return hashlib.sha256(np.packbits(mask != 0).tobytes()).hexdigest()[:16]


def rates(backend, dtype, sizes):
    """What the device does a second at best, as `pernodedrop.commands.bench.limits.measure` says it of a CPU.

    Returns:
        A dict: "bytes" read and written, "flops" of a product of this dtype, "words" of the generator, of which nothing
        is kept, and "native", decisions by the framework's own generator in memory. Words are None on torch without
        triton, since eager torch writes them all.
    """
    import keras

    from pernodedrop.commands.bench import limits, matrix, products, steps

    mode, key = f"{matrix.MODES[backend][-1]} {matrix.FORWARD}", keras.ops.convert_to_tensor(np.array(KEY, "int32"))

    def seconds(function, *shapes):
        operands = [keras.ops.ones(shape, dtype) for shape in (*shapes, (1,))[:2]]
        run = steps.step(function, backend, mode)
        return limits.best(lambda: run(*operands, None, key))

    def native(x, w, key):
        return products.KEPT[backend]((sizes.numbers,), 1 - RATE, key, x.dtype)

    square, copied = (sizes.side, sizes.side), 2 * sizes.numbers * matrix.ITEMSIZE[dtype]
    words = words_of(backend, sizes.words)
    return {
        "key": f"{backend}/{dtype}",
        "bytes": copied / seconds(lambda x, w, key: x + 1, (sizes.numbers,)),
        "flops": 2 * sizes.side**3 / seconds(lambda x, w, key: keras.ops.matmul(x, w), square, square),
        "words": words and sizes.words / seconds(words, (1,)),
        "native": sizes.numbers / seconds(native, (1,)),
    }


def words_of(backend, count):
    """A product that only makes so many words, and adds them up; None where there is none."""
    from pernodedrop import backends, generator

    if backend == "torch":
        if not importlib.util.find_spec("triton"):
            return None
        from pernodedrop.backends import triton_kernels

        return lambda x, w, key: triton_kernels.folded_words(count, x.device)
    xp, width = backends.get(backend), min(count, 2**12)

    def words(x, w, key):
        key, zero = xp.as_word(key), xp.arange(1, like=x)
        rows, outs = xp.arange(count // width, like=x)[:, None], xp.arange(width, like=x)
        return xp.sum(generator.words((key[:1], key[1:]), zero, zero, rows, zero, outs, xp), axis=None)

    return words


def transformer_of(variant, sizes):
    """A small transformer of images whose Dense layers are those of a variant of the CIFAR-10 network."""
    import keras

    from pernodedrop.commands.bench.network import LAYERS
    from pernodedrop.study import networks

    def slot(width, activation):
        return LAYERS[variant](keras.layers.Dense(width, activation=activation))

    model = networks.transformer(slot, shape=(32, 32, 3), **sizes.transformer)
    model.compile(keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy")
    return model


# The parent.

KINDS = ("checks", "rates", "times", "networks")


def run(options):
    """Measure, and write results.json and results.md.

    Returns:
        The exit code, 1 if a mask is wrong or a process failed.
    """
    from pernodedrop.report import results
    from pernodedrop.report.environment import installed

    class Measured(results.Results):
        """What has been found: the device, the hashes of masks, its rates, the times of products and of networks."""

        facts, kinds = ("device",), KINDS

    folder = results.output_folder(options.output)
    found, failed = Measured(folder / "results.json"), []
    found.device = device() if options.device == "gpu" else {"name": "the CPU", "memory": None, "driver": None}
    until = time.monotonic() + 60 * options.minutes
    for n, backend in enumerate(options.backends):
        if installed(backend):
            seconds = (until - time.monotonic()) / (len(options.backends) - n)
            failed += measure(backend, options, seconds, found)
            (folder / "results.md").write_text(markdown(found.plain()), encoding="utf-8")
        else:
            print(f"{backend}: left out, it is not installed")
    wrong = [record for record in found.checks if not record["right"]]
    failed += [f"{record['key']}: masks are not NumPy's, {record['hashes']}" for record in wrong]
    print(markdown(found.plain()), *(f"FAILED: {error}" for error in failed), sep="\n")
    return int(bool(failed))


def measure(backend, options, seconds, found):
    """Start the process of a framework, and keep each figure as it comes; returns what failed, as text."""
    from pernodedrop.commands.bench import command

    variables = {}
    if options.device == "cpu":
        variables = {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu", "TRITON_INTERPRET": "1"}
    done = [record["key"] for kind in KINDS for record in getattr(found, kind)]
    asked = {"device": options.device, "sizes": options.sizes, "seconds": 0.9 * seconds, "done": done}
    failed = []
    with command.child(backend, "benchmarks.gpu", WORKER, **variables) as (process, tail):
        late = threading.Timer(seconds, process.kill)
        late.start()
        json.dump({"backend": backend, **asked}, process.stdin)
        process.stdin.close()
        for line in process.stdout:
            for kind, record in json.loads(line).items():
                if kind == "left_out":
                    print(f"{backend}: left out, {record}")
                elif kind == "environment":
                    found.check_environment(backend, record)
                elif "failed" in record:
                    failed.append(f"{record['case']}: {record['failed']}")
                else:
                    found.add(kind, {"key": key_of(backend, kind, record), "backend": backend, **record})
        if process.wait():
            failed.append(f"{backend}: {tail()}" if late.is_alive() else f"{backend}: stopped after {seconds:.0f} s")
        late.cancel()
    return failed


def key_of(backend, kind, record):
    """What tells a record from the others of its kind."""
    from pernodedrop.commands.bench.matrix import Case

    if kind == "times":
        return Case.of(record["case"]).key
    if kind == "networks":
        return "/".join([backend, record["network"], record["dtype"], record["variant"]])
    return record["key"]


# What a person reads.


def markdown(plain):
    """The figures as a document."""
    from pernodedrop.report.table import as_markdown

    about, blocks = plain["device"], ["# pernodedrop on a GPU"]
    blocks.append(", ".join(filter(None, [about["name"], about["driver"] and f"driver {about['driver']}"])) + ".")
    for backend, environment in plain["environments"].items():
        own = {kind: [record for record in plain[kind] if record["backend"] == backend] for kind in KINDS}
        right = sum(record["right"] for record in own["checks"])
        versions = ", ".join(f"{name} {environment[name]}" for name in ("framework", "pernodedrop", "keras", "python"))
        blocks += [
            f"## {backend}",
            f"{versions}; on {environment['device']}. Masks of {right} of {len(own['checks'])} products are NumPy's.",
            *map(as_markdown, filter(len, (rates_table(own), short_table(own), times_table(own), networks_table(own)))),
        ]
    return "\n\n".join(blocks) + "\n"


def rates_table(own):
    """What the device does at best, as lists of text."""
    lines = [["", "GB/s", "TFLOP/s", "1e9 words/s", "1e9 decisions/s, native"]]
    for record in own["rates"]:
        words = f"{record['words'] / 1e9:.3g}" if record["words"] else ""
        numbers = [f"{record[name] / unit:.3g}" for name, unit in (("bytes", 1e9), ("flops", 1e12), ("native", 1e9))]
        lines.append([record["key"].partition("/")[2], *numbers[:2], words, numbers[2]])
    return lines


def short_table(own):
    """A Bernoulli mask against Dropout + Dense, masks by hand and the limit, each in its fastest mode."""
    from pernodedrop.commands.bench import limits, matrix

    fastest, lines = {}, [["", "ms", "x Dropout + Dense", "by hand, x", "% of the limit", "which is of"]]
    for record in own["times"]:
        case = matrix.Case.of(record["case"])
        if "seconds" in record:
            what = case.shape, case.dtype, case.mode.endswith(matrix.FORWARD)
            best = fastest.setdefault(what, {})
            if record["seconds"] < best.get(case.row, record)["seconds"] or case.row not in best:
                best[case.row] = record
    rates = {record["key"].partition("/")[2]: record for record in own["rates"]}
    for (shape, dtype, forward), best in fastest.items():
        if "bernoulli" not in best:
            continue
        ours, limit = best["bernoulli"]["seconds"], ("", "")
        if dtype in rates:
            seconds, binds = limits.of_case(matrix.Case.of(best["bernoulli"]["case"]), rates[dtype])
            limit = f"{100 * seconds / ours:.0f}", binds
        name = f"{matrix.shape_text(shape)}, {dtype}, {matrix.FORWARD if forward else 'step'}"
        dropout = f"{ours / best['dropout']['seconds']:.2f}" if "dropout" in best else ""
        by_hand = f"{best['by_hand']['seconds'] / ours:.1f}" if "by_hand" in best else ""
        lines.append([name, f"{1e3 * ours:.3g}", dropout, by_hand, *limit])
    return lines


def times_table(own):
    """Every product, as lists of text."""
    from pernodedrop.commands.bench import matrix, table

    lines = [["product", "mode", "row", "ms", "first call, s", "form"]]
    for record in own["times"]:
        case = matrix.Case.of(record["case"])
        what = [f"{matrix.shape_text(case.shape)}, {case.dtype}", case.mode, table.full_title(case.row)]
        if "skipped" in record:
            lines.append([*what, f"left out: {record['skipped']}", "", ""])
        else:
            form = f"`{record['form']}`" if record["form"] else ""
            lines.append([*what, f"{1e3 * record['seconds']:.3g}", f"{record['first_call']:.1f}", form])
    return lines


def networks_table(own):
    """The steps of the networks, as lists of text."""
    from pernodedrop.commands.bench import matrix, table

    lines = [["network, ms (x Dropout)", *(matrix.VARIANTS[variant] for variant in VARIANTS)]]
    for title, dtype in dict.fromkeys((record["network"], record["dtype"]) for record in own["networks"]):
        cells = {r["variant"]: r for r in own["networks"] if (r["network"], r["dtype"]) == (title, dtype)}
        lines.append([f"{title}, {dtype}", *(table.network_cell(cells.get(variant)) for variant in VARIANTS)])
    return lines


def main():
    """What the command line asks for, or as a process of a framework its parent."""
    if sys.argv[1:] == [WORKER]:
        return work(**json.load(sys.stdin))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=BACKENDS)
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--sizes", choices=tuple(SIZES), default="full")
    parser.add_argument("--minutes", type=float, default=7.5, help="of which each framework has its share")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("gpu-results"))
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
