"""`index.html` of a comparison: table, Figure 2, differences, kinds of errors and images on one offline page."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from focaldet.comparison.figure import mark_rows, trade_off_figure
from focaldet.comparison.rows import ComparedDetector
from focaldet.comparison.sentences import describe_differences, interval, points, sort_by_ap
from focaldet.comparison.systems import published_points
from focaldet.comparison.table import html_table
from focaldet.comparison.timing import IMAGE_PARTS, TimingReport
from focaldet.data.dataset import ImageSource
from focaldet.data.formats.text import quantity
from focaldet.errors import DataError
from focaldet.evaluation.bootstrap import ApDifference
from focaldet.evaluation.coco import percent
from focaldet.evaluation.error_kinds import OUTCOME_KINDS
from focaldet.report import page
from focaldet.report.image_pairs import draw_truth_and_detections, even_indices
from focaldet.types import Detections

NUM_SCENES = 6
FOLDED_PAIRS = 6  # of more the differences are not read on the way to the table
CLASS_COLUMNS, MOST_CLASSES = 12, 40
LARGEST_EXCESS = 1.1  # of a budget, before a training is marked
SCENE_PX = 300  # long side of an image on the page: sixty of them stay below two megabytes
SIZE_TEXTS = {"ap_small": "small, below 32² px", "ap_medium": "medium, to 96² px", "ap_large": "large, above 96² px"}


def write_compare_page(
    path: Path,
    rows: Sequence[ComparedDetector],
    *,
    differences: Sequence[ApDifference],
    sentences: Sequence[str],
    timing: TimingReport | None,
    source: ImageSource,
    budget: str,
    budget_seconds: float | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write the page of a comparison.

    Args:
        path: the file.
        rows: the detectors in the order of the table.
        differences: AP of every pair.
        sentences: what can be concluded.
        timing: times and machine; None where nothing was timed.
        source: the images that were evaluated.
        budget: what every training was given, in words.
        budget_seconds: the same in seconds; None for a number of epochs.
        notes: what a reader must know.
    """
    marks, dataset = mark_rows(rows), source.dataset
    shown = sort_by_ap(rows)
    about = (
        f"Evaluated on <b>{escape(dataset.name)}</b>: {quantity(len(dataset), 'image')}, "
        f"{quantity(int((dataset.flags == 0).sum()), 'box', 'boxes')}; budget of each training: {escape(budget)}."
    )
    figure = trade_off_figure(rows, marks, published_points())
    page.write_page(
        path,
        "Comparison · focaldet",
        page.header("Comparison of detectors", about, notes=notes),
        page.section("What it shows", *_conclusions(sentences, differences)),
        page.section("Results", html_table(rows, marks), _table_note(rows)),
        page.section("Accuracy and time", figure, _figure_note() if figure else ""),
        page.section("Differences of AP", _ap_difference_table(shown, differences, marks)),
        page.section("AP by size of the objects", _object_size_table(shown, marks)),
        page.section("AP by class", *_class_ap_tables(shown, marks, dataset.classes.names)),
        page.section("Kinds of errors", _kind_table(shown, marks), _cost_table(shown, marks)),
        page.section("Time of an image", *_time_tables(shown, marks, timing)),
        page.section("Trainings", *_training_table(rows, marks, budget_seconds)),
        page.section("The same images", *scene_figures(source, shown, marks)),
        style=files("focaldet.comparison").joinpath("compare.css").read_text(encoding="utf-8"),
    )


def _conclusions(sentences: Sequence[str], differences: Sequence[ApDifference]) -> list[str]:
    """The conclusions, the list of differences folded at their end."""
    listed = describe_differences(differences) if len(differences) > FOLDED_PAIRS else []
    parts = [f'<p class="conclusion">{escape(line)}</p>' for line in sentences if line not in listed]
    return [*parts, page.fold("Which differences are real", *(f"<p>{escape(line)}</p>" for line in listed))]


def _name_cell(row: ComparedDetector, marks: Mapping[str, str]) -> str:
    """The name of a row with its mark, as HTML."""
    mark = marks.get(row.name)
    return (f'<span class="mark">{mark}</span> ' if mark else "") + escape(row.name)


