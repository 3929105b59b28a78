"""The figures as tables: what follows from what was measured, for the terminal, Markdown and the documents."""

import math

from pernodedrop.commands.bench import limits, matrix
from pernodedrop.report.table import as_markdown, as_text

NOTES = {
    "ratios": "In the usual mode of each backend: JAX jitted, TensorFlow a graph, torch and NumPy eager.",
    "step": "A step is forward and backward, the gradients of x and w; on NumPy, which has none, it is forward only.",
    "time": "Milliseconds, the median of rounds in which all rows take turns; in brackets the multiple of this "
    "library's Dropout + Dense in the same rounds.",
    "limit": "The limit is the least time in which the machine could read and write the operands once, do the "
    "products, and make the words of the mask once in each pass; rows of one distribution have one limit. Rows in grey "
    "are not this library's.",
    "memory": "The peak of a step beyond operands and results, in a process of its own.",
    "choices": 'The time of a step with a Bernoulli mask by the method that "auto" picks, as a multiple of the plain '
    "product's; in brackets the fastest of the methods that can be asked for. A convolution has one more, which only "
    '"auto" takes.',
    "network": "Stock `model.fit`, batch 128, random images: milliseconds of a step, and in brackets the multiple of "
    "the model with keras.layers.Dropout.",
}


def parts(plain):
    """The (shape, dtype) that there are figures of, in the order in which they came."""
    return list(dict.fromkeys((tuple(r["case"]["shape"]), r["case"]["dtype"]) for r in plain["times"]))


def part_title(part):
    """A part as text."""
    shape, dtype = part
    words = {3: "batch x in x out", 4: "batch x time x in x out", 5: "batch x height x width x in x out, 3 x 3"}
    return f"{matrix.shape_text(shape)} ({words[len(shape)]}), {dtype}"


def of_part(plain, part, kind="times"):
    """The records of one part by (row, backend, mode)."""
    found = {}
    for record in plain[kind]:
        case = matrix.Case.of(record["case"])
        if (case.shape, case.dtype) == part:
            found[case.row, case.backend, case.mode] = record
    return found


def columns(records):
    """The (backend, mode) of some records by (row, backend, mode), in the order of the matrix."""
    order = list(matrix.MODES)
    found = dict.fromkeys((backend, mode) for _, backend, mode in records)
    return sorted(found, key=lambda column: order.index(column[0]))


def derive(record, rates):
    """What follows from a time.

    Args:
        record: of a case that was timed.
        rates: what `limits.measure` gave.

    Returns:
        A dict: "dense" and "dropout", the multiples of these rows beside it, None where they were not; "entries", those
        of the mask a second; "limit", a `limits.Limit`; "share", the limit as a part of the time.
    """
    case = matrix.Case.of(record["case"])
    seconds, limit = record["seconds"], limits.of_case(case, rates)
    ratios = {row: seconds / beside if beside else None for row, beside in record["beside"].items()}
    return {**ratios, "entries": case.entries / seconds, "limit": limit, "share": limit.seconds / seconds}


