"""Figure 4 of the paper on your own detector and data: does the loss come from many easy examples or few hard ones?"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, Unpack

import numpy
import torch

from focaldet.config import make_folder
from focaldet.data.config import DataConfig
from focaldet.data.dataset import FileSource
from focaldet.data.formats.text import list_names, quantity
from focaldet.errors import ConfigError, NonFiniteLossError
from focaldet.evaluation.coco import percent
from focaldet.evaluation.evaluate import (
    UNNAMED_NOTE,
    EvaluationSetup,
    evaluation_folder,
    open_loader,
    relabel_target,
    set_up_evaluation,
)
from focaldet.evaluation.inference import InferenceFields, InferenceOptions
from focaldet.files import to_json_text, write_text
from focaldet.report.charts import Chart, Curve, chart_section, write_chart, write_curves
from focaldet.report.page import header, section, table, write_page
from focaldet.runtime import (
    Process,
    Progress,
    autocast,
    eval_mode,
    gather_objects,
    join_processes,
    pick_device,
    pick_precision,
)
from focaldet.study.loss_curves import gamma_name, short_number
from focaldet.study.loss_tally import SIDES, LossTally

IMBALANCE_OUT = Path("runs/study/imbalance")  # for weights without a run folder
IMBALANCE_GAMMAS = (0.0, 0.5, 1.0, 2.0)
HARDEST = {"positives": 0.2, "negatives": 0.01}  # the tails that are given in numbers; the first one is the paper's
LITTLE, SAME = 0.1, 0.05  # a fraction of the loss up to here is called little, and a difference none
CURVE_POINTS = 201


@dataclass(frozen=True, slots=True)
class GammaLoss:
    """Where the focal loss without α comes from, for one γ.

    Attributes:
        gamma: the exponent.
        positive_loss: sum over the positives of the split.
        negative_loss: sum over the negatives.
        negatives_over_positives: the ratio of these sums; None without loss of positives.
        hardest_positives: the fraction in 0…1 of the positives' loss that the hardest 20 % of them have; None without
            loss.
        hardest_negatives: the same for the hardest 1 % of the negatives.
    """

    gamma: float
    positive_loss: float
    negative_loss: float
    negatives_over_positives: float | None
    hardest_positives: float | None
    hardest_negatives: float | None


@dataclass(frozen=True, slots=True)
class Imbalance:
    """Figure 4 in numbers. A decision is one class at one anchor, with a softmax one anchor; what the loss ignores does
    not count.

    `num_boxes` are the objects that the detector should detect; `num_ignored` the boxes marked as ignored or of a class
    that it does not know. `meaning` says in words what the numbers say, `notes` what a reader must know beside them.
    """

    split: str
    num_images: int
    num_boxes: int
    num_ignored: int
    num_positives: int
    num_negatives: int
    negatives_per_positive: float | None
    gammas: tuple[GammaLoss, ...]
    meaning: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `num_left_out` is the name that `num_ignored` had in version 0.1."""
        return asdict(self) | {"num_left_out": self.num_ignored}


@dataclass(frozen=True, slots=True)
class ImbalanceStudy:
    """The numbers of `study_imbalance`, and the page that shows them."""

    page: Path
    imbalance: Imbalance


