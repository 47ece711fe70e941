"""`report.html`: a trained detector on one page that needs no network, no script and no other file."""

import os
from html import escape
from pathlib import Path

import torch

from focaldet import config as configs
from focaldet.data.dataset import Dataset, ImageSource
from focaldet.data.formats.text import quantity
from focaldet.evaluation.analysis import analyze_detections, confident_outcomes
from focaldet.evaluation.coco import Metrics
from focaldet.evaluation.error_pairs import pair_errors
from focaldet.evaluation.results import ResultRows, read_results
from focaldet.report.accuracy import accuracy_sections
from focaldet.report.errors import error_sections
from focaldet.report.evaluated import EvaluatedDetector, describe_run
from focaldet.report.facts import facts_sections
from focaldet.report.history import history_sections, read_history
from focaldet.report.image_pairs import even_images, worst_images
from focaldet.report.page import header, section, write_page
from focaldet.types import Detections

REPORT_STYLE = """
.heat { margin: -5px -12px; padding: 5px 12px; background: color-mix(in srgb, var(--bar) var(--heat), transparent); }
.heat.right { outline: 2px solid var(--soft); outline-offset: -3px; }
.pair.several div { grid-template-columns: repeat(auto-fit, minmax(min(100%, 240px), 1fr)); }
section > p { max-width: 80ch; }
details { margin-top: 12px; }
"""


def write_report(
    run: Path,
    source: ImageSource,
    *,
    metrics: Metrics | None = None,
    predictions: Path | None = None,
    out: Path | None = None,
    training: Dataset | None = None,
    detector: EvaluatedDetector | None = None,
) -> Path:
    """Write the page of a run and return its path.

    The page has the COCO numbers with their intervals, the best scores, confusion, kinds of errors and calibration, the
    curves of `metrics.csv`, the images with the most errors and twelve others, and the facts of data, settings and
    machine. Parts whose file the folder lacks are skipped.

    Args:
        run: the run folder.
        source: the images that were evaluated; they are loaded as in epoch 0.
        metrics: the numbers; computed from `predictions` by default.
        predictions: the COCO result file of these images; `predictions.json` in the run folder by default.
        out: the page; `report.html` in the run folder by default.
        training: the images that were trained on, for the facts of the data.
        detector: how the detector and the images are named, and what its weights keep; by default those of the run.

    Raises:
        DataError: `predictions` cannot be read or is of other images, or an image cannot be read.
    """
    settings = configs.read_mapping(run / "config.yaml") if (run / "config.yaml").is_file() else {}
    name, path = run.absolute().name, out or run / "report.html"
    evaluation = evaluation_sections(
        run, source, metrics=metrics, predictions=predictions, page=path, detector=detector
    )
    write_page(
        path,
        f"{name} · focaldet report",
        header(name, model=str(settings.get("model") or "")),
        evaluation,
        history_sections(read_history(run)),
        facts_sections(run, [*([] if training is None else [training]), source.dataset]),
        style=REPORT_STYLE,
    )
    return path


def evaluation_sections(
    run: Path,
    source: ImageSource,
    *,
    page: Path,
    metrics: Metrics | None = None,
    predictions: Path | None = None,
    detector: EvaluatedDetector | None = None,
) -> str:
    """What a page says of the detections of a run on the images of `source`: numbers, errors, images.

    Raises:
        DataError: see `write_report`.
    """
    dataset, detector = source.dataset, detector or describe_run(run)
    rows = read_results(
        predictions or run / "predictions.json", image_ids=dataset.image_ids.tolist(), classes=dataset.classes
    )
    analysis = analyze_detections(dataset, rows, metrics=metrics, image_limit=detector.image_limit)
    detections = detections_per_image(rows, dataset)
    outcomes = confident_outcomes(dataset, detections, score=analysis.score)
    pairs = pair_errors(outcomes, dataset.classes.names)
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in analysis.metrics.notes)
    worst = worst_images(source, detections, analysis.images, score=analysis.score)
    return (
        f"<p>{_describe_evaluation(dataset, analysis.metrics)}</p>{notes}"
        + accuracy_sections(analysis)
        + error_sections(analysis, pairs, stored=detector.thresholds)
        + section("The worst images", *worst, hard_link(run, page, detector) if worst else "")
        + section("Images", *even_images(source, detections, score=analysis.score))
    )


def detections_per_image(rows: ResultRows, dataset: Dataset) -> list[Detections]:
    """The rows of a result file as one `Detections` per image of `dataset`, best first."""
    boxes = torch.from_numpy(rows.xywh).float()
    boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
    scores, labels, positions = (torch.from_numpy(column) for column in (rows.scores, rows.labels, rows.image_indices))
    order = torch.argsort(scores, descending=True, stable=True)
    by_image = order[torch.argsort(positions[order], stable=True)]
    counts = torch.bincount(positions, minlength=len(dataset)).tolist()
    return [
        Detections(boxes[chosen], scores[chosen].float(), labels[chosen], dataset.classes.names)
        for chosen in torch.split(by_image, counts)
    ]


def _describe_evaluation(dataset: Dataset, metrics: Metrics) -> str:
    return (
        f"Evaluated on <b>{escape(dataset.name)}</b>: {quantity(metrics.num_images, 'image')}, "
        f"{quantity(metrics.num_boxes, 'box', 'boxes')} of {quantity(len(metrics.per_class), 'class', 'classes')}, "
        f"{quantity(metrics.num_detections, 'detection')}. AP, precision, recall and F1 are percent, scores 0 to 1."
    )


def hard_link(run: Path, page: Path, detector: EvaluatedDetector) -> str:
    """A link to the explorers that were made of the run, or how to make one."""
    explorers = sorted(run.glob("hard-*/index.html"))
    if not explorers:
        command = escape(detector.study_command())
        return f"<p>Every object and every error, to sort and to filter: <code>{command}</code></p>"
    links = (
        f'<a href="{escape(os.path.relpath(each, page.parent))}">{escape(each.parent.name)}</a>' for each in explorers
    )
    return f"<p>Every object and every error, to sort and to filter: {', '.join(links)}</p>"
