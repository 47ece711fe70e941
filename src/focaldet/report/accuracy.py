"""The numbers of a report: headline cards, COCO's table with intervals, the classes, and groups of images."""

from collections.abc import Mapping
from html import escape

from focaldet.data.formats.text import quantity
from focaldet.evaluation.analysis import Analysis
from focaldet.evaluation.coco import HEADLINES, Metrics, headline, percent
from focaldet.evaluation.intervals import Interval
from focaldet.report.page import bar_cell, section, table

CARDS = ("ap", "ap50", "ap75", "ar100")
CLASS_COLUMNS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")


def accuracy_sections(analysis: Analysis) -> str:
    """The cards, the twelve numbers, each class, and AP by the number of objects in an image."""
    metrics = analysis.metrics
    rows = []
    for field in HEADLINES:
        name, text = headline(field, max_detections=metrics.max_detections)
        rows.append([name, percent(getattr(metrics, field)), interval_text(analysis.intervals.get(field)), text])
    images = (
        f"<p>95 % interval: the middle 95 % of what {analysis.rounds} samples of "
        f"{quantity(metrics.num_images, 'image')} give, drawn from these with repetition. A dash: no object has "
        "that size.</p>"
    )
    numbers = table(["Number", "%", "95 % interval", "Meaning"], rows, text_columns=[3])
    return (
        headline_cards(metrics, analysis.intervals)
        + section("The twelve COCO numbers", numbers, images)
        + section("Per class and size", class_table(metrics))
        + section("Images with few and with many objects", _group_table(analysis))
    )


def headline_cards(metrics: Metrics, intervals: Mapping[str, Interval]) -> str:
    """The four numbers that matter most, in percent, with their intervals, and the time of an image."""
    cards = []
    for field in CARDS:
        name, meaning = headline(field, max_detections=metrics.max_detections)
        spread = f" · {interval_text(intervals[field])}" if field in intervals else ""
        cards.append((name, percent(getattr(metrics, field)), f"{meaning}{spread}"))
    if metrics.milliseconds_per_image is not None:
        cards.append(("Speed", f"{metrics.milliseconds_per_image:.1f}", "milliseconds per image"))
    html = "".join(
        f'<div class="card"><h2>{name}</h2><p class="value">{value}</p><p>{meaning}</p></div>'
        for name, value, meaning in cards
    )
    return f'<section aria-label="Headline numbers" class="cards">{html}</section>\n'


def interval_text(interval: Interval | None) -> str:
    """Both ends in percent, such as "34.1 to 40.2"; a dash where there is none."""
    return "-" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def class_table(metrics: Metrics) -> str:
    """The numbers of each class, the best first, with AP as a bar too; in percent."""
    rows = []
    for row in sorted(metrics.per_class, key=lambda row: (row.ap is None, -(row.ap or 0.0))):
        values = [percent(getattr(row, column)) for column in CLASS_COLUMNS[1:]]
        rows.append([escape(row.name), f"{row.num_boxes:,}", bar_cell(percent(row.ap), row.ap or 0.0), *values])
    heads = [headline(column, max_detections=metrics.max_detections)[0] for column in CLASS_COLUMNS]
    return table(["Class", "Boxes", *heads], rows)


def _group_table(analysis: Analysis) -> str:
    """AP by the number of objects in an image; nothing where all have the same."""
    if len(analysis.groups) < 2:
        return ""
    rows = [[name, f"{count:,}", bar_cell(percent(ap), ap or 0.0)] for name, (count, ap) in analysis.groups.items()]
    return table(["Objects in the image", "Images", "AP, %"], rows)