def study_imbalance(
    run: str | Path,
    data: DataConfig | str | Path | None = None,
    *,
    split: str = "val",
    out: Path | None = None,
    gammas: Sequence[float] = IMBALANCE_GAMMAS,
    options: InferenceOptions = InferenceOptions(),  # noqa: B008  frozen
    progress: Progress | None = None,
    **fields: Unpack[InferenceFields],
) -> ImbalanceStudy:
    """Draw figure 4 of the paper (section 5.1) for a trained detector: the cumulative loss of all anchors of a split.

    Writes into `out`: `positives` and `negatives` as `.svg` and `.png` (only a side that has any), `curves.csv`,
    `imbalance.json` with all numbers, `index.html` with all of it. The loss is the focal loss without α. Under
    `torchrun` every process takes a part of the images and the first one writes.

    Args:
        run: a run folder (its best weights), a weights file, or a name such as `torchvision:coco_v1`.
        data: the images and annotations; those of the run by default.
        split: train, val, test, or a split's own name in the data; a single annotation file is taken whole.
        out: folder for the files; `imbalance-<split>` in the run folder or `runs/study/imbalance` by default.
        gammas: exponents of the loss, each ≥ 0 and only once.
        options: size, device, precision and so on.
        progress: called with the images done and the images there are.
        fields: fields of `InferenceOptions` by keyword, which replace those of `options`.

    Raises:
        CheckpointError: no weights, or damaged ones.
        DataError: data that cannot be read.
        ConfigError: a setting out of range, a split without images, no class in common between detector and data, a
            detector without margins, or `out` cannot be made.
        NonFiniteLossError: the detector gives NaN or infinite logits.
    """
    if not gammas or len(set(gammas)) < len(gammas) or not all(0 <= gamma < math.inf for gamma in gammas):
        raise ConfigError(f"gamma: give one or more different numbers ≥ 0, got {' '.join(map(str, gammas)) or 'none'}")
    options = replace(options, **fields)
    opened = set_up_evaluation(run, data, split=split, options=options)
    if len(opened.dataset) == 0:
        raise ConfigError(f"split: {split!r} has no images")
    folder = evaluation_folder(run, opened.dataset, data, split=split, out=out, kind="imbalance") or IMBALANCE_OUT
    make_folder(folder)
    with join_processes(pick_device(options.device)) as ranks:
        opened.detector.to(ranks.device)
        tally = tally_losses(opened, gammas, options=options, ranks=ranks, progress=progress)
        imbalance = summarize_imbalance(tally, opened)
        if ranks.global_rank == 0:
            _write_imbalance(folder, tally, imbalance, subject=f"{run} · {opened.dataset.name}")
    return ImbalanceStudy(folder / "index.html", imbalance)


def tally_losses(
    opened: EvaluationSetup,
    gammas: Sequence[float],
    *,
    options: InferenceOptions,
    ranks: Process | None = None,
    progress: Progress | None = None,
) -> LossTally:
    """The loss of every decision of the detector on the split, from all processes, in the memory of the processor.

    The detector is on `ranks.device`; without `ranks` there is one process, and the device is the detector's.

    Raises:
        ConfigError: a detector without margins.
        NonFiniteLossError: its logits are NaN or infinite; names the images.
    """
    detector, match = opened.detector, opened.class_match
    ranks = ranks or Process(0, 1, next(detector.parameters()).device)
    device, precision = ranks.device, pick_precision(options.precision, device=ranks.device)
    loader = open_loader(detector, FileSource(opened.dataset), options=options, ranks=ranks)
    total, done = sum(map(len, loader.picks(0))), 0
    # Apple's GPUs have no fp64.
    tally = LossTally(gammas, device=device if device.type == "cuda" else torch.device("cpu"))
    with eval_mode(detector), torch.no_grad():
        for batch in loader.epoch(0):
            targets = [relabel_target(target, match).to(device) for target in batch.targets]
            images = batch.images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            with autocast(device, precision):
                outputs = detector(images, batch.sizes, targets)
            margins = detector.margins(outputs, targets)
            if not all(side.isfinite().all() for side in margins):
                names = ", ".join(batch.image_names)
                raise NonFiniteLossError(f"the detector's logits are NaN or infinite on {names}")
            tally.add(margins)
            done += len(batch.indices)
            if progress is not None and ranks.global_rank == 0:
                progress(done, total)
    return LossTally.merge(gather_objects(tally.cpu(), num_ranks=ranks.world_size))


