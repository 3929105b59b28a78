"""The answer in plain words: a loss is called a loss, a tie a tie, and what cannot be said yet is said to be so."""

from pernodedrop.study.report.findings import BASELINES, Findings, rank
from pernodedrop.study.statistics import Comparison

OURS = "per_node_drop"
"""What names of PerNodeDrop's variants begin with."""


def sentences(found: Findings) -> list[str]:
    """The verdict, the first sentence being the answer."""
    if not found.confirmed:
        return unconfirmed(found)
    if not found.baselines or len(found.confirmed) < 2:
        return [
            f"Whether anything helps on {found.data} cannot be said: neither "
            f"{' nor '.join(map(found.title, found.references))} is among what is confirmed, beside another variant.",
            *cost(found),
            *caveats(found),
        ]
    answer = headline(found)
    against_each = [line for base in found.baselines for line in against(found, base)]
    first = f"So far: {answer}" if unfinished(found) else answer
    return [first, *leader(found), *cost(found), *against_each, *caveats(found)]


def unfinished(found: Findings) -> bool:
    """Whether variants differ in how many seeds they have, or are selected and not confirmed."""
    counts = {len(arm.values("loss")) for arm in found.confirmed.values()}
    return len(counts) > 1 or any(name not in found.confirmed for name in found.selected)


def headline(found: Findings) -> str:
    """Who wins: whose test loss is lower than that of Dropout and of no regularizer. Beating one alone is no help."""
    contenders = contending(found)
    bases = [base for base in found.baselines if base not in contenders]
    verdicts = {name: [found.comparisons[base][name].verdict for base in bases] for name in contenders}
    known = [name for name in contenders if not {"unknown", "failed"} & {*verdicts[name]}]
    ours = contenders[0].startswith(OURS)
    who = "PerNodeDrop" if ours else found.title(contenders[0]) if len(contenders) == 1 else None
    others = " and ".join(found.title(base) for base in bases)
    if not known:
        return f"Whether {who or 'a variant'} wins on {found.data} cannot be said yet: {seeds(found)}."
    if winners := [name for name in known if {*verdicts[name]} == {"less"}]:
        kinds = "kind of PerNodeDrop" if ours else "variant"
        rest = f"; no other {kinds} has" if len(winners) < len(contenders) else ""
        return f"{have(found, winners)} a lower test loss than {others} on {found.data}, beyond chance{rest}."
    if who is None:
        both = "both " if len(bases) > 1 else ""
        return f"No variant wins on {found.data}: none has a lower test loss than {both}{others}, beyond chance."
    standings = " and ".join(standing(found, base, known) for base in bases)
    return f"{who} does not win on {found.data}: it {standings}.{missed(found, bases, known)}"


def contending(found: Findings) -> list[str]:
    """The variants that the answer is about: PerNodeDrop's, else all but those that others are compared with and the
    usual ones, else the first of these."""
    ours = [name for name in found.confirmed if name.startswith(OURS)]
    usual = {*found.references, *BASELINES, "none_2"}
    others = [name for name in found.confirmed if name not in usual]
    return ours or others or [name for name in found.confirmed if name != found.baselines[-1]]


def standing(found: Findings, base: str, known: list[str]) -> str:
    """How some variants stand against a baseline."""
    less, more = ([n for n in known if found.comparisons[base][n].verdict == verdict] for verdict in ("less", "more"))
    other = found.title(base)

    def which(few: list[str]) -> str:
        return "" if len(few) == len(known) else f" ({names(found, few)})"

    if less and more:
        return f"has a lower loss than {other}{which(less)} or a higher one{which(more)}"
    if less or more:
        return f"has a {'lower' if less else 'higher'} loss than {other}{which(less or more)}"
    return f"ties with {other}"


def missed(found: Findings, bases: list[str], known: list[str]) -> str:
    """What would have been found against a baseline that all tie with."""
    ties = [base for base in bases if all(found.comparisons[base][name].verdict == "tie" for name in known)]
    comparisons = [found.comparisons[base][name] for base in ties for name in known]
    seeds = {one.seeds for one in comparisons}
    sizes = {base: number(max(found.comparisons[base][name].detectable or 0 for name in known)) for base in ties}
    if len(seeds) != 1 or not all(map(float, sizes.values())):  # nothing to compare, or nothing that is one number
        return ""
    each = ", or of ".join(f"{size} to {found.title(base)}" for base, size in sizes.items())
    often = "four times out of five" if len(known) == 1 else "at least four times out of five"
    comma = "," if len(ties) > 1 else ""
    return f" With {count(seeds.pop(), 'seed')}, a true difference of {each}{comma} would be found {often}."


def have(found: Findings, variants: list[str]) -> str:
    """Titles, and "has" or "have"."""
    return f"{names(found, variants)} {'has' if len(variants) == 1 else 'have'}"


def leader(found: Findings) -> list[str]:
    """Which variant has the least mean, and that this alone says little."""
    order = sorted(found.confirmed, key=lambda name: rank(found.mean(name, "loss")[0]))
    return [f"The least mean test loss is that of {found.title(order[0])}, {number(found.mean(order[0], 'loss')[0])}."]


def cost(found: Findings) -> list[str]:
    """What an epoch of each variant takes, as a multiple of one with each baseline."""
    parts: list[str] = []
    before: set[str] = set()
    for base in reversed([name for name in found.references if found.seconds.get(name)]):
        before.add(base)
        each = [
            f"{found.title(name)} ×{seconds / found.seconds[base]:.1f}"
            for name, seconds in found.seconds.items()
            if name not in before
        ]
        start = "Compared" if parts else "The time of an epoch, compared"
        parts += [f"{start} with {found.title(base)}: {'; '.join(each)}."] if each else []
    taken = "Taken on one machine beside whatever else ran there; pernodedrop bench measures costs with more care."
    return [" ".join([*parts, taken])] if parts else []


