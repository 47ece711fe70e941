"""Several runs on one page: their numbers, curves, errors and settings beside each other, on the same images."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from focaldet import config as configs
from focaldet.data.dataset import ImageSource
from focaldet.data.formats.text import quantity
from focaldet.errors import ConfigError
from focaldet.evaluation.coco import HEADLINES, headline, percent
from focaldet.evaluation.intervals import compare_metrics
from focaldet.report.accuracy import interval_text
from focaldet.report.charts import Chart, Curve, chart_section
from focaldet.report.errors import error_kind_table, sample_curve
from focaldet.report.facts import NOT_SETTINGS, data_table, setting_text
from focaldet.report.history import read_curve
from focaldet.report.image_pairs import even_indices, image_pair
from focaldet.report.kept_detections import KeptDetections
from focaldet.report.page import bar_cell, header, section, table, write_page
from focaldet.report.run_details import (
    ReportedRun,
    confusion_section,
    environment_section,
    pair_section,
    read_reported_run,
    score_section,
    worst_image_section,
)
from focaldet.report.run_report import REPORT_STYLE

NUM_SHARED_IMAGES = 6
MOST_RUNS = 6  # more curves than that cannot be distinguished


def write_side_by_side(runs: Sequence[KeptDetections], source: ImageSource, path: Path) -> Path:
    """Write the page of several runs, whose detections are of the images of `source`; return its path.

    Raises:
        ConfigError: more runs than can be distinguished.
        DataError: a result file cannot be read or is of other images.
    """
    if len(runs) > MOST_RUNS:
        raise ConfigError(f"report: at most {MOST_RUNS} runs fit on a page, got {len(runs)}")
    names = name_runs([kept.run for kept in runs])
    read = [read_reported_run(name, kept, source) for name, kept in zip(names, runs, strict=True)]
    dataset, first = source.dataset, read[0].analysis.metrics
    text = (
        f"{quantity(len(read), 'run')} on <b>{escape(dataset.name)}</b>: {quantity(first.num_images, 'image')}, "
        f"{quantity(first.num_boxes, 'box', 'boxes')}. AP, AR, F1, precision and recall are percent, scores 0 to 1."
    )
    write_page(
        path,
        "runs side by side · focaldet report",
        header("Runs side by side", text),
        section("Numbers", _number_table(read)),
        section("Differences on these images", _difference_table(read)),
        chart_section("Curves", [*_history_charts(read), *_shared_score_charts(read)]),
        score_section(read),
        section("Per class", _class_table(read)),
        confusion_section(read),
        section("Kinds of errors", error_kind_table([(run.name, run.analysis) for run in read])),
        pair_section(read, source),
        section("Where the time went", _time_table(read)),
        section("Images", *_shared_images(read, source)),
        worst_image_section(read, source, page=path),
        section("Settings that differ", _setting_table(read)),
        section("Data", data_table([dataset])),
        environment_section(read),
        style=REPORT_STYLE,
    )
    return path


def name_runs(folders: Sequence[Path]) -> list[str]:
    """The name of each folder, with as many of the folders above it as it takes to tell them apart."""
    parts = [folder.absolute().parts for folder in folders]
    depth = 1
    while len({each[-depth:] for each in parts}) < len(parts):
        depth += 1
    return ["/".join(each[-depth:]) for each in parts]


def _number_table(runs: Sequence[ReportedRun]) -> str:
    """A row for each run: AP with its interval, the other numbers, and the best score; the best of a column is bold."""
    fields = [field for field in HEADLINES if not field.startswith("ar") or field == "ar100"]
    limit = runs[0].analysis.metrics.max_detections
    heads = ["Run", "Model", *(headline(field, max_detections=limit)[0] for field in fields)]
    heads[3:3] = ["95 % interval"]
    best = {field: max((getattr(run.analysis.metrics, field) or 0.0 for run in runs), default=0.0) for field in fields}
    rows = []
    for run in runs:
        cells = []
        for field in fields:
            value = getattr(run.analysis.metrics, field)
            text = percent(value)
            cells.append(f"<b>{text}</b>" if value is not None and value == best[field] > 0 else text)
        cells[1:1] = [interval_text(run.analysis.intervals.get("ap"))]
        thresholds = run.analysis.metrics.score_thresholds
        scores = (
            ["-", "-"] if thresholds is None else [percent(thresholds.overall.f1), f"{thresholds.overall.score:.2f}"]
        )
        calibration = percent(run.analysis.calibration.ece)
        rows.append([escape(run.name), escape(str(run.settings.get("model", ""))), *cells, *scores, calibration])
    return table([*heads, "Best F1", "at score", "Calibration error"], rows, text_columns=[1])


def _difference_table(runs: Sequence[ReportedRun]) -> str:
    """Each run against the first one: the difference of AP, AP50 and AP75 with its interval, and a word on it."""
    first = runs[0]
    rows: list[list[str]] = []
    for run in runs[1:]:
        differences = compare_metrics(first.analysis.resampled, run.analysis.resampled)
        for field in ("ap", "ap50", "ap75"):
            if field not in differences:
                continue
            each = differences[field]
            low, high = each.interval
            word = "higher" if low > 0 else "lower" if high < 0 else "may be chance"
            name = escape(run.name) if field == "ap" else f'<span class="soft">{escape(run.name)}</span>'
            values = [f"{100 * each.value:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}", percent(each.probability)]
            rows.append([name, HEADLINES[field][0], *values, word])
    text = (
        f"<p>Against {escape(first.name)}, in points: both on the same samples of the images (paired bootstrap, "
        f"{first.analysis.rounds} rounds). The interval is of the images alone: another seed of a training moves AP "
        "too, and of that one run says nothing; <code>focaldet compare</code> weighs seeds as well.</p>"
    )
    heads = ["Run", "Number", "Difference", "95 % interval", "Higher in % of rounds", "So it is"]
    return table(heads, rows, text_columns=[1, 5]) + text if rows else ""


def _history_charts(runs: Sequence[ReportedRun]) -> list[Chart]:
    """AP by epoch, the loss and the learning rate by step, of the runs that have them."""
    with_ap = [run for run in runs if run.history.evaluations]
    with_loss = [run for run in runs if run.history.steps]
    precision = [read_curve(run.history.evaluations, "epoch", "ap", run.name, 100.0) for run in with_ap]
    losses = [read_curve(run.history.steps, "step", "loss", run.name).smooth() for run in with_loss]
    rates = [read_curve(run.history.steps, "step", "learning_rate", run.name).smooth() for run in with_loss]
    charts = []
    if precision:
        whole = (0.0, 100.0)
        charts.append(Chart("AP", precision, x_label="epoch", y_label="AP, %", y_range=whole, dots=True))
    if losses:
        charts.append(
            Chart("Training loss (of the same losses alone comparable)", losses, x_label="step", y_label="loss")
        )
    if any(rate.y for rate in rates):
        charts.append(Chart("Learning rate", rates, x_label="step", y_label="learning rate"))
    return charts


def _shared_score_charts(runs: Sequence[ReportedRun]) -> list[Chart]:
    """F1 at each score, and precision at each recall, over all classes."""
    whole = (0.0, 100.0)
    curves = [(run.name, run.analysis.curves.overall) for run in runs if len(run.analysis.curves.overall.scores)]
    f1 = [sample_curve(name, each.scores, each.f1) for name, each in curves]
    trade = [sample_curve(name, 100 * each.recall, each.precision) for name, each in curves]
    if not curves:
        return []
    score = "score of the detections that count"
    return [
        Chart("F1", f1, x_label=score, y_label="F1, %", x_range=(0.0, 1.0), y_range=whole),
        Chart("Precision", trade, x_label="recall, %", y_label="precision, %", x_range=whole, y_range=whole),
        _reliability_chart(runs),
    ]


def _reliability_chart(runs: Sequence[ReportedRun]) -> Chart:
    """The fraction of right detections at each score."""
    curves = []
    for run in runs:
        bins = run.analysis.calibration.bins
        curves.append(Curve(run.name, [each.mean_score for each in bins], [100 * each.precision for each in bins]))
    whole = (0.0, 100.0)
    label = "mean score of the detections"
    return Chart("Reliability", curves, x_label=label, y_label="of them right, %", x_range=(0.0, 1.0), y_range=whole)


def _class_table(runs: Sequence[ReportedRun]) -> str:
    """AP of each class in each run."""
    rows, values_of = [], [{row.name: row.ap for row in run.analysis.metrics.per_class} for run in runs]
    for row in runs[0].analysis.metrics.per_class:
        values = [known.get(row.name) for known in values_of]
        rows.append([escape(row.name), f"{row.num_boxes:,}", *(bar_cell(percent(ap), ap or 0.0) for ap in values)])
    return table(["Class", "Boxes", *(f"AP of {escape(run.name)}" for run in runs)], rows)


def _time_table(runs: Sequence[ReportedRun]) -> str:
    """Seconds of each part of the work in each run; nothing where none was logged."""
    parts = list(dict.fromkeys(part for run in runs for part in run.history.seconds))
    rows = [[escape(part), *(_seconds(run.history.seconds.get(part)) for run in runs)] for part in parts]
    total = ["all epochs", *(_seconds(sum(run.history.seconds.values()) or None) for run in runs)]
    return table(["Part, seconds", *(escape(run.name) for run in runs)], [*rows, total]) if rows else ""


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"


def _shared_images(runs: Sequence[ReportedRun], source: ImageSource) -> list[str]:
    """Images at even distances: the truth, then the detections of each run from its best score on."""
    scores = ", ".join(f"{escape(run.name)} {run.analysis.score:.2f}" for run in runs)
    text = f"<p>Truth first, then the detections of each run from its best score on: {scores}.</p>"
    indices = even_indices(len(source.dataset), NUM_SHARED_IMAGES)
    return [
        text,
        *(
            image_pair(source, i, [(run.name, run.detections[i].above(run.analysis.score)) for run in runs])
            for i in indices
        ),
    ]


def _setting_table(runs: Sequence[ReportedRun]) -> str:
    """The settings that are not the same in all runs."""
    flat = [configs.flatten({k: v for k, v in run.settings.items() if k not in NOT_SETTINGS}) for run in runs]
    names = list(dict.fromkeys(name for each in flat for name in each))
    rows = []
    for name in names:
        values = [
            setting_text(name, each[name], run.settings) if name in each else "-"
            for each, run in zip(flat, runs, strict=True)
        ]
        if len(set(values)) > 1:
            rows.append([escape(name), *(f"<code>{escape(value)}</code>" for value in values)])
    columns = list(range(1, len(runs) + 1))
    return table(["Setting", *(escape(run.name) for run in runs)], rows, text_columns=columns) if rows else ""