def _table_note(rows: Sequence[ComparedDetector]) -> str:
    several = any(row.sample is not None and len(row.sample.ap) > 1 for row in rows)
    seeds = "± is the standard deviation between seeds." if several else "One seed each: no deviation is known."
    if any(row.failures and row.metrics for row in rows):
        seeds += " n is the number of seeds where others failed."
    return (
        f'<p class="chance">Percent; bold is the best of a column. {seeds} ms: from the image file to its '
        "boxes, one image at a time, the median over images and rounds. Rows in italics are "
        "the paper's own, trained on COCO and evaluated on its test-dev: their height cannot be compared with the "
        "rows above, their order can.</p>"
    )


def _figure_note() -> str:
    return (
        '<p class="chance">Hollow: two-stage, filled: one-stage; the letters are those of the table. The dashed line '
        "joins the detectors that no other beats in both. Crosses: the paper's Figure 2, on COCO and a GPU of 2017.</p>"
    )


def _ap_difference_table(
    rows: Sequence[ComparedDetector], differences: Sequence[ApDifference], marks: Mapping[str, str]
) -> str:
    """AP of the row minus that of the column, for every pair, the best first."""
    if not differences:
        return ""
    pairs = {(each.first, each.second): each for each in differences}
    lines = []
    for row in rows[:-1]:
        cells = [_difference_cell(pairs.get((row.name, other.name))) for other in rows[1:]]
        lines.append([_name_cell(row, marks), *cells])
    text = (
        "<p>AP of the row minus AP of the column in points, with the 95 % interval and the probability that the row is "
        "better. Bold with ★: real at 5 % after Holm's correction for all pairs.</p>"
    )
    return text + page.table(["", *(marks[row.name] for row in rows[1:])], lines)


def _difference_cell(difference: ApDifference | None) -> str:
    if difference is None:
        return ""
    star, kind = ("★ ", "real") if difference.is_real else ("", "chance")
    return (
        f'<span class="{kind}">{star}{points(difference.mean)}</span><br><small>{interval(difference)}<br>'
        f"P {difference.probability:.2f}</small>"
    )


def _bar(value: float | None, *, is_best: bool = False) -> str:
    """A fraction as percent with a bar behind it."""
    text = f"<strong>{percent(value)}</strong>" if is_best and value is not None else percent(value)
    return page.bar_cell(text, value or 0.0)


def _count_cell(count: float) -> str:
    """A number of 100 with a bar behind it."""
    return page.bar_cell(f"{count:.1f}", count / 100)


def _bar_table(names: Sequence[str], heads: Sequence[str], values: Sequence[Sequence[float | None]]) -> str:
    """A table of fractions as bars, the highest of each column bold, if it is above 0."""
    best = [max((value for value in column if value is not None), default=None) for column in zip(*values, strict=True)]
    lines = [
        [name, *(_bar(value, is_best=value == top and bool(top)) for value, top in zip(row, best, strict=True))]
        for name, row in zip(names, values, strict=True)
    ]
    return page.table(["", *heads], lines)


def _object_size_table(rows: Sequence[ComparedDetector], marks: Mapping[str, str]) -> str:
    if not rows:
        return ""
    values = [[row.mean(field) for field in SIZE_TEXTS] for row in rows]
    return _bar_table([_name_cell(row, marks) for row in rows], list(SIZE_TEXTS.values()), values)


