"""`focaldet study …`: the paper's figures, and one's own detector and data in the light of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from focaldet.cli.flags import Data, DataParts, Options, named_data, settings, typed_options
from focaldet.cli.output import CLEAN, INTERRUPTED, print_json, print_table, progress
from focaldet.data.dataset import DataConfig
from focaldet.evaluation.coco import percent
from focaldet.evaluation.inference import InferenceOptions
from focaldet.study.hard_examples import PICTURE_PX, HardStudy, study_hard
from focaldet.study.imbalance import GAMMAS, Imbalance, study_imbalance
from focaldet.study.loss_curves import study_losses
from focaldet.study.sweep import ALPHAS, study_sweep
from focaldet.study.sweep import GAMMAS as SWEEP_GAMMAS
from focaldet.study.sweep_page import Row, best_of
from focaldet.training.config import RunConfig

SWEEP_OUT = Path("runs/study/sweep")

study = App(name="study", help="Look at the losses and at one's own data as the paper does.")


@study.command
def losses(*, out: Path = Path("runs/study/losses")) -> None:
    """Draw the paper's figures of the losses (1, 5, 6) and the α-balance, and tell worked examples.

    Args:
        out: folder for pictures (svg, png), tables (csv, json) and the page that shows them.
    """
    print(f"look at  {study_losses(out).page}")


@study.command
def imbalance(
    run: str,
    /,
    *,
    data: Data = None,
    parts: DataParts = DataConfig(),  # noqa: B008  frozen
    out: Path | None = None,
    gamma: Annotated[tuple[float, ...], Parameter(negative="")] = GAMMAS,
    split: str = "val",
    options: Options = InferenceOptions(),  # noqa: B008  frozen
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Draw the paper's figure 4 for a detector and data: who holds the loss, many easy examples or a few hard ones?

    Args:
        run: run folder, weights file, or a name such as torchvision:coco_v1.
        out: folder for pictures, curves.csv, imbalance.json and the page; a folder within the run by default.
        split: train, val, test, or a split's own name in the data.
        gamma: exponents of the focal loss to compare.
        json: print JSON.
    """
    with progress("imbalance") as seen:
        result = study_imbalance(
            run,
            named_data(data, parts),
            out=out,
            gammas=gamma,
            split=split,
            options=typed_options(options),
            progress=seen,
        )
    if json:
        print_json(result.imbalance.to_dict())
    else:
        _print_imbalance(result.imbalance)
        print(f"look at  {result.page}")


def _print_imbalance(found: Imbalance) -> None:
    """A line for each γ, and the sentences."""
    rows = [["GAMMA", "HARDEST 20% OF POSITIVES", "HARDEST 1% OF NEGATIVES", "NEGATIVES / POSITIVES"]]
    for one in found.gammas:
        ratio = "-" if one.negatives_over_positives is None else f"{one.negatives_over_positives:.3g}"
        rows.append([f"{one.gamma:g}", percent(one.hardest_positives), percent(one.hardest_negatives), ratio])
    print_table(rows, left=set())
    print("\nshares: percent of the loss of all positives and of all negatives; last column: loss over loss\n")
    print(*found.meaning, *(f"note: {note}" for note in found.notes), sep="\n")


@study.command
def hard(
    run: str,
    /,
    *,
    data: Data = None,
    parts: DataParts = DataConfig(),  # noqa: B008  frozen
    out: Path | None = None,
    score: float = 0.3,
    picture_px: int = PICTURE_PX,
    split: str = "val",
    options: Options = InferenceOptions(),  # noqa: B008  frozen
) -> None:
    """Show which objects are easy (green) and which hard (red), and list what looks like errors of the annotations.

    Args:
        run: run folder, weights file, or a name such as torchvision:coco_v1.
        out: folder for the page, its pictures and the tables; a folder within the run by default.
        split: train, val, test, or a split's own name in the data.
        score: from here on a detection is the detector's answer.
        picture_px: long side of the page's pictures in pixels.
    """
    with progress("hard examples") as seen:
        result = study_hard(
            run,
            named_data(data, parts),
            out=out,
            score=score,
            picture_px=picture_px,
            split=split,
            options=typed_options(options),
            progress=seen,
        )
    _print_hard(result)


def _print_hard(result: HardStudy) -> None:
    rows = [[kind, *map(str, numbers)] for kind, numbers in result.counts.items()]
    print_table([["KIND", "OBJECTS", "FALSE POSITIVES"], *rows], left={0})
    print(f"\n{len(result.suspects)} suspected label errors: {result.page.with_name('suspects.csv')}")
    print(*(f"note: {note}" for note in result.notes), f"look at  {result.page}", sep="\n")


@study.command
def sweep(
    *,
    data: Data = None,
    gamma: tuple[float, ...] = SWEEP_GAMMAS,
    alpha: tuple[float | None, ...] = ALPHAS,
    ohem: Annotated[bool, Parameter(negative="")] = False,
    softmax: Annotated[bool, Parameter(negative="")] = False,
    config: Path | None = None,
    run: Annotated[RunConfig, Parameter(name="*")] = RunConfig(out=SWEEP_OUT),  # noqa: B008  frozen
) -> int:
    """Make the paper's tables 1a and 1b on your data: a short training for every γ and α. The same command goes on.

    Exit status: 0 finished, 2 usage, 130 interrupted (saved). Every flag of `focaldet train` sets all trainings.

    Args:
        gamma: exponents of the focal loss; 0 is cross entropy.
        alpha: weights of objects; none leaves the balance out (eq. 4).
        ohem: also cross entropy with online hard example mining (table 1d).
        softmax: also softmax cross entropy with a background class.
        config: YAML file of settings; flags that are typed overrule it.
    """
    asked = settings(run, file=config, data=data)
    if asked.out == RunConfig.out:
        asked = replace(asked, out=SWEEP_OUT)
    result = study_sweep(asked, gammas=gamma, alphas=alpha, ohem=ohem, softmax=softmax, tell=print)
    if result.interrupted:
        return INTERRUPTED
    _print_sweep(result.rows)
    print("", *result.sentences, f"look at  {result.page}", sep="\n")
    return CLEAN


def _print_sweep(rows: Sequence[Row]) -> None:
    """A line for each setting; a star marks the best."""
    best = best_of(rows)
    lines = [["SETTING", "AP", "AP50", "AP75", ""]]
    for row in rows:
        remark = "diverged" if row.diverged is not None else "*" if row is best else ""
        lines.append([row.title(), *map(percent, row.numbers()), remark])
    print_table(lines, left={0, 4})
