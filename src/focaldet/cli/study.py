"""`focaldet study …`: the paper's figures, and one's own detector and data in the light of them."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from focaldet.cli.flags import Data, DataParts, joined
from focaldet.cli.output import percent, print_json, print_table, progress
from focaldet.data.index import DataConfig
from focaldet.evaluate.inference import Precision
from focaldet.study.imbalance import GAMMAS, Imbalance, study_imbalance
from focaldet.study.loss_curves import study_losses

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
    split: str = "val",
    out: Path | None = None,
    gamma: Annotated[tuple[float, ...], Parameter(negative="")] = GAMMAS,
    size: int | None = None,
    short_side: int | None = None,
    max_side: int | None = None,
    batch_size: int = 8,
    device: str | None = None,
    precision: Precision | None = None,
    workers: int = 0,
    json: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Draw the paper's figure 4 for a detector and data: who holds the loss, many easy examples or a few hard ones?

    Args:
        run: run folder, weights file, or a name such as torchvision:coco_v1.
        split: train, val, test, or a split's own name in the data.
        out: folder for pictures, curves.csv, imbalance.json and the page; a folder within the run by default.
        gamma: exponents of the focal loss to compare.
        size: long side of the resized image in pixels, instead of what the detector was trained with.
        short_side: short side in pixels, the paper's form.
        max_side: limit of the long side with --short-side.
        batch_size: images per batch.
        device: such as cpu or cuda:1; the best there is by default.
        precision: type of the network's products; bf16 where the hardware has it by default.
        workers: processes that load images.
        json: print JSON.
    """
    config = joined(data, parts)
    with progress("imbalance") as seen:
        result = study_imbalance(
            run,
            None if config == DataConfig() else config,
            split=split,
            out=out,
            gammas=gamma,
            batch_size=batch_size,
            size=size,
            short_side=short_side,
            max_side=max_side,
            device=device,
            precision=precision,
            workers=workers,
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
