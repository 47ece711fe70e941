"""The errors of a detector in a report: from which score on, which classes, which kinds, and how sure it was."""

from collections.abc import Sequence
from html import escape

import numpy
from jaxtyping import Float64

from focaldet.evaluation.analysis import Analysis
from focaldet.evaluation.coco import percent
from focaldet.evaluation.diagnostics import ERROR_MEANINGS, Calibration, ConfusionMatrix
from focaldet.evaluation.error_pairs import ErrorPair
from focaldet.evaluation.score_curves import ScoreCurves
from focaldet.report.charts import Chart, Curve, chart_figure
from focaldet.report.page import bar_cell, section, table
from focaldet.weights.thresholds import LEAST_BOXES, ScoreThresholds

MOST_CLASS_CURVES = 6
MOST_POINTS_OF_CURVE = 200
MOST_PAIRS = 8
MOST_SHOWN_CLASSES = 20  # in the confusion matrix: those with the most errors


def error_sections(analysis: Analysis, pairs: Sequence[ErrorPair], *, stored: ScoreThresholds | None) -> str:
    """Scores, confusion of classes, kinds of errors, errors that come together, and calibration.

    `stored` are the scores that the weights keep, if they do and are known.
    """
    return (
        section("From which score on", *_score_parts(analysis, stored))
        + section("Which class is taken for which", *confusion_parts(analysis.confusion))
        + section("Kinds of errors", error_kind_table([("", analysis)]), pair_table(pairs, analysis.score))
        + section("How sure it is, and how often right", *_calibration_parts(analysis.calibration))
    )


def _score_parts(analysis: Analysis, stored: ScoreThresholds | None) -> list[str]:
    """A sentence, the table of the best scores, and charts of precision, recall and F1."""
    thresholds, curves = analysis.metrics.score_thresholds, analysis.curves
    if thresholds is None:
        return ["<p>No detection is right, so that no score is better than another.</p>"]
    best = thresholds.overall
    spread = curves.overall.best_range()
    around = "" if spread is None else f" From {spread[0]:.2f} to {spread[1]:.2f} F1 is within one point of it."
    text = (
        f"<p>The largest F1 over all classes is {percent(best.f1)} %, with the detections of a score of at least "
        f"<b>{best.score:.2f}</b>: {percent(best.precision)} % of them are right (precision), and "
        f"{percent(best.recall)} % of the objects are detected (recall), at IoU .5.{around} "
        f"{_describe_use(thresholds, stored, [each.name for each in analysis.metrics.per_class])}</p>"
    )
    charts = "".join(map(chart_figure, _score_charts(curves)))
    return [text, threshold_table(analysis), f'<div class="charts">{charts}</div>']


def _describe_use(best: ScoreThresholds, stored: ScoreThresholds | None, names: Sequence[str]) -> str:
    """Whether `predict` uses the best scores of these images, or those of others that the weights keep."""
    if stored is None:
        return f"<code>focaldet predict --score {best.overall.score:.2f}</code> takes it."
    used, here = ([f"{score:.2f}" for score in each.for_classes(names)] for each in (stored, best))
    if used == here:
        return (
            "The weights keep these scores, and <code>focaldet predict</code> uses them where no <code>--score</code> "
            f"is typed: that of the class, where it has {LEAST_BOXES} objects or more."
        )
    return (
        "Where no <code>--score</code> is typed, <code>focaldet predict</code> uses others, which the weights keep: "
        f"{escape(stored.describe(names))}."
    )


def threshold_table(analysis: Analysis) -> str:
    """The score with the largest F1 over all classes and of each, with what it reaches; nothing without any."""
    thresholds = analysis.metrics.score_thresholds
    if thresholds is None:
        return ""
    per_class = thresholds.per_class if len(analysis.curves.per_class) > 1 else ()
    rows = [
        [
            "all classes" if each.name is None else escape(each.name),
            f"{each.num_boxes:,}",
            f"{each.score:.2f}",
            *map(percent, (each.f1, each.precision, each.recall)),
        ]
        for each in (thresholds.overall, *per_class)
    ]
    return table(["Class", "Boxes", "Best score", "F1, %", "Precision, %", "Recall, %"], rows)


def _score_charts(curves: ScoreCurves) -> list[Chart]:
    """Precision, recall and F1 against the score, F1 of each class, and precision against recall."""
    overall = curves.overall
    named = {"all classes": overall}
    if len(curves.per_class) > 1:
        frequent = sorted(curves.per_class, key=lambda name: -curves.per_class[name].num_boxes)
        named |= {name: curves.per_class[name] for name in frequent[: MOST_CLASS_CURVES - 1]}
    named = {name: curve for name, curve in named.items() if len(curve.scores)}
    whole, score = (0.0, 100.0), "score of the detections that count"
    parts = {"precision": overall.precision, "recall": overall.recall, "F1": overall.f1}
    lines = [sample_curve(name, overall.scores, values) for name, values in parts.items()]
    f1 = [sample_curve(name, each.scores, each.f1) for name, each in named.items()]
    trade = [sample_curve(name, 100 * each.recall, each.precision) for name, each in named.items()]
    return [
        Chart("Precision, recall and F1", lines, x_label=score, y_label="%", x_range=(0.0, 1.0), y_range=whole),
        Chart("F1 of each class", f1, x_label=score, y_label="F1, %", x_range=(0.0, 1.0), y_range=whole),
        Chart(
            "Precision at each recall", trade, x_label="recall, %", y_label="precision, %", x_range=whole, y_range=whole
        ),
    ]