def summarize_imbalance(tally: LossTally, opened: EvaluationSetup) -> Imbalance:
    """The numbers of a tally that is on the processor, and what they mean."""
    positives, negatives = tally.counts.sum(1).tolist()
    dataset = opened.dataset
    known = torch.isin(dataset.labels, dataset.labels.new_tensor(list(opened.class_match.labels.values())))
    num_boxes = int((known & (dataset.flags == 0)).sum())
    gammas = tuple(_summarize_gamma(tally, gamma) for gamma in tally.gammas)
    return Imbalance(
        split=dataset.name,
        num_images=len(dataset),
        num_boxes=num_boxes,
        num_ignored=len(dataset.labels) - num_boxes,
        num_positives=positives,
        num_negatives=negatives,
        negatives_per_positive=negatives / positives if positives else None,
        gammas=gammas,
        meaning=tuple(_meaning_sentences(positives, negatives, gammas)),
        notes=tuple(_class_notes(opened)),
    )


def _summarize_gamma(tally: LossTally, gamma: float) -> GammaLoss:
    positive, negative = tally.losses[tally.gammas.index(gamma)].sum(1).tolist()
    curves = [tally.cumulative(side, gamma) for side in SIDES]
    tails = [None if curve is None else curve.hardest(HARDEST[side]) for side, curve in zip(SIDES, curves, strict=True)]
    return GammaLoss(gamma, positive, negative, negative / positive if positive else None, *tails)


def _class_notes(opened: EvaluationSetup) -> Iterator[str]:
    """Boxes that are not counted, and negatives that a reader would not expect."""
    dataset, labels, names = opened.dataset, opened.class_match.labels, opened.detector.class_names
    unknown = [label for label in range(len(dataset.classes)) if label not in labels.values()]
    boxes = sum(int((dataset.labels == label).sum()) for label in unknown)
    if boxes:
        yield (
            "boxes of classes that the detector does not know, which count neither as object nor as background: "
            f"{boxes} ({list_names([dataset.classes.names[label] for label in unknown])})"
        )
    extra = [name for label, name in enumerate(names) if label not in labels]
    if extra:
        yield f"classes of the detector that the data lack, whose decisions all count as negatives: {list_names(extra)}"
    if not names:
        yield UNNAMED_NOTE


def _meaning_sentences(positives: int, negatives: int, gammas: Sequence[GammaLoss]) -> Iterator[str]:
    """Sentences on what γ changes on these data, from the first γ to the last."""
    if positives:
        ratio = short_number((positives + negatives) / positives)
        counts = f"{positives:,} positive{'s' * (positives > 1)}, {negatives:,} negatives"
        yield f"One decision in {ratio} is about an object: {counts}."
    else:
        yield f"No anchor is matched to an object on these images: no positives, {negatives:,} negatives."
    ends = gammas[:: len(gammas) - 1] if len(gammas) > 1 else gammas
    compared = [
        f"{_loss_name(one.gamma)} {_compare_sides(one.negatives_over_positives)}"
        for one in ends
        if one.negatives_over_positives
    ]
    if compared:
        yield f"With {'; with '.join(compared)}."
    tails = [(one.gamma, one.hardest_negatives) for one in ends if one.hardest_negatives is not None]
    if tails:
        yield _negatives_sentence(tails)
    tails = [(one.gamma, one.hardest_positives) for one in ends if one.hardest_positives is not None]
    if tails:
        values = " and ".join(f"{_loss_percent(fraction)} with γ = {gamma:g}" for gamma, fraction in tails)
        yield f"Of the loss of the positives, the hardest 20 % of them have {values}."


def _negatives_sentence(tails: Sequence[tuple[float, float]]) -> str:
    """The loss of the easy 99 % of the negatives, from the first (γ, fraction of the hardest 1 %) to the last."""
    (first, tail), (last, last_tail) = tails[0], tails[-1]
    easy, last_easy = 1 - tail, 1 - last_tail
    text = f"The easy 99 % of the negatives have {_loss_percent(easy)} of their loss with γ = {first:g}"
    if len(tails) == 1:
        return f"{text}, the hardest 1 % the rest."
    text += f" and {_loss_percent(last_easy)} with γ = {last:g}: "
    if easy <= LITTLE:
        return text + "this detector is so sure of the background that there is little for γ to take away."
    if abs(easy - last_easy) <= SAME:
        return text + "γ changes little on these data."
    if last_easy <= LITTLE:
        return text + "what remains comes almost only from the few hard ones."
    return text + "γ moves the loss towards the few hard ones, but the many easy ones still count."