def number(value):
    """Up to three significant digits, and down to thousandths."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"


def time_cell(record, rates):
    """A time and its multiple of Dropout as text."""
    if record is None:
        return ""
    if "skipped" in record:
        return f"left out: {record['skipped']}"
    ratio = derive(record, rates)["dropout"]
    return number(1e3 * record["seconds"]) + (f" ({number(ratio)})" if ratio else "")


def memory_cell(record):
    """A peak in MB as text."""
    return number(max(record["extra"], 0) / 1e6) if record and record["extra"] is not None else ""


def pivot(records, cell):
    """A table with a line for each row of the matrix and a column for each backend and mode, as lists of text."""
    places = columns(records)
    lines = [["", *(f"{backend} {mode}" for backend, mode in places)]]
    rows = [name for name in matrix.ROWS if any(name == row for row, _, _ in records)]
    return lines + [[full_title(row), *(cell(records.get((row, *place))) for place in places)] for row in rows]


def full_title(row):
    """The title of a row where the row above it need not be the one that it continues."""
    return matrix.ROWS[row].title.replace("…", "PerNodeDrop Gaussian" if "gaussian" in row else "PerNodeDrop Bernoulli")


def times(plain, part):
    """The times of a part as lists of text."""
    return pivot(of_part(plain, part), lambda record: time_cell(record, plain["rates"]))


def memory(plain, part):
    """The peaks of a part in MB as lists of text."""
    return pivot(of_part(plain, part, "memory"), memory_cell)


def growth(plain, row="bernoulli"):
    """The time of one row against the entries of its mask, with that of an entry, as lists of text."""
    dense = {"times": [record for record in plain["times"] if not record["case"]["listed"]]}
    shapes = sorted({shape for shape, dtype in parts(dense) if dtype == "float32" and len(shape) == 3}, key=math.prod)
    names = [name for name in matrix.MODES if name in plain["environments"]]
    lines = [["entries", *names]]
    for shape in shapes:
        records = of_part(plain, (shape, "float32"))
        cells = [growth_cell(records.get((row, name, matrix.MODES[name][0]))) for name in names]
        lines.append([f"{math.prod(shape):.1e}, {matrix.shape_text(shape)}", *cells])
    return lines


def growth_cell(record):
    """A time and that of one entry as text."""
    if record is None or "skipped" in record:
        return ""
    entries = matrix.Case.of(record["case"]).entries
    return f"{number(1e3 * record['seconds'])} ms ({number(1e9 * record['seconds'] / entries)} ns)"


def networks(plain):
    """The times of the CIFAR-10 network as lists of text."""
    found = {(record["variant"], record["backend"]): record for record in plain["networks"]}
    places = [name for name in matrix.MODES if any(name == backend for _, backend in found)]
    lines = [["", *places]]
    for variant in (name for name in matrix.VARIANTS if any(name == known for known, _ in found)):
        title = matrix.VARIANTS[variant].replace("…", matrix.VARIANTS["bernoulli"])
        lines.append([title, *(network_cell(found.get((variant, place))) for place in places)])
    return lines


def choices(plain):
    """What "auto" takes against the fastest of the methods, a line a shape, as lists of text."""
    names = [name for name in matrix.MODES if name in plain["environments"]]
    lines = [["", *names]]
    for part in parts(plain):
        records = of_part(plain, part)
        lines.append([matrix.shape_text(part[0]), *(choice_cell(records, name) for name in names)])
    return [lines[0], *(line for line in lines[1:] if any(line[1:]))]


def choice_cell(records, backend):
    """The multiple of the plain product that "auto" takes, and the fastest method with its own, as text."""
    mode = matrix.MODES[backend][0]
    seconds = {row: records.get((row, backend, mode), {}).get("seconds") for row in ("dense", *matrix.METHODS)}
    auto = records.get(("bernoulli", backend, mode), {}).get("seconds")
    methods = {row: seconds[row] for row in matrix.METHODS if seconds[row]}
    if not (auto and seconds["dense"] and methods):
        return ""
    fastest = min(methods, key=methods.get)
    method, plain = fastest.removeprefix("bernoulli_"), seconds["dense"]
    return f"{number(auto / plain)} ({method} {number(methods[fastest] / plain)})"


def shares(plain, part):
    """How much of the time of each case the machine would need, as lists of text."""
    return pivot(of_part(plain, part), lambda record: share_cell(record, plain["rates"]))


def share_cell(record, rates):
    """The limit as a part of the time, and what binds, as text."""
    if record is None or "skipped" in record:
        return ""
    own = derive(record, rates)
    return f"{100 * own['share']:.0f} % ({own['limit'].binds})"


RATIOS = (
    ("Bernoulli: times faster than the mask in memory, by hand", "times", "by_hand", "bernoulli"),
    ("Gaussian: multiple of keras Dropout + Dense", "times", "gaussian", "keras_dropout"),
)
"""What is asked first: title, kind of record, and the rows whose figures are divided."""

NETWORK_RATIOS = ("bernoulli", "gaussian", "fixed")
"""Variants of the CIFAR-10 network whose step is compared with that of the baseline."""


def ratios(plain):
    """What is asked first, one column a backend in its usual mode, as lists of text."""
    names = [name for name in matrix.MODES if name in plain["environments"]]
    lines = [["", *names]]
    for part in parts(plain):
        for title, kind, above, below in RATIOS:
            records = of_part(plain, part, kind)
            cells = [ratio_cell(records, name, above, below) for name in names]
            lines.append([f"{title}, {matrix.shape_text(part[0])} {part[1]}", *cells])
    found = {(record["variant"], record["backend"]): record for record in plain["networks"]}
    for variant in NETWORK_RATIOS:
        seconds = [found.get((variant, name)) for name in names]
        cells = [f"{r['seconds'] / r['beside'][matrix.BASELINE]:.2f}" if r else "" for r in seconds]
        lines.append([f"CIFAR-10 step, {matrix.VARIANTS[variant]}: multiple of Dropout's", *cells])
    return [lines[0], *(line for line in lines[1:] if any(line[1:]))]


def ratio_cell(records, backend, above, below):
    """The figure of one row by that of another, as text."""
    pair = [records.get((row, backend, matrix.MODES[backend][0])) for row in (above, below)]
    figures = [record and (record.get("seconds") or record.get("extra")) for record in pair]
    return number(figures[0] / figures[1]) if all(figures) else ""


def network_cell(record):
    """A time and its multiple of the baseline as text."""
    if record is None:
        return ""
    seconds = record["seconds"]
    return f"{number(1e3 * seconds)} ({seconds / record['beside'][matrix.BASELINE]:.2f})"


def every_case(plain):
    """One line for every case, as lists of text."""
    header = "backend mode shape dtype row ms quartiles rounds first_call_s x_Dense x_Dropout entries/s limit_ms binds"
    lines = [[*(word.replace("_", " ") for word in header.split()), "% of limit", "peak MB", "form"]]
    peaks = {record["key"]: record for record in plain["memory"]}
    for record in plain["times"]:
        case = matrix.Case.of(record["case"])
        name = [case.backend, case.mode, matrix.shape_text(case.shape), case.dtype, full_title(case.row)]
        if "skipped" in record:
            lines.append([*name, f"left out: {record['skipped']}", *11 * [""]])
            continue
        own = derive(record, plain["rates"])
        spread = "–".join(number(1e3 * quartile) for quartile in record["quartiles"])
        ratios = [number(own[row]) if own[row] else "" for row in matrix.REFERENCES]
        times = [number(1e3 * record["seconds"]), spread, str(record["rounds"]), number(record["first_call"]), *ratios]
        limit = [f"{own['entries']:.2e}", number(1e3 * own["limit"].seconds), own["limit"].binds]
        share = f"{100 * own['share']:.0f}"
        form = f"`{record['form']}`" if record["form"] else ""
        lines.append([*name, *times, *limit, share, memory_cell(peaks.get(record["key"])), form])
    return lines


def where(plain):
    """Where it was measured, as a list of sentences."""
    about, rates = plain["machine"], plain["rates"]
    size = f", {about['memory_gib']} GiB" if about["memory_gib"] else ""
    versions = [
        f"{name} {found['framework']} on {device_text(found['device'])}"
        for name, found in plain["environments"].items()
        if name != "numpy"
    ]
    any_environment = next(iter(plain["environments"].values()))
    words = f"{rates['words'] / 1e9:.2f}e9 words/s of the generator" if rates["words"] else "no word rate (no numba)"
    return [
        f"{about['processor']}; {about['cores']} cores{size}; {about['system']}.",
        f"pernodedrop {any_environment['pernodedrop']}, Python {any_environment['python']}, "
        + ", ".join([f"Keras {any_environment['keras']}", f"NumPy {about['numpy']}", *versions])
        + ".",
        f"What the machine can do: {rates['bytes'] / 1e9:.1f} GB/s copied, {rates['flops'] / 1e9:.0f} GFLOP/s float32, "
        f"{words}.",
    ]


def device_text(device):
    """A framework's name of a device without where it is: "/job:localhost/replica:0/task:0/device:CPU:0" is "cpu:0"."""
    return device.rpartition("device:")[2].lower()


