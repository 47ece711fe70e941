"""`report.html`: a run on one page that needs no network, no script and no other file."""

import base64
import csv
import io
import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

import torch

from focaldet import config as configs
from focaldet import draw
from focaldet.data.dataset import Dataset, ImageSource
from focaldet.evaluation.coco import HEADLINES, ClassMetrics, Metrics, evaluate_detections, percent
from focaldet.evaluation.results import ResultRows, read_results
from focaldet.report.charts import Line, line_chart
from focaldet.report.page import whole_page
from focaldet.types import Detections, Target

NUM_PICTURES = 12
PICTURE_PX = 440  # long side; with JPEG quality 80 twelve pairs stay near one megabyte
JPEG_QUALITY = 80
CARDS = ("ap", "ap50", "ap75", "ar100")
CLASS_COLUMNS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")


def write_report(
    run: Path,
    source: ImageSource,
    *,
    metrics: Metrics | None = None,
    predictions: Path | None = None,
    score: float = 0.3,
) -> Path:
    """Write `report.html` into a run folder and return its path.

    It holds the COCO numbers over all classes and per class, the curves of `metrics.csv`, twelve pictures with truth
    and detections, what was odd in the data, and the settings. What the folder lacks is left out.

    Args:
        run: the run folder.
        source: the images that were evaluated; they are loaded as in epoch 0.
        metrics: the numbers; counted from `predictions` by default.
        predictions: the COCO result file of these images; `predictions.json` in the run folder by default.
        score: detections below it are not drawn.

    Raises:
        DataError: `predictions` cannot be read or is one of other images, or a picture cannot be read.
    """
    dataset = source.dataset
    rows = read_results(
        predictions or run / "predictions.json", image_ids=dataset.image_ids.tolist(), classes=dataset.classes
    )
    detections = detections_of(rows, dataset)
    metrics = metrics or evaluate_detections(dataset, dict(enumerate(detections)))
    sections = [
        _headline(run, dataset, metrics),
        _phases(run / "config.yaml"),
        _curves(run / "metrics.csv"),
        _coco_table(metrics),
        _class_table(metrics),
        _pictures(source, detections, score=score),
        _findings(dataset),
        _settings(run),
    ]
    path = run / "report.html"
    path.write_text(whole_page(f"{run.absolute().name} · focaldet report", "".join(sections)), encoding="utf-8")
    return path


def detections_of(rows: ResultRows, dataset: Dataset) -> list[Detections]:
    """The columns of a result file as one `Detections` per image of `dataset`, best first."""
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


def truth_as_detections(target: Target, names: tuple[str, ...]) -> Detections:
    """Ground truth in the form that `draw.boxes` takes; ignored boxes are called so."""
    labels = target.labels + target.ignored * len(names)
    return Detections(target.boxes, torch.ones(len(labels)), labels, (*names, *(f"{name} (ignored)" for name in names)))


def _headline(run: Path, dataset: Dataset, metrics: Metrics) -> str:
    cards = [_card(HEADLINES[field][0], percent(getattr(metrics, field)), HEADLINES[field][1]) for field in CARDS]
    if metrics.milliseconds_per_image is not None:
        cards.append(_card("Speed", f"{metrics.milliseconds_per_image:.1f}", "milliseconds per image"))
    sentence = (
        f"Evaluated on <b>{escape(dataset.name)}</b>: {metrics.num_images:,} images, {metrics.num_boxes:,} boxes of "
        f"{len(metrics.per_class)} classes, {metrics.num_detections:,} detections."
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in metrics.notes)
    model = configs.read_mapping(run / "config.yaml").get("model") if (run / "config.yaml").is_file() else None
    model_line = f'<p class="model">{escape(str(model))}</p>' if model else ""
    return (
        f"<header><h1>{escape(run.absolute().name)}</h1>{model_line}<p>{sentence}</p>{notes}</header>\n"
        f'<section aria-label="Headline numbers" class="cards">{"".join(cards)}</section>\n'
    )


def _card(name: str, value: str, meaning: str) -> str:
    return f'<div class="card"><h2>{name}</h2><p class="value">{value}</p><p>{meaning}</p></div>'


def _phases(path: Path) -> str:
    """The phases of the run in the words of its settings; nothing where there are none."""
    phases = configs.read_mapping(path).get("phases") if path.is_file() else None
    if not isinstance(phases, list) or not phases:
        return ""
    rows, begin = [], 1
    for phase in phases:
        own = {name: value for name, value in phase.items() if name != "epochs"}
        text = json.dumps(own, ensure_ascii=False) if own else "as the run"
        rows.append(f"<li>epochs {begin} to {begin + phase['epochs'] - 1}: <code>{escape(text)}</code></li>")
        begin += phase["epochs"]
    return f"<section><h2>Phases</h2><ol>{''.join(rows)}</ol></section>\n"


def _curves(path: Path) -> str:
    """Losses over the steps and AP over the epochs; nothing where no training left its rows."""
    if not path.is_file():
        return ""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    steps, evaluations = ([row for row in rows if row.get("kind") == kind] for kind in ("step", "evaluation"))
    parts = [name for name in (steps[0] if steps else {}) if name.endswith("_loss")]
    losses = [_line(steps, "step", name, name.removesuffix("_loss").replace("_", " ")) for name in ("loss", *parts)]
    precisions = [_line(evaluations, "epoch", name, HEADLINES[name][0]) for name in ("ap50", "ap", "ap75")]
    charts = []
    if steps:
        charts.append(line_chart(losses, title="Training loss", x_label="step"))
    if evaluations:
        charts.append(line_chart(precisions, title="Average precision", x_label="epoch", y_top=1.0))
    return f'<section><h2>Curves</h2><div class="charts">{"".join(charts)}</div></section>\n' if charts else ""