def _compare_sides(negatives_over_positives: float) -> str:
    """Which side has more of the loss, and how many times more."""
    if abs(math.log(negatives_over_positives)) < SAME:
        return "both sides have the same loss"
    if negatives_over_positives > 1:
        return f"the negatives have {short_number(negatives_over_positives)} times the loss of the positives"
    return f"the positives have {short_number(1 / negatives_over_positives)} times the loss of the negatives"


def _loss_name(gamma: float) -> str:
    return "the cross entropy (γ = 0)" if gamma == 0 else f"γ = {gamma:g}"


def _loss_percent(fraction: float | None) -> str:
    """A fraction in percent that is not rounded to nothing or to all of it."""
    if fraction is None:
        return "-"
    if 0 < fraction < 0.0005 or 0.9995 <= fraction < 1:
        return "< 0.1 %" if fraction < 0.5 else "> 99.9 %"
    return f"{percent(fraction)} %"


def _write_imbalance(out: Path, tally: LossTally, imbalance: Imbalance, *, subject: str) -> None:
    """Write figures, table, numbers and page; figures of an earlier call that are empty now are removed."""
    charts = {side: chart for side in SIDES if (chart := _cumulative_chart(tally, side)) is not None}
    for side, ending in itertools.product(SIDES, (".svg", ".png")):
        (out / side).with_suffix(ending).unlink(missing_ok=True)
    for side, chart in charts.items():
        write_chart(chart, out / side)
    write_curves(charts, out / "curves.csv")
    write_text(out / "imbalance.json", to_json_text(imbalance.to_dict(), indent=1, allow_nan=False) + "\n")
    meaning = escape(" ".join(imbalance.meaning))
    write_page(
        out / "index.html",
        f"Where the loss comes from · {subject}",
        header("Where the loss comes from", meaning, model=subject, notes=imbalance.notes),
        chart_section("", list(charts.values())),
        section(
            "Fractions of the loss, and its sums",
            _gamma_table(imbalance.gammas),
            f"<p>{quantity(imbalance.num_images, 'image')} with {quantity(imbalance.num_boxes, 'object')}. A decision "
            "is one class at one anchor, with a softmax one anchor; anchors that the loss ignores do not count. The "
            "focal loss is that of equation 4, without α. After figure 4 and section 5.1 of Lin et al. 2017.</p>",
        ),
    )


def _cumulative_chart(tally: LossTally, side: str) -> Chart | None:
    """One half of figure 4; None for a side without loss."""
    # Denser towards the hardest, where the negatives' curves rise.
    near_one = 1 - numpy.logspace(-6, -2, CURVE_POINTS)
    x = numpy.unique(numpy.concatenate([numpy.linspace(0, 1, CURVE_POINTS), near_one]))
    losses = {gamma: loss for gamma in tally.gammas if (loss := tally.cumulative(side, gamma)) is not None}
    if not losses:
        return None
    return Chart(
        f"Figure 4: cumulative loss of the {side}",
        [Curve(gamma_name(gamma), x.tolist(), loss.easiest(x).tolist()) for gamma, loss in losses.items()],
        x_label=f"fraction of the {side}, from easy to hard",
        y_label="cumulative normalized loss",
        x_range=(0.0, 1.005),
        y_range=(0.0, 1.005),
    )


def _gamma_table(gammas: Sequence[GammaLoss]) -> str:
    heads = ["", "hardest 20 %<br>of positives", "hardest 1 %<br>of negatives"]
    heads += ["loss of<br>positives", "loss of<br>negatives", "negatives /<br>positives"]
    rows = []
    for one in gammas:
        tails = [escape(_loss_percent(fraction)) for fraction in (one.hardest_positives, one.hardest_negatives)]
        sums = [short_number(loss) for loss in (one.positive_loss, one.negative_loss)]
        ratio = "-" if one.negatives_over_positives is None else short_number(one.negatives_over_positives)
        rows.append([gamma_name(one.gamma), *tails, *sums, ratio])
    return table(heads, rows)