def sections(plain):
    """The tables that compare, as (title, note, lists of text)."""
    if len(short := ratios(plain)) > 1:
        yield "In short", NOTES["ratios"], short
    if len(picked := choices(plain)) > 1:
        yield 'What "auto" takes', NOTES["choices"], picked
    for part in parts(plain):
        yield f"Time of a step, {part_title(part)}", NOTES["time"], times(plain, part)
        yield f"How much of it the machine would need, {part_title(part)}", NOTES["limit"], shares(plain, part)
        if of_part(plain, part, "memory"):
            yield f"Peak memory in MB, {part_title(part)}", NOTES["memory"], memory(plain, part)
    if plain["networks"]:
        yield "The paper's CIFAR-10 network", NOTES["network"], networks(plain)


def overview(plain):
    """What the terminal shows at the end."""
    return "\n".join(f"\n{title}. {note}\n\n{as_text(lines)}" for title, note, lines in sections(plain)) + "\n"


def markdown(plain):
    """The whole document."""
    blocks = ["# pernodedrop bench", "\n".join(where(plain)), NOTES["step"]]
    for title, note, lines in sections(plain):
        blocks += [f"## {title}", note, as_markdown(lines)]
    blocks += ["## Every case", NOTES["limit"], as_markdown(every_case(plain))]
    return "\n\n".join(blocks) + "\n"
