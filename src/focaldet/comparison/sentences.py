"""What a comparison shows, in sentences computed from its numbers."""

from collections.abc import Iterable, Sequence
from itertools import pairwise

from focaldet.comparison.rows import ComparedDetector
from focaldet.data.formats.text import quantity
from focaldet.evaluation.bootstrap import ApDifference, SeedSpread
from focaldet.evaluation.coco import percent


def points(value: float) -> str:
    """A difference of AP in points with its sign, for example "+1.5"."""
    text = f"{100 * value:+.1f}".replace("-", "−")
    return text[1:] if text[1:] == "0.0" else text


def conclude(
    rows: Sequence[ComparedDetector],
    differences: Sequence[ApDifference],
    spread: SeedSpread,
    *,
    num_images: int,
    num_clusters: int | None = None,
    budget_ms: float | None = None,
) -> tuple[str, ...]:
    """Which differences are real, what to take, and what the numbers rest on."""
    compared = sort_by_ap(rows)
    if not compared:
        return ("No detector was trained and evaluated: there is nothing to compare.",)
    best = compared[0]
    if not best.mean("ap"):
        lines = [
            "No detector was right anywhere: AP is 0 throughout. The budget is too short, or the data are not fit."
        ]
    else:
        lines = [f"Highest AP: {best.name}, {percent(best.mean('ap'))}."]
    if len(compared) > 1 and best.mean("ap"):
        lines += recommend(compared, differences, budget_ms=budget_ms)
        lines += describe_differences(differences)
    lines += _describe_starts(rows) + _describe_other_trainings(rows)
    images = quantity(num_images, "image")
    if num_clusters is not None:
        images += f" in {quantity(num_clusters, 'cluster')}"
    lines.append(_describe_basis(compared, spread, images=images))
    lines += [f"{row.name} has no numbers: {row.error}" for row in rows if row.error is not None]
    return (*lines, *_describe_failures(rows))


def _describe_failures(rows: Sequence[ComparedDetector]) -> list[str]:
    """Which detectors have numbers of a part of their trainings only, and why."""
    lines = []
    for row in rows:
        if row.failures and row.metrics:
            count, reasons = quantity(len(row.results), "training"), "; ".join(dict.fromkeys(row.failures))
            lines.append(f"{row.name}: {len(row.failures)} of {count} failed, its numbers are of the rest: {reasons}")
    return lines


def sort_by_ap(rows: Iterable[ComparedDetector]) -> list[ComparedDetector]:
    """The rows that have an AP, the highest first."""
    return sorted((row for row in rows if row.sample is not None), key=lambda row: -(row.mean("ap") or 0.0))


def describe_differences(differences: Sequence[ApDifference]) -> list[str]:
    """Which differences are real, the detectors that are worse gathered for each that is better."""
    worse: dict[str, list[ApDifference]] = {}
    for difference in differences:
        if difference.is_real:
            worse.setdefault(difference.first, []).append(difference)
    pairs = quantity(len(differences), "pair")
    if not worse:
        return [
            f"None of the differences is real: chance explains each of the {pairs} (at 5 %, after Holm's correction)."
        ]
    lines = [f"Real differences of AP, at 5 % after Holm's correction for {pairs}:"]
    for name, members in worse.items():
        ends = [f"{each.second} ({points(each.mean)}, 95 % {interval(each)})" for each in sort_by_size(members)]
        lines.append(f"{name} is better than {', '.join(ends)}.")
    if rest := len(differences) - sum(map(len, worse.values())):
        lines.append(f"{quantity(rest, 'other difference')} may be chance.")
    return lines


def sort_by_size(differences: Iterable[ApDifference]) -> list[ApDifference]:
    """The smallest difference first."""
    return sorted(differences, key=lambda each: abs(each.mean))


def interval(difference: ApDifference) -> str:
    """The interval in points, for example "+0.1 to +2.9"."""
    return f"{points(difference.low)} to {points(difference.high)}"


def level_with_best(rows: Sequence[ComparedDetector], differences: Sequence[ApDifference]) -> list[ComparedDetector]:
    """The best detector and those whose difference to it has an interval that contains 0; `rows` best first."""
    best = rows[0].name
    level = {best}
    for each in differences:
        if best in (each.first, each.second) and each.low <= 0 <= each.high:
            level |= {each.first, each.second}
    return [row for row in rows if row.name in level]


