"""`focaldet study …`: the paper's figures, and one's own detector and data in the light of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from focaldet.cli import Switch
from focaldet.cli.flags import SPLIT_HELP, Data, DataParts, Options, RunFlags, default_text, optional_data_config
from focaldet.cli.output import CLEAN, INTERRUPTED, print_json, print_table, progress, say
from focaldet.cli.settings import run_settings
from focaldet.data.formats.text import quantity
from focaldet.evaluation.coco import percent
from focaldet.study.hard_examples import IMAGE_PX, HardStudy, study_hard
from focaldet.study.imbalance import IMBALANCE_GAMMAS, Imbalance, study_imbalance
from focaldet.study.loss_curves import study_losses
from focaldet.study.sweep import SWEEP_ALPHAS, SWEEP_GAMMAS, study_sweep
from focaldet.study.sweep_page import SweepRow, best_row
from focaldet.training.config import RunConfig

SWEEP_OUT = Path("runs/study/sweep")


def losses_command(*, out: Path = Path("runs/study/losses")) -> None:
    """Draw the paper's figures of the losses and the α-balance.

    Args:
        out: Folder for the figures (svg, png), tables (csv, json) and the page that shows them.
    """
    say(f"look at  {study_losses(out).page}")


def imbalance_command(
    run: str,
    /,
    *,
    data: Data = None,
    parts: DataParts = None,
    out: Path | None = None,
    gamma: Annotated[
        tuple[float, ...], Parameter(negative="", show_default=default_text(IMBALANCE_GAMMAS))
    ] = IMBALANCE_GAMMAS,
    split: Annotated[str, Parameter(help=SPLIT_HELP)] = "val",
    options: Options = None,
    json: Switch = False,
) -> None:
    """Draw the paper's figure 4 for a detector and data.

    Args:
        run: Run folder, weights file, or a name such as torchvision:coco_v1.
        out: Folder for the figure, curves.csv, imbalance.json and the page; a folder within the run by default.
        gamma: Exponents of the focal loss to compare.
        json: Print JSON.
    """
    chosen = optional_data_config(data, parts)
    with progress("imbalance") as seen:
        result = study_imbalance(run, chosen, out=out, gammas=gamma, split=split, progress=seen, **(options or {}))
    if json:
        print_json(result.imbalance.to_dict())
    else:
        _print_imbalance(result.imbalance)
        say(f"look at  {result.page}")


def _print_imbalance(imbalance: Imbalance) -> None:
    """A line for each γ, and the sentences."""
    rows = [["GAMMA", "HARDEST 20% OF POSITIVES", "HARDEST 1% OF NEGATIVES", "NEGATIVES / POSITIVES"]]
    for row in imbalance.gammas:
        ratio = "-" if row.negatives_over_positives is None else f"{row.negatives_over_positives:.3g}"
        rows.append([f"{row.gamma:g}", percent(row.hardest_positives), percent(row.hardest_negatives), ratio])
    print_table(rows, left=set())
    say("\npercent of the loss of all positives and of all negatives; last column: loss over loss\n")
    say(*imbalance.meaning, *(f"note: {note}" for note in imbalance.notes))


def hard_command(
    run: str,
    /,
    *,
    data: Data = None,
    parts: DataParts = None,
    out: Path | None = None,
    score: float | None = None,
    image_px: int = IMAGE_PX,
    split: Annotated[str, Parameter(help=SPLIT_HELP)] = "val",
    options: Options = None,
) -> None:
    """Show easy and hard objects, and what looks like errors of the annotations.

    Args:
        run: Run folder, weights file, or a name such as torchvision:coco_v1.
        out: Folder for the page, its images and the tables; a folder within the run by default.
        score: Smallest score of a detection that counts. By default the one with the largest F1 that the weights file
            keeps; .3 where it keeps none.
        image_px: Long side of the page's images in pixels.
    """
    chosen = optional_data_config(data, parts)
    with progress("hard examples") as seen:
        result = study_hard(
            run, chosen, out=out, score=score, image_px=image_px, split=split, progress=seen, **(options or {})
        )
    _print_hard(result)


def _print_hard(result: HardStudy) -> None:
    rows = [[kind, *map(str, numbers)] for kind, numbers in result.counts.items()]
    say(f"detections of a score of at least {result.score:.2f}")
    print_table([["KIND", "OBJECTS", "FALSE POSITIVES"], *rows], left={0})
    say(f"\n{quantity(len(result.suspects), 'suspected label error')}: {result.page.with_name('suspects.csv')}")
    say(*(f"note: {note}" for note in result.notes), f"look at  {result.page}")


def sweep_command(
    data: Data = None,
    *,
    gamma: Annotated[tuple[float, ...], Parameter(show_default=default_text(SWEEP_GAMMAS))] = SWEEP_GAMMAS,
    alpha: Annotated[tuple[float | None, ...], Parameter(show_default=default_text(SWEEP_ALPHAS))] = SWEEP_ALPHAS,
    ohem: Switch = False,
    softmax: Switch = False,
    config: Path | None = None,
    run: RunFlags = None,
) -> int:
    """Make the paper's tables 1a and 1b on your data.

    Args:
        gamma: Exponents of the focal loss; 0 is cross entropy.
        alpha: Weights of objects; none trains without the balance (eq. 4).
        ohem: Also cross entropy with online hard example mining (table 1d).
        softmax: Also softmax cross entropy with a background class.
        config: YAML file of settings; flags that are typed overrule it.
    """
    settings, choices = run_settings(run, file=config, data=data)
    for choice in choices:
        say(f"auto: {choice}")
    if settings.out == RunConfig.out:
        settings = replace(settings, out=SWEEP_OUT)
    result = study_sweep(settings, gammas=gamma, alphas=alpha, ohem=ohem, softmax=softmax, log=say)
    if result.interrupted:
        return INTERRUPTED
    _print_sweep(result.rows)
    say("", *result.sentences, f"look at  {result.page}")
    return CLEAN


def _print_sweep(rows: Sequence[SweepRow]) -> None:
    """A line for each setting; a star marks the best."""
    best = best_row(rows)
    lines = [["SETTING", "AP", "AP50", "AP75", ""]]
    for row in rows:
        note = "diverged" if row.diverged is not None else "*" if row is best else ""
        lines.append([row.title(), *map(percent, row.numbers()), note])
    print_table(lines, left={0, 4})