def _class_ap_tables(rows: Sequence[ComparedDetector], marks: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """AP of each class for each detector, the mean over its seeds; of many classes those that differ most, as rows."""
    if len(names) < 2 or not rows:
        return []
    values: dict[str, list[float | None]] = {}
    per_row = [[{each.name: each.ap for each in metrics.per_class} for metrics in row.metrics] for row in rows]
    for name in names:
        values[name] = [_mean([seed.get(name) for seed in seeds]) for seeds in per_row]
    if len(names) <= CLASS_COLUMNS:
        columns = list(zip(*(values[name] for name in names), strict=True))
        return [_bar_table([_name_cell(row, marks) for row in rows], [escape(name) for name in names], columns)]
    widest = set(sorted(names, key=lambda name: -_ap_range(values[name]))[:MOST_CLASSES])
    shown = [name for name in names if name in widest]
    lines = []
    for name in shown:
        best = max((value for value in values[name] if value is not None), default=None)
        lines.append([escape(name), *(_bar(value, is_best=value == best and bool(best)) for value in values[name])])
    left = quantity(len(names) - len(shown), "class", "classes")
    text = f"<p>The {len(shown)} classes in which the detectors differ most; {left} more.</p>"
    return [*([text] if len(shown) < len(names) else []), page.table(["", *(marks[row.name] for row in rows)], lines)]


def _ap_range(values: Sequence[float | None]) -> float:
    """The largest minus the smallest."""
    known = [value for value in values if value is not None]
    return max(known) - min(known) if known else 0.0


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _kind_table(rows: Sequence[ComparedDetector], marks: Mapping[str, str]) -> str:
    """What becomes of 100 objects, and how many false positives there are for them."""
    objects = [kind for kind in OUTCOME_KINDS if any((row.kinds or {}).get(kind) for row in rows)]
    extras = [kind for kind in OUTCOME_KINDS if any((row.kinds or {}).get(f"extra {kind}") for row in rows)]
    if not objects and not extras:
        return ""
    lines = []
    for row in rows:
        kinds = row.kinds or {}
        cells = [_count_cell(kinds.get(kind, 0.0)) for kind in objects]
        cells += [_count_cell(kinds.get(f"extra {kind}", 0.0)) for kind in extras]
        lines.append([_name_cell(row, marks), f"{row.score:.2f}", *cells])
    heads = ["", "score", *objects]
    text = (
        "<p>For every 100 objects, at the score of the highest F1 of each detector (IoU .5), of its first "
        "seed: what became of the objects, then the false positives, each with its kind after TIDE.</p>"
    )
    return text + page.table([*heads, *(f"false: {kind}" for kind in extras)], lines)


def _cost_table(rows: Sequence[ComparedDetector], marks: Mapping[str, str]) -> str:
    """What correcting each kind of error would add to AP50."""
    kinds = list(rows[0].costs or {}) if rows else []
    if not kinds:
        return ""
    lines = [[_name_cell(row, marks), *(percent((row.costs or {}).get(kind)) for kind in kinds)] for row in rows]
    text = "<p>Points of AP50 that a detector would gain if errors of this kind alone were corrected (TIDE).</p>"
    return text + page.table(["", *map(escape, kinds)], lines)


def _time_tables(rows: Sequence[ComparedDetector], marks: Mapping[str, str], timing: TimingReport | None) -> list[str]:
    """Times with their parts, and what was measured on."""
    timed = [(row, row.timing) for row in rows if row.timing is not None]
    if not timed:
        return []
    lines = []
    for row, each in timed:
        total = each.total
        parts = [f"{each.parts[part].median:.1f}" if part in each.parts else "-" for part in IMAGE_PARTS]
        rate = "-" if each.throughput is None else f"{each.throughput.median:.1f}"
        size = "-" if each.input is None else f"{each.input[1]} × {each.input[0]}"
        lines.append(
            [
                _name_cell(row, marks),
                f"{total.median:.1f}",
                f"{total.best:.1f}" if total.num_values > 1 else "-",
                f"{total.p10:.1f} to {total.p90:.1f}" if total.num_values > 1 else "-",
                str(total.num_values) if total.num_values > 1 else "-",
                *parts,
                rate,
                size,
                "-" if each.parameters is None else f"{each.parameters / 1e6:.2f}",
                "-" if each.gflop is None else f"{each.gflop:.2f}",
                "-" if each.memory_mb is None else f"{each.memory_mb:,.0f}",
            ]
        )
    heads = ["", "ms", "fastest", "p10 to p90", "n", *IMAGE_PARTS, "images/s", "input px"]
    heads += ["M parameters", "GFLOP", "memory MB"]
    reasons = {} if timing is None else timing.reasons
    texts = [f'<p class="note">{escape(name)} has no times: {escape(reason)}</p>' for name, reason in reasons.items()]
    return [page.table(heads, lines), *texts, _machine_note(timing)]


def _machine_note(timing: TimingReport | None) -> str:
    """How it was measured, and whether the machine was quiet."""
    if timing is None:
        return ""
    loads = [f"{value:.1f}" for value in (timing.load_before, timing.load_after) if value is not None]
    load = f" Load {' before and '.join(loads)} after." if loads else ""
    if timing.probe is not None:
        probe = timing.probe
        load += f" The same small convolution took {probe.best:.1f} ms at best, {probe.median:.1f} in the median"
        load += f" and {probe.p90:.1f} or more in the slowest tenth."
    warning = (
        ""
        if timing.is_quiet
        else " The machine was not quiet or not steady: times may be too long, and by different amounts."
    )
    machine = escape(", ".join(f"{name} {value}" for name, value in timing.machine.items()))
    return (
        f'<p class="{"chance" if timing.is_quiet else "note"}">{timing.rounds} rounds over all detectors in turn, '
        f"{quantity(timing.images, 'image')} each, after one that does not count; "
        f"{quantity(timing.threads, 'thread')}; images/s in batches of {timing.batch_size}. The second stage belongs "
        "to forward. ms, its parts, images/s and percentiles are of all rounds, none left out; fastest is the median "
        f"over the images of each one's fastest round.{load}{escape(warning)} {machine}.</p>"
    )


def _training_table(
    rows: Sequence[ComparedDetector], marks: Mapping[str, str], budget_seconds: float | None
) -> list[str]:
    """What each training was given: seeds, images, time, operations, where it started from."""
    lines = []
    for row in rows:
        gflop = None if row.timing is None else row.timing.gflop
        for result in row.results:
            has_pflop = gflop is not None and result.images_seen and result.error is None
            lines.append(
                [
                    _name_cell(row, marks),
                    str(result.seed),
                    escape(result.start or "-"),
                    f"{result.images_seen:,}" if result.images_seen else "-",
                    "-" if result.epochs is None else f"{result.epochs:.1f}",
                    f"{result.seconds:.0f}" if result.seconds else "-",
                    _wall_cell(result.wall_seconds, None if result.note else budget_seconds),
                    f"{3 * (gflop or 0.0) * result.images_seen / 1e6:.2g}" if has_pflop else "-",
                    "done" if result.error is None else f'<span class="reason">{escape(result.error)}</span>',
                ]
            )
    heads = ["", "seed", "starts from", "images seen", "epochs", "s of steps", "s in all", "10¹⁵ operations", ""]
    text = (
        '<p class="chance">"In all" has the set-up and, for a short training, the measuring of BatchNorm at its end; '
        "★ marks a training that took over a tenth more than its budget.</p>"
    )
    return [page.table(heads, lines, text_columns=[2, 8]), text] if lines else []


def _wall_cell(seconds: float, budget: float | None) -> str:
    """The time of a whole training, marked where it is well above the budget."""
    if not seconds:
        return "-"
    return f"★ {seconds:.0f}" if budget is not None and seconds > LARGEST_EXCESS * budget else f"{seconds:.0f}"


def scene_figures(source: ImageSource, rows: Sequence[ComparedDetector], marks: Mapping[str, str]) -> list[str]:
    """Six images at even distances through the split, each with its objects and every detector's boxes."""
    dataset = source.dataset
    indices = even_indices(len(dataset), NUM_SCENES) if rows else []
    parts = [
        "<p>At even distances in the split; they were not selected. Every detector's boxes are those with the score of "
        "its highest F1 or more, of its first seed.</p>"
    ] * bool(indices)
    texts = ["the annotations", *(f"{marks[row.name]} {row.name}" for row in rows)]
    for index in indices:
        shown: list[Detections] = [row.detections[index].above(row.score) for row in rows]
        try:
            drawings = draw_truth_and_detections(source, index, shown, longest_px=SCENE_PX, show_scores=False)
        except DataError as error:
            parts.append(f"<p>{escape(str(error))}</p>")
            continue
        name = dataset.path(index).name
        figures = [
            f"<figure>{page.embed_image(drawing, alt=f'{name}: {text}')}"
            f"<figcaption>{escape(text)}</figcaption></figure>"
            for text, drawing in zip(texts, drawings, strict=True)
        ]
        parts.append(f'<h3>{escape(name)}</h3><div class="scenes">{"".join(figures)}</div>')
    return parts
