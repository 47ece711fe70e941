"""The focal loss with its gradient beside torchvision's pattern: seconds, interleaved, and the extra memory of each.

A detector's case: integer labels of 120 000 anchors, 80 classes. torchvision's pattern makes one-hot targets of them
and sums `sigmoid_focal_loss`; focaldet has the fused sum, and the elementwise form through torch.compile (which needs
a compiler).

    python benchmarks/losses.py
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from measure import interleaved, write_result
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from focaldet import losses

ALPHA, GAMMA = 0.25, 2.0


def case(anchors: int, classes: int) -> tuple[Tensor, Tensor]:
    """Logits as a detector in training has them, and labels: one anchor in a hundred is an object."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(anchors, classes, generator=generator) - 4
    labels = torch.randint(0, classes, (anchors,), generator=generator)
    background = torch.rand(anchors, generator=generator) < 0.99
    return logits, labels.masked_fill(background, classes)


def torchvision_pattern(logits: Tensor, labels: Tensor) -> Tensor:
    """As `torchvision.models.detection.RetinaNet` computes it."""
    targets = torch.zeros_like(logits)
    objects = labels < logits.shape[1]
    targets[objects, labels[objects]] = 1.0
    return sigmoid_focal_loss(logits, targets, alpha=ALPHA, gamma=GAMMA, reduction="sum")


def fused(logits: Tensor, labels: Tensor) -> Tensor:
    """One pass over integer labels."""
    return losses.focal_loss_sum(logits, labels, alpha=ALPHA, gamma=GAMMA)


def elementwise(logits: Tensor, labels: Tensor) -> Tensor:
    """The plain functions; torch.compile fuses them with the comparison that makes the targets."""
    targets = labels[:, None] == torch.arange(logits.shape[1])
    return losses.balanced_focal_loss(logits, targets, alpha=ALPHA, gamma=GAMMA).sum()


FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "torchvision": torchvision_pattern,
    "fused": fused,
    "compiled": elementwise,
}


def step(form: str, logits: Tensor, labels: Tensor) -> Callable[[], object]:
    """One forward and backward pass."""
    loss = torch.compile(FORMS[form]) if form == "compiled" else FORMS[form]

    def run() -> Tensor:
        x = logits.detach().requires_grad_()
        total = loss(x, labels)
        return torch.autograd.grad(total / 100, x)[0]

    return run


def extra_memory(form: str, *, anchors: int, classes: int) -> float:
    """Peak memory of a step beyond what was there before, in sizes of the logits; in a process of its own, on Linux."""
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from losses import case, step

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name)))

step({form!r}, *case(1000, {classes}))()
logits, labels = case({anchors}, {classes})
run = step({form!r}, logits, labels)
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
before = kilobytes("VmRSS")
run()
print((kilobytes("VmHWM") - before) * 1024 / (logits.numel() * logits.element_size()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    """Time, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--anchors", type=int, default=120_000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    chosen = parser.parse_args()
    logits, labels = case(chosen.anchors, chosen.classes)
    totals = {form: FORMS[form](logits, labels).item() for form in chosen.forms}
    timed = interleaved({form: step(form, logits, labels) for form in chosen.forms}, rounds=chosen.rounds)
    memory = {
        form: extra_memory(form, anchors=chosen.anchors, classes=chosen.classes)
        for form in chosen.forms
        if form != "compiled"  # its compiler takes more than the step
    }
    for form in chosen.forms:
        fastest, median = (1e3 * timed[form][kind] for kind in ("min", "median"))
        ratio = timed["torchvision"]["min"] / timed[form]["min"] if "torchvision" in timed else float("nan")
        extra = f", {memory[form]:.1f} × the logits of extra memory" if form in memory else ""
        print(
            f"{form:12} {fastest:7.1f} / {median:7.1f} ms (minimum / median), {ratio:4.1f} × torchvision's speed{extra}"
        )
    settings = {"anchors": chosen.anchors, "classes": chosen.classes, "sums": totals}
    print(write_result("losses", {"settings": settings, "seconds": timed, "extra_memory": memory}))


if __name__ == "__main__":
    main()