def sample_curve(name: str, x: Float64[numpy.ndarray, " P"], fractions: Float64[numpy.ndarray, " P"]) -> Curve:
    """A curve of at most `MOST_POINTS_OF_CURVE` points at even distances, in percent."""
    rows = numpy.unique(numpy.linspace(0, len(x) - 1, min(len(x), MOST_POINTS_OF_CURVE)).astype(int))
    return Curve(name, x[rows].tolist(), (100 * fractions[rows]).tolist())


def confusion_parts(confusion: ConfusionMatrix | None) -> list[str]:
    """The matrix as a table; of many classes those with the most errors."""
    if confusion is None:
        return []
    counts = numpy.array(confusion.counts)
    errors = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
    num_classes = len(confusion.class_names)
    worst = sorted(sorted(range(num_classes), key=lambda label: -int(errors[label]))[:MOST_SHOWN_CLASSES])
    shown = [*worst, num_classes]
    names = [*(escape(confusion.class_names[label]) for label in worst), "background"]
    rows = []
    for name, row in zip(names, shown, strict=True):
        total = int(counts[row].sum()) or 1
        cells = [_heat_cell(int(counts[row, column]), total, is_right=row == column) for column in shown]
        rows.append([name, *cells[:-1], "" if row == num_classes else cells[-1]])
    left = "" if len(worst) == num_classes else f" The {len(worst)} classes with the most errors of {num_classes}."
    text = (
        f"<p>Rows: what is there; columns: what was detected with a score of at least {confusion.score:.2f}. The last "
        "column are missed objects, the last row detections where nothing is. The darker, the more of its row; the "
        f"right ones are framed.{left}</p>"
    )
    return [table(["is ↓ detected as →", *names[:-1], "missed"], rows), text]


def _heat_cell(count: int, total: int, *, is_right: bool) -> str:
    """A number before a shade for its part of the row."""
    frame = " right" if is_right else ""
    return f'<div class="heat{frame}" style="--heat:{100 * count / total:.0f}%">{count:,}</div>'


def error_kind_table(analyses: Sequence[tuple[str, Analysis]]) -> str:
    """TIDE's kinds of errors: how many, and by how much AP50 would rise without them; for one run or several."""
    longest = max((each.ap50_gain for _, analysis in analyses for each in analysis.error_kinds), default=0.0) or 1.0
    heads = ["Kind", "Meaning"]
    for name, _ in analyses:
        heads += [f"{escape(name)}: number", "AP50 would gain"] if name else ["Number", "AP50 would gain"]
    rows = []
    for number, (kind, meaning) in enumerate(ERROR_MEANINGS.items()):
        cells = []
        for _, analysis in analyses:
            each = analysis.error_kinds[number]
            cells += [f"{each.count:,}", bar_cell(percent(each.ap50_gain), each.ap50_gain / longest)]
        rows.append([kind, meaning, *cells])
    text = (
        "<p>TIDE's kinds: what is wrong with each detection, whatever its score, and by how many points AP50 would "
        "rise if there were no error of that kind. They do not add up: an error that is gone makes others "
        "matter less.</p>"
    )
    return table(heads, rows, text_columns=[1]) + text


def pair_table(pairs: Sequence[ErrorPair], score: float) -> str:
    """The errors that come together most; nothing where none do."""
    if not pairs:
        return ""
    rows = [
        [escape(pair.first), escape(pair.second), str(pair.num_images), f"{pair.expected:.1f}"]
        for pair in pairs[:MOST_PAIRS]
    ]
    text = (
        f"<p>Errors that come together in one image more often than by chance, from a score of {score:.2f} on: they "
        "may have one cause, such as crowding, blur, or a habit of whoever drew the boxes.</p>"
    )
    return text + table(["Error", "and", "Images with both", "By chance"], rows, text_columns=[1])


def _calibration_parts(calibration: Calibration) -> list[str]:
    """The reliability diagram, its table, and the error in a sentence."""
    if not calibration.bins:
        return []
    scores = [each.mean_score for each in calibration.bins]
    precision = [100 * each.precision for each in calibration.bins]
    curves = [Curve("this detector", scores, precision), Curve("score and precision equal", [0.0, 1.0], [0.0, 100.0])]
    chart = Chart(
        "Reliability",
        curves,
        x_label="mean score of the detections",
        y_label="of them right, %",
        x_range=(0.0, 1.0),
        y_range=(0.0, 100.0),
        dots=True,
    )
    rows = [
        [
            f"{each.low:.1f} to {each.high:.1f}",
            f"{each.count:,}",
            f"{100 * each.mean_score:.1f}",
            percent(each.precision),
        ]
        for each in calibration.bins
    ]
    mean = sum(each.count * (each.mean_score - each.precision) for each in calibration.bins)
    way = "too sure of itself" if mean > 0 else "not sure enough of itself"
    per_class = ", ".join(f"{escape(name)} {percent(value)}" for name, value in calibration.per_class.items())
    text = (
        f"<p>Expected calibration error {percent(calibration.ece)} points: so far is the score from the fraction that "
        f"is right, in the mean over all detections; on the whole the detector is {way}. By class: {per_class}.</p>"
    )
    scores_table = table(["Score", "Detections", "Mean score, %", "Right, %"], rows)
    return [text, f'<div class="charts">{chart_figure(chart)}<div>{scores_table}</div></div>']
