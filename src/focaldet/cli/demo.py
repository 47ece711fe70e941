"""`focaldet demo`."""

from pathlib import Path

from focaldet.cli.output import CLEAN, INTERRUPTED, print_metrics, say
from focaldet.study.demo import run_demo


def demo_command(
    *,
    out: Path = Path("runs/demo"),
    epochs: int | None = None,
    images_per_epoch: int | None = None,
    seed: int = 0,
    device: str | None = None,
) -> int:
    """Train a small RetinaNet on the embedded handwriting.

    Args:
        out: Folder of the run; what an earlier demo left there is replaced.
        epochs: Passes; fewer are quicker and worse.
        images_per_epoch: Fresh scenes in a pass.
        seed: Seed of scenes and weights.
        device: Such as cpu or cuda:1; the best there is by default.
    """
    sizes = {"epochs": epochs, "images_per_epoch": images_per_epoch}
    given = {name: value for name, value in sizes.items() if value is not None}
    result = run_demo(out, seed=seed, device=device, **given)
    if result.metrics is None:
        say("the scenes are made as training goes on, so the demo cannot: `focaldet demo` begins again")
        return INTERRUPTED
    print_metrics(result.metrics)
    say(
        f"\nlook at  {result.report} and {result.drawings}\n"
        f"next     focaldet eval {out}\n"
        "         focaldet check YOUR_DATA\n"
        "         focaldet train --data YOUR_DATA --out runs/mine"
    )
    return CLEAN
