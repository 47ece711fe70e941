"""`focaldet study …`: the paper's figures, and one's own detector and data in the light of them."""

from pathlib import Path

from cyclopts import App

from focaldet.study.loss_curves import study_losses

study = App(name="study", help="Look at the losses and at one's own data as the paper does.")


@study.command
def losses(*, out: Path = Path("runs/study/losses")) -> None:
    """Draw the paper's figures of the losses (1, 5, 6) and the α-balance, and tell worked examples.

    Args:
        out: folder for pictures (svg, png), tables (csv, json) and the page that shows them.
    """
    print(f"look at  {study_losses(out).page}")