def _line(rows: Sequence[dict[str, str]], x: str, y: str, name: str) -> Line:
    points = [(_number(row.get(x)), _number(row.get(y))) for row in rows]
    return Line(name, [point[0] for point in points], [point[1] for point in points])


def _number(text: str | None) -> float:
    """A cell of metrics.csv; what a row does not have becomes NaN, which a chart leaves out."""
    try:
        return float(text or math.nan)
    except ValueError:
        return math.nan


def _coco_table(metrics: Metrics) -> str:
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td>{percent(getattr(metrics, field))}</td>'
        f'<td class="text">{meaning}</td></tr>'
        for field, (name, meaning) in HEADLINES.items()
    )
    return (
        '<section><h2>The twelve COCO numbers</h2><div class="wide"><table><thead><tr><th class="text">Number</th>'
        f'<th>%</th><th class="text">Meaning</th></tr></thead><tbody>{rows}</tbody></table></div>'
        "<p>- stands where there is no box of that size to be found.</p></section>\n"
    )


def _class_table(metrics: Metrics) -> str:
    heads = "".join(f"<th>{HEADLINES[column][0]}</th>" for column in CLASS_COLUMNS)
    rows = "".join(_class_row(one) for one in sorted(metrics.per_class, key=_best_first))
    return (
        '<section><h2>Per class</h2><div class="wide"><table><thead><tr><th class="text">Class</th><th>Boxes</th>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div></section>\n"
    )


def _best_first(one: ClassMetrics) -> tuple[bool, float]:
    return one.ap is None, -(one.ap or 0.0)


def _class_row(one: ClassMetrics) -> str:
    cells = "".join(f"<td>{percent(getattr(one, column))}</td>" for column in CLASS_COLUMNS[1:])
    bar = f'<td class="bar" style="--share:{100 * (one.ap or 0):.1f}%">{percent(one.ap)}</td>'
    return f'<tr><th scope="row" class="text">{escape(one.name)}</th><td>{one.num_boxes:,}</td>{bar}{cells}</tr>'


def _pictures(source: ImageSource, detections: Sequence[Detections], *, score: float) -> str:
    """Pictures at even distances through the split: chosen before anybody saw how good they are."""
    count = min(NUM_PICTURES, len(source.dataset))
    places = [number * len(source.dataset) // count for number in range(count)]
    figures = "".join(_picture(source, place, detections[place].above(score)) for place in places)
    return (
        f"<section><h2>Pictures</h2><p>Ground truth on the left, detections with a score of at least {score:g} on the "
        f"right. The pictures stand at even distances in the split; none was picked.</p>{figures}</section>\n"
    )


def _picture(source: ImageSource, place: int, found: Detections) -> str:
    image, target = source.load(place, epoch=0)
    truth = truth_as_detections(target, source.dataset.classes.names)
    name = source.dataset.path(place).name
    left = _jpeg(image, truth, show_scores=False, alt=f"{name}: ground truth: {_counted(truth)}")
    right = _jpeg(image, found, show_scores=True, alt=f"{name}: detections: {_counted(found)}")
    caption = f"{name} — ground truth: {_counted(truth)}; detections: {_counted(found)}"
    return f'<figure class="pair"><div>{left}{right}</div><figcaption>{escape(caption)}</figcaption></figure>'


def _jpeg(image: draw.AnyImage, shown: Detections, *, show_scores: bool, alt: str) -> str:
    picture = draw.to_image(image)
    scale = min(1.0, PICTURE_PX / max(picture.size))
    small = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    ratios = small.width / picture.width, small.height / picture.height
    drawn = draw.boxes(small, shown.scale(*ratios), show_scores=show_scores)
    buffer = io.BytesIO()
    drawn.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)  # thin coloured lines need their colour
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img src="data:image/jpeg;base64,{data}" width="{small.width}" height="{small.height}" alt="{escape(alt)}">'
    )


def _counted(detections: Detections) -> str:
    """For example `12 cell, 1 dog`."""
    names = detections.names
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names)) or "nothing"


def _findings(dataset: Dataset) -> str:
    lines = dataset.problems.lines()
    listed = "".join(f"<li>{escape(line)}</li>" for line in lines)
    text = f"<ul>{listed}</ul>" if lines else "<p>Nothing odd was found in the annotations.</p>"
    return f"<section><h2>Data</h2>{text}</section>\n"


def _settings(run: Path) -> str:
    texts = [(run / name, name) for name in ("config.yaml", "environment.json") if (run / name).is_file()]
    blocks = "".join(
        f"<details{' open' if name == 'config.yaml' else ''}><summary>{name}</summary>"
        f'<pre tabindex="0">{escape(path.read_text(encoding="utf-8"))}</pre></details>'
        for path, name in texts
    )
    return f"<section><h2>Settings</h2>{blocks}</section>\n" if blocks else ""