def recommend(
    rows: Sequence[ComparedDetector], differences: Sequence[ApDifference], *, budget_ms: float | None
) -> list[str]:
    """What to take: the fastest that is level with the best, and the best for each limit of time; `rows` best first."""
    timed = [row for row in rows if row.milliseconds is not None]
    if not timed:
        return ["No times were measured, so nothing is said on which one to take."]
    lines = []
    level = [row for row in level_with_best(rows, differences) if row.milliseconds is not None]
    if level:
        fastest = min(level, key=lambda row: row.milliseconds or 0.0)
        why = (
            "the best"
            if fastest is rows[0]
            else f"its AP cannot be distinguished from that of the best, {rows[0].name}"
        )
        rank = f", and it is the fastest of the {len(level)} that are level with the best" if len(level) > 1 else ""
        numbers = f"{fastest.milliseconds:.0f} ms an image, AP {percent(fastest.mean('ap'))}"
        lines.append(f"Take {fastest.name}: {why}{rank} ({numbers}).")
    if budget_ms is not None:
        within = [row for row in timed if (row.milliseconds or 0.0) <= budget_ms]
        lines.append(
            f"Within {budget_ms:g} ms: {within[0].name}, AP {percent(within[0].mean('ap'))}."
            if within
            else f"No detector takes at most {budget_ms:g} ms."
        )
    front = pareto_front(timed)
    if len(front) > 1:
        steps = [
            f"below {after.milliseconds:.0f} ms {row.name} ({percent(row.mean('ap'))})"
            for row, after in pairwise(front)
        ]
        last = f"with more time {front[-1].name} ({percent(front[-1].mean('ap'))})"
        lines.append(f"Highest AP by time: {', '.join([*steps, last])}.")
    return lines


def pareto_front(rows: Iterable[ComparedDetector]) -> list[ComparedDetector]:
    """The rows that no other beats in both AP and time, the fastest first."""
    front: list[ComparedDetector] = []
    for row in sorted(rows, key=lambda row: (row.milliseconds or 0.0, -(row.mean("ap") or 0.0))):
        if not front or (row.mean("ap") or 0.0) > (front[-1].mean("ap") or 0.0):
            front.append(row)
    return front


def _describe_starts(rows: Sequence[ComparedDetector]) -> list[str]:
    """Which detectors started from trained weights, where not all did."""
    starts: dict[str, list[str]] = {}
    for row in rows:
        for start in dict.fromkeys(result.start for result in row.results if result.error is None):
            if start is not None:
                starts.setdefault(start, []).append(row.name)
    if len(starts) < 2:
        return []
    words = {"random": "random weights"}
    parts = [f"{', '.join(names)} from {words.get(start, start)}" for start, names in starts.items()]
    return [f"They did not start alike, which matters most where training is short: {'; '.join(parts)}."]


def _describe_other_trainings(rows: Sequence[ComparedDetector]) -> list[str]:
    """Which rows this comparison did not train: their budget was another."""
    notes = {row.name: "another program's" for row in rows if not row.results and row.sample is not None}
    notes |= {row.name: result.note for row in rows for result in row.results if result.note}
    if not notes:
        return []
    parts = [f"{name} ({note})" for name, note in notes.items()]
    return [
        f"Not trained by this comparison: {'; '.join(parts)}. Between these and the others AP differs by the training "
        "as well as by the detector."
    ]


def _describe_basis(rows: Sequence[ComparedDetector], spread: SeedSpread, *, images: str) -> str:
    """What the intervals rest on: images, seeds, and what was assumed."""
    deviation = f"{100 * spread.deviation:.1f} points"
    if spread.is_assumed:
        seeds = (
            f"Every detector has one seed: {deviation} were assumed as the deviation between seeds. What holds for "
            "these trainings may not hold for the next; --seeds 3 measures it"
        )
    else:
        single = [row.name for row in rows if row.sample is not None and len(row.sample.ap) == 1]
        alone = f"; {', '.join(single)} with one seed only" if single else ""
        seeds = f"Between seeds AP deviates by {deviation} (all detectors together){alone}"
    return f"{seeds}. The intervals are of {images}, resampled alike for all detectors."