def against(found: Findings, base: str) -> list[str]:
    """One sentence a verdict on all variants against a baseline."""
    by_verdict: dict[str, list[Comparison]] = {}
    for one in found.comparisons[base].values():
        by_verdict.setdefault(one.verdict, []).append(one)
    other, lines = found.title(base), []
    what = f"(test loss minus that of {other}; above zero: worse)"
    for verdict, word in (("less", "Lower"), ("more", "Higher")):
        if ones := by_verdict.get(verdict):
            each = "; ".join(difference(found, one) for one in ones)
            lines.append(f"{word} test loss than with {other} {what}: {each}.")
    if ties := by_verdict.get("tie"):
        each = "; ".join(f"{difference(found, one)}, detectable {number(one.detectable or 0)}" for one in ties)
        lines.append(f"A tie with {other} {what}: {each}.")
    if unknown := by_verdict.get("unknown"):
        lines.append(f"Too few seeds in common with {other}: {names(found, [one.variant for one in unknown])}.")
    if failed := by_verdict.get("failed"):
        each = ", ".join(
            f"{found.title(one.variant)} or {other} in {one.failed} of {one.seeds} seeds" for one in failed
        )
        lines.append(f"No finite loss, and so no comparison: {each}.")
    return lines


def difference(found: Findings, one: Comparison) -> str:
    """A comparison in a number; the rest of it is in a table."""
    return f"{found.title(one.variant)} {signed(one.difference or 0)}"


def unconfirmed(found: Findings) -> list[str]:
    """What can be said where no setting is confirmed."""
    chosen = {name: own[0] for name, own in found.selected.items()}
    runs = sum(len(one.arm.records) for own in found.selected.values() for one in own)
    if found.searching == "grid":
        when, why = "from this", "the paper's protocol has no test set, and chooses by the very losses that it reports"
    else:
        when = "yet"
        why = f"settings are being selected, in {count(runs, 'run')} so far, and none is confirmed on fresh seeds"
    lines = [f"Whether anything helps on {found.data} cannot be said {when}: {why}."]
    if chosen:
        first = min(chosen, key=lambda name: rank(chosen[name].loss))
        choice = found.choice(chosen[first].arm)
        at = f" at {', '.join(choice)}" if choice else ""
        lines.append(
            f"So far the least validation loss is that of {found.title(first)}, {number(chosen[first].loss)}{at}: the "
            "best of several tries, which flatters whoever has more of them."
        )
    return lines + cost(found) + unended(found)


def caveats(found: Findings) -> list[str]:
    """What a reader has to know of the seeds."""
    lines, counts = [], {name: len(arm.values("loss")) for name, arm in found.confirmed.items()}
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{found.title(name)} {n}" for name, n in counts.items())
        lines.append(f"The confirmation is not finished, or some of it failed. Seeds so far: {each}.")
    if missing := [name for name in found.selected if name not in found.confirmed]:
        lines.append(f"Not confirmed so far: {names(found, missing)}.")
    if 1 < len(found.seeds) < 6:
        lines.append(
            f"{count(len(found.seeds), 'seed').capitalize()} are few: by signs alone, p cannot be below "
            f"{2 / 2 ** len(found.seeds):.3g}."
        )
    lines += unended(found) + edges(found)
    if found.left_out:
        lines.append(f"Left out: {count(found.left_out, 'run')} that confirmed settings which are selected no more.")
    return lines


def unended(found: Findings) -> list[str]:
    """Which variants were still getting better when training stopped: most of their runs are best at the last epoch.

    Where the learning rate falls to zero, training has ended, and the last epoch is where it should be best.
    """
    late = []
    for name in found.variants:
        runs = [record for record in found.runs(name) if not record["settings"].get("decay")]
        last = sum(record["best_epoch"] + 1 == len(record["epochs"]) for record in runs)
        if 2 * last > len(runs):
            late.append(f"{found.title(name)} ({last} of {count(len(runs), 'run')})")
    if not late:
        return []
    return [
        f"Training had not ended: the last epoch has the least validation loss with {listed(late)}. More epochs may "
        "change the answer."
    ]


def edges(found: Findings) -> list[str]:
    """Which variants have the lowest or the highest of the rates that were tried: one beyond may be better."""
    lines = []
    for word, end in (("lowest", min), ("highest", max)):
        at_end: dict[float, list[str]] = {}
        for name, arm in found.confirmed.items():
            tried = {one.arm.rate for one in found.selected.get(name, ()) if one.arm.rate is not None}
            if arm.rate and len(tried) > 1 and arm.rate == end(tried):
                at_end.setdefault(arm.rate, []).append(name)
        for rate, variants in at_end.items():
            which = names(found, variants)
            lines.append(f"The {word} rate tried, {rate:g}, was selected for {which}: one beyond may do better.")
    return lines


def seeds(found: Findings) -> str:
    """How many seeds there are."""
    return f"{count(len(found.seeds), 'seed')} in common"


def names(found: Findings, variants: list[str]) -> str:
    """Titles as a list in words."""
    return listed([found.title(name) for name in variants])


def listed(words: list[str]) -> str:
    """Words as a list in words: a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def count(n: int, what: str) -> str:
    """A number of things."""
    return f"{n or 'no'} {what}{'' if n == 1 else 's'}"


def number(value: float) -> str:
    """A loss, a share or a difference of them as text."""
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"


def signed(value: float) -> str:
    """A difference as text, with its sign."""
    return f"{value:+.4f}".replace("-", "−")


def p_value(p: float | None) -> str:
    """A p value as text."""
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
