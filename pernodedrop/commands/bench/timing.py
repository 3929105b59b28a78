"""The time of steps, taken in turn: a machine whose speed drifts drifts for all of them."""

import statistics
import time
import typing

from pernodedrop.commands.bench import matrix, products, steps

FEWEST_ROUNDS = 3
SHORTEST_TURN = 0.02  # seconds
MOST_CALLS = 10
LONGEST = 120.0  # seconds: what would take longer is left out
MEMORY_FACTOR = 5  # how many tensors of the mask's size a materialized step has at once


class Member(typing.NamedTuple):
    """A case as it is timed: its step, how long the first call took, and how it is written by hand, if it is."""

    case: matrix.Case
    step: steps.Step
    first: float
    form: str | None


def measure(cases, rounds, seconds, available, progress, pace):
    """Time cases of one shape and dtype in turn.

    Args:
        cases: of one backend, which is Keras' own.
        rounds: how often each is timed after it is warm.
        seconds: no further round begins after so long, once there were three.
        available: bytes of memory that there are.
        progress: is called with a text before every call of a step.
        pace: a dict from (row, mode, dtype) to the seconds of an entry in smaller shapes, read and updated here.

    Yields:
        A dict of plain values for each case, with its times, or why it is "skipped" or how it "failed".
    """
    operands = steps.operands(cases[0].shape, cases[0].dtype, cases[0].listed)
    members = []
    for case in cases:
        reason = excess(case, available, pace)
        if reason:
            yield {"case": case.plain(), "skipped": reason}
        else:
            progress(f"{case.key} first call")
            try:
                members.append(warm(case, operands, matrix.RATE))
            except Exception as error:  # of one row, such as a dtype that its framework lacks; the others go on
                yield {"case": case.plain(), "failed": f"{type(error).__name__}: {str(error)[:500]}"}
    times = take_turns(members, operands, rounds, seconds, progress)
    medians = {(m.case.row, m.case.mode): statistics.median(times[m.case.key]) for m in members}
    for member in members:
        case = member.case
        pace[case.row, case.mode, case.dtype] = medians[case.row, case.mode] / case.entries
        record = {"case": case.plain(), **spread(times[case.key]), "first_call": member.first, "form": member.form}
        yield {**record, "beside": {row: medians.get((row, case.mode)) for row in matrix.REFERENCES}}


def spread(values):
    """Median and quartiles of some times, and how many they are."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return {"seconds": statistics.median(values), "quartiles": [low, high], "rounds": len(values)}


def excess(case, available, pace):
    """Why a case would take too much, or None."""
    if matrix.ROWS[case.row].materializes and MEMORY_FACTOR * 4 * case.entries > available:
        return "more memory than there is"
    expected = pace.get((case.row, case.mode, case.dtype), 0) * case.entries * (FEWEST_ROUNDS + 1)
    return f"about {expected:.0f} s" if expected > LONGEST else None


def warm(case, operands, rate):
    """A case after its first call, which compiles; of what is written by hand, the form that is fastest."""
    forms = [None]
    if case.row == "by_hand":
        forms = list(products.FORMS_OVER_TIME if len(case.shape) == 4 else products.FORMS)
    candidates = []
    for form in forms:
        product = products.product(case.row, case.backend, rate, form, case.shape)
        if case.listed:
            product = products.of_listed(product, case.backend, case.shape, case.listed)
        step = steps.step(product, case.backend, case.mode)
        first = seconds_of(step, operands)
        again = seconds_of(step, operands) if len(forms) > 1 else 0.0
        candidates.append((again, Member(case, step, first, form)))
    return min(candidates, key=lambda candidate: candidate[0])[1]


def seconds_of(step, operands):
    """How long one call takes."""
    began = time.perf_counter()
    step(*operands)
    return time.perf_counter() - began


def take_turns(members, operands, rounds, seconds, progress):
    """The times of each member by its case's key, round after round."""
    times = {member.case.key: [] for member in members}
    began = time.perf_counter()
    for turn in range(rounds):
        if turn >= FEWEST_ROUNDS and time.perf_counter() - began > seconds:
            break
        for member in members:
            progress(f"{member.case.key} {turn + 1}/{rounds}")
            times[member.case.key].append(turn_of(member.step, operands))
    return times


def turn_of(step, operands):
    """The time of one call: of a quick step the median of several, since the first finds cold caches and threads."""
    times = []
    while len(times) < MOST_CALLS and sum(times) < SHORTEST_TURN:
        times.append(seconds_of(step, operands))
    return statistics.median(times)
