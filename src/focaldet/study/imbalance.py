"""Figure 4 of the paper on one's own detector and data: do the many easy examples hold the loss, or a few hard ones?"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, Unpack

import numpy
import torch

from focaldet.config import make_folder
from focaldet.data.dataset import DataConfig, FileSource
from focaldet.data.formats.text import list_names
from focaldet.data.loading.loader import Loader
from focaldet.errors import ConfigError, NonFiniteLossError
from focaldet.evaluation.evaluate import EvaluationSetup, evaluation_folder, relabel_target, set_up_evaluation
from focaldet.evaluation.inference import InferenceFields, InferenceOptions
from focaldet.models.base import Margins
from focaldet.report.page import whole_page
from focaldet.runtime import (
    Precision,
    Process,
    Progress,
    autocast,
    eval_mode,
    gather_objects,
    join_processes,
    pick_device,
    pick_precision,
)
from focaldet.study.loss_tally import SIDES, LossTally
from focaldet.study.plots import Curve, Plot, embedded, write_curves, write_plot

ELSEWHERE = Path("runs/study/imbalance")  # of weights without a run folder
GAMMAS = (0.0, 0.5, 1.0, 2.0)
HARDEST = {"positives": 0.2, "negatives": 0.01}  # the tails that are told in numbers; the first one is the paper's
FEW, SAME = 0.1, 0.05  # up to which a share of the loss is called little, and a difference none
POINTS = 201


@dataclass(frozen=True, slots=True)
class LossHeld:
    """Who holds the focal loss without α for one γ.

    `hardest_positives` and `hardest_negatives` are the shares in 0…1 of their side's loss that the hardest 20 % of the
    positives and 1 % of the negatives hold; None where that side has no loss. The losses are sums over the split, and
    `negatives_over_positives` their ratio, None without loss of positives.
    """

    gamma: float
    positive_loss: float
    negative_loss: float
    negatives_over_positives: float | None
    hardest_positives: float | None
    hardest_negatives: float | None


@dataclass(frozen=True, slots=True)
class Imbalance:
    """Figure 4 in numbers. A decision is one class at one anchor, with a softmax one anchor; what the loss leaves out
    does not count.

    `num_boxes` are those that the detector was to find; `num_left_out` those marked as ignored or of a class that it
    does not know. `meaning` is in words what the numbers say, `notes` what a reader must know beside them.
    """

    split: str
    num_images: int
    num_boxes: int
    num_left_out: int
    num_positives: int
    num_negatives: int
    negatives_per_positive: float | None
    gammas: tuple[LossHeld, ...]
    meaning: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ImbalanceStudy:
    """What `study_imbalance` found, and the page that shows it."""

    page: Path
    imbalance: Imbalance


def study_imbalance(
    run: str | Path,
    data: DataConfig | str | Path | None = None,
    *,
    split: str = "val",
    out: Path | None = None,
    gammas: Sequence[float] = GAMMAS,
    options: InferenceOptions = InferenceOptions(),  # noqa: B008  frozen
    progress: Progress | None = None,
    **fields: Unpack[InferenceFields],
) -> ImbalanceStudy:
    """Draw figure 4 of the paper (section 5.1) for a trained detector: the cumulative loss of all anchors of a split.

    Leaves in `out`: `positives` and `negatives` as `.svg` and `.png` (only a side that has any), `curves.csv`,
    `imbalance.json` with all numbers, `index.html` with all of it. The loss is the focal loss without α. Under
    `torchrun` every process takes a share of the images and the first one writes.

    Args:
        run: a run folder (its best weights), a weights file, or a name such as `torchvision:coco_v1`.
        data: the images and annotations; those of the run where it is left out.
        split: train, val, test, or a split's own name in the data; a single annotation file is taken whole.
        out: folder for the files; `imbalance-<split>` in the run folder or `runs/study/imbalance` by default.
        gammas: exponents of the loss, each ≥ 0 and only once.
        options: size, device, precision and so on.
        progress: called with the images done and the images there are.
        fields: fields of `InferenceOptions` by keyword, laid over `options`.

    Raises:
        CheckpointError: no weights, or damaged ones.
        DataError: data that cannot be read.
        ConfigError: a setting out of range, a split without images, no class in common between detector and data, a
            detector that does not tell its margins, or `out` cannot be made.
        NonFiniteLossError: the detector gives NaN or infinite logits.
    """
    _check_gammas(gammas)
    options = replace(options, **fields)
    opened = set_up_evaluation(run, data, split=split, options=options)
    if len(opened.dataset) == 0:
        raise ConfigError(f"split: {split!r} has no images")
    folder = make_folder(evaluation_folder(run, split=split, out=out, kind="imbalance") or ELSEWHERE)
    with join_processes(pick_device(options.device)) as ranks:
        opened.detector.to(ranks.device)
        tally = tally_losses(opened, gammas, options=options, ranks=ranks, progress=progress)
        imbalance = summary(tally, opened)
        if ranks.global_rank == 0:
            subject = f"{run} · {opened.dataset.name}"
            _write(folder, tally, imbalance, subject=subject)
    return ImbalanceStudy(folder / "index.html", imbalance)


def tally_losses(
    opened: EvaluationSetup,
    gammas: Sequence[float],
    *,
    options: InferenceOptions,
    ranks: Process | None = None,
    progress: Progress | None = None,
) -> LossTally:
    """The loss of every decision of the detector on the split, over all processes, on the processor.

    `ranks.device` is where the detector lies; without `ranks` there is one process, and that is its own device.

    Raises:
        ConfigError: a detector that does not tell its margins.
        NonFiniteLossError: it gives NaN or infinite logits; names the images.
    """
    ranks = ranks or Process(0, 1, next(opened.detector.parameters()).device)
    loader = Loader(
        FileSource(opened.dataset),
        preprocessing=opened.detector.preprocessing,
        batch_size=options.batch_size,
        seed=0,
        workers=options.workers,
        rank=ranks.global_rank,
        num_ranks=ranks.world_size,
    )
    total, done = sum(map(len, loader.picks(0))), 0
    # Apple's GPUs have no fp64.
    tally = LossTally(gammas, device=ranks.device if ranks.device.type == "cuda" else torch.device("cpu"))
    for margins, names in _margins(opened, loader, device=ranks.device, precision=options.precision):
        if not all(side.isfinite().all() for side in margins):
            raise NonFiniteLossError(f"the detector gives NaN or infinite logits on {', '.join(names)}")
        tally.add(margins)
        done += len(names)
        if progress is not None and ranks.global_rank == 0:
            progress(done, total)
    return LossTally.merged(gather_objects(tally.cpu(), num_ranks=ranks.world_size))


def _margins(
    opened: EvaluationSetup, loader: Loader, *, device: torch.device, precision: Precision | None
) -> Iterator[tuple[Margins, tuple[str, ...]]]:
    """The margins of each batch and the names of its images."""
    detector, matched = opened.detector, opened.class_match
    with eval_mode(detector), torch.no_grad():
        for batch in loader.epoch(0):
            targets = [relabel_target(target, matched).to(device) for target in batch.targets]
            images = batch.images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            with autocast(device, pick_precision(precision, device=device)):
                outputs = detector(images, batch.sizes, targets)
            yield detector.margins(outputs, targets), batch.image_names


def summary(tally: LossTally, opened: EvaluationSetup) -> Imbalance:
    """The numbers of a tally on the processor, and what they say."""
    positives, negatives = tally.counts.sum(1).tolist()
    dataset = opened.dataset
    known = torch.isin(
        dataset.labels, torch.tensor(list(opened.class_match.labels.values()), dtype=dataset.labels.dtype)
    )
    to_find = int((known & (dataset.flags == 0)).sum())
    gammas = tuple(_held(tally, gamma) for gamma in tally.gammas)
    return Imbalance(
        split=dataset.name,
        num_images=len(dataset),
        num_boxes=to_find,
        num_left_out=len(dataset.labels) - to_find,
        num_positives=positives,
        num_negatives=negatives,
        negatives_per_positive=negatives / positives if positives else None,
        gammas=gammas,
        meaning=tuple(_meaning(positives, negatives, gammas)),
        notes=tuple(_notes(opened)),
    )


def _held(tally: LossTally, gamma: float) -> LossHeld:
    positive, negative = tally.losses[tally.gammas.index(gamma)].sum(1).tolist()
    curves = [tally.cumulative(side, gamma) for side in SIDES]
    tails = [None if curve is None else curve.hardest(HARDEST[side]) for side, curve in zip(SIDES, curves, strict=True)]
    return LossHeld(gamma, positive, negative, negative / positive if positive else None, *tails)


def _notes(opened: EvaluationSetup) -> Iterator[str]:
    """What was left out of the count, and what stands in it that a reader would not expect."""
    dataset, labels, names = opened.dataset, opened.class_match.labels, opened.detector.class_names
    unknown = [label for label in range(len(dataset.classes)) if label not in labels.values()]
    boxes = sum(int((dataset.labels == label).sum()) for label in unknown)
    if boxes:
        yield (
            f"boxes of classes that the detector does not know, which count neither as object nor as background: "
            f"{boxes} ({list_names([dataset.classes.names[label] for label in unknown])})"
        )
    extra = [name for label, name in enumerate(names) if label not in labels]
    if extra:
        yield f"classes of the detector that the data lack, whose decisions all count as negatives: {list_names(extra)}"
    if not names:
        yield "the detector has no class names: its classes are taken in the order of the data's"


def _meaning(positives: int, negatives: int, gammas: Sequence[LossHeld]) -> Iterator[str]:
    """Sentences on what γ does on these data, from the first γ to the last."""
    if positives:
        among = (positives + negatives) / positives
        counts = f"{positives:,} positive{'s' * (positives > 1)}, {negatives:,} negatives"
        yield f"One decision in {_number(among)} is about an object: {counts}."
    else:
        yield f"No anchor answers for an object on these images: no positives, {negatives:,} negatives."
    ends = gammas[:: len(gammas) - 1] if len(gammas) > 1 else gammas
    said = [f"{_loss(one.gamma)} {_who(one.negatives_over_positives)}" for one in ends if one.negatives_over_positives]
    if said:
        yield f"With {'; with '.join(said)}."
    tails = [(one.gamma, one.hardest_negatives) for one in ends if one.hardest_negatives is not None]
    if tails:
        yield _of_negatives(tails)
    tails = [(one.gamma, one.hardest_positives) for one in ends if one.hardest_positives is not None]
    if tails:
        (gamma, share), *others = tails
        more = "".join(f" and {_percent(other)} with γ = {last:g}" for last, other in others)
        yield f"The hardest 20 % of the positives hold {_percent(share)} of their loss with γ = {gamma:g}{more}."


def _of_negatives(tails: Sequence[tuple[float, float]]) -> str:
    """What becomes of the easy 99 % of the negatives from the first (γ, share of the hardest 1 %) to the last."""
    (first, tail), (last, last_tail) = tails[0], tails[-1]
    easy, last_easy = 1 - tail, 1 - last_tail
    text = f"The easy 99 % of the negatives hold {_percent(easy)} of their loss with γ = {first:g}"
    if len(tails) == 1:
        return f"{text}, the hardest 1 % the rest."
    text += f" and {_percent(last_easy)} with γ = {last:g}: "
    if easy <= FEW:
        return text + "this detector is so sure of the background that γ has little left to take away."
    if abs(easy - last_easy) <= SAME:
        return text + "γ hardly changes that on these data."
    if last_easy <= FEW:
        return text + "what remains comes almost only from the few hard ones."
    return text + "γ moves the loss towards the few hard ones, but the many easy ones still count."


def _who(negatives_over_positives: float) -> str:
    """Which side holds more of the loss, and how many times more."""
    if abs(math.log(negatives_over_positives)) < SAME:
        return "both sides hold the same loss"
    if negatives_over_positives > 1:
        return f"the negatives hold {_number(negatives_over_positives)} times the loss of the positives"
    return f"the positives hold {_number(1 / negatives_over_positives)} times the loss of the negatives"


def _loss(gamma: float) -> str:
    return "the cross entropy (γ = 0)" if gamma == 0 else f"γ = {gamma:g}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _percent(share: float | None) -> str:
    """A share in percent; never all where something is left, nor nothing where something is."""
    if share is None:
        return "-"
    if 0 < share < 0.0005 or 0.9995 <= share < 1:
        return "< 0.1 %" if share < 0.5 else "> 99.9 %"
    return f"{100 * share:.1f} %"


def _write(out: Path, tally: LossTally, imbalance: Imbalance, *, subject: str) -> None:
    """Leave figures, table, numbers and page; figures that an earlier call left and that are empty now go."""
    plots = {side: plot for side in SIDES if (plot := _figure(tally, side)) is not None}
    for side in SIDES:
        for ending in (".svg", ".png"):
            (out / side).with_suffix(ending).unlink(missing_ok=True)
    for side, plot in plots.items():
        write_plot(plot, out / side)
    write_curves(plots, out / "curves.csv")
    numbers = json.dumps(imbalance.to_dict(), ensure_ascii=False, indent=1, allow_nan=False)
    (out / "imbalance.json").write_text(numbers + "\n", encoding="utf-8")
    figures = "".join(embedded(plot, out / side) for side, plot in plots.items())
    page = whole_page(f"Who holds the loss · {subject}", _body(imbalance, figures, subject))
    (out / "index.html").write_text(page, encoding="utf-8")


def _figure(tally: LossTally, side: str) -> Plot | None:
    """One half of figure 4; None for a side without loss."""
    # Denser towards the hardest, where the negatives' curves rise.
    near_one = 1 - numpy.logspace(-6, -2, POINTS)
    x = numpy.unique(numpy.concatenate([numpy.linspace(0, 1, POINTS), near_one]))
    drawn = {gamma: curve for gamma in tally.gammas if (curve := tally.cumulative(side, gamma)) is not None}
    curves = [Curve(_name(gamma), x.tolist(), curve.at(x).tolist()) for gamma, curve in drawn.items()]
    if not curves:
        return None
    return Plot(
        f"Figure 4: cumulative loss of the {side}",
        curves,
        x_label=f"fraction of the {side}, from easy to hard",
        y_label="cumulative normalised loss",
        x_range=(0.0, 1.005),
        y_range=(0.0, 1.005),
    )


def _name(gamma: float) -> str:
    return f"γ = {gamma:g}{' (cross entropy)' if gamma == 0 else ''}"


def _body(imbalance: Imbalance, figures: str, subject: str) -> str:
    heads = (
        "hardest 20 %<br>of positives",
        "hardest 1 %<br>of negatives",
        "loss of<br>positives",
        "loss of<br>negatives",
    )
    rows = []
    for one in imbalance.gammas:
        shares = "".join(
            f"<td>{escape(_percent(share))}</td>" for share in (one.hardest_positives, one.hardest_negatives)
        )
        ratio = "-" if one.negatives_over_positives is None else _number(one.negatives_over_positives)
        sums = f"<td>{_number(one.positive_loss)}</td><td>{_number(one.negative_loss)}</td><td>{ratio}</td>"
        rows.append(f"<tr><th>{_name(one.gamma)}</th>{shares}{sums}</tr>")
    columns = "".join(f"<th>{head}</th>" for head in (*heads, "negatives /<br>positives"))
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in imbalance.notes)
    return (
        f'<header><h1>Who holds the loss</h1><p class="model">{escape(subject)}</p>'
        f"<p>{escape(' '.join(imbalance.meaning))}</p>{notes}</header>"
        f'<section class="charts">{figures}</section>'
        "<section><h2>Shares of the loss, and its sums</h2>"
        f'<div class="wide"><table><thead><tr><th></th>{columns}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        f"<p>{imbalance.num_images:,} images with {imbalance.num_boxes:,} boxes to find. A decision is one class at "
        "one anchor, with a softmax one anchor; anchors that the loss leaves out do not count. The focal loss is that "
        "of equation 4, without α. After figure 4 and section 5.1 of Lin et al. 2017.</p></section>"
    )


def _check_gammas(gammas: Sequence[float]) -> None:
    if not gammas or len(set(gammas)) < len(gammas) or not all(0 <= gamma < math.inf for gamma in gammas):
        raise ConfigError(
            f"gamma: give one or more different numbers ≥ 0, found {' '.join(map(str, gammas)) or 'none'}"
        )
