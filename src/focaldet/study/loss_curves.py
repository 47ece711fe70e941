"""The paper's figures of the losses, drawn from the library's own functions: 1, 5, 6, the balance, worked examples."""

import csv
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from focaldet.config import make_folder
from focaldet.ops.losses.cross_entropy import balanced_cross_entropy, binary_cross_entropy
from focaldet.ops.losses.focal import balanced_focal_loss, focal_loss, focal_star_loss
from focaldet.report.page import whole_page
from focaldet.study.plots import Curve, Plot, embedded, write_curves, write_plot

GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)
STARS = ((2.0, 1.0), (4.0, 0.0))
WELL_CLASSIFIED = 0.6  # shaded in figure 1
NUM_POINTS = 401
EXAMPLES = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.968, 0.99)

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Example:
    """The loss at p_t with one γ of figure 1, and how many times smaller than the cross entropy it is."""

    p_t: float
    gamma: float
    loss: float
    times_smaller: float


@dataclass(frozen=True, slots=True)
class LossStudy:
    """The files that `study_losses` left; `page` shows them all."""

    page: Path
    curves: Path
    examples: tuple[Example, ...]


def study_losses(out: Path) -> LossStudy:
    """Draw figures 1, 5 and 6 of the paper, the α-balance, and tell worked examples; everything into the folder `out`.

    `<figure>.svg` and `.png`, `curves.csv` with all points, `examples.json` and `.csv`, `index.html` with all of it.

    Raises:
        ConfigError: no folder can be made there.
    """
    make_folder(out)
    plots = {"focal_loss": _figure_1(), "balance": _balance(), "star": _figure_5(), "star_slopes": _figure_6()}
    for name, plot in plots.items():
        write_plot(plot, out / name)
    write_curves(plots, out / "curves.csv")
    examples = worked_examples()
    _write_examples(out, examples)
    page = out / "index.html"
    page.write_text(whole_page("The focal loss in pictures · focaldet", _body(out, plots, examples)), encoding="utf-8")
    return LossStudy(page, out / "curves.csv", examples)


def worked_examples() -> tuple[Example, ...]:
    """What each γ makes of examples from hard (p_t = .1) to easy (.99)."""
    found = []
    for p in EXAMPLES:
        logit, target = torch.logit(torch.tensor(p, dtype=torch.float64)), torch.tensor(1.0)
        plain = binary_cross_entropy(logit, target).item()
        for gamma in GAMMAS:
            loss = focal_loss(logit, target, gamma=gamma).item()
            found.append(Example(p, gamma, loss, plain / loss))
    return tuple(found)


def _figure_1() -> Plot:
    """FL(p_t) for every γ; γ = 0 is the cross entropy."""
    p = torch.linspace(0.005, 0.9995, NUM_POINTS, dtype=torch.float64)
    logits, true = torch.logit(p), torch.ones_like(p)
    names = [f"γ = {gamma:g}{' (cross entropy)' if gamma == 0 else ''}" for gamma in GAMMAS]
    losses = [focal_loss(logits, true, gamma=gamma) for gamma in GAMMAS]
    curves = [_curve(name, p, loss) for name, loss in zip(names, losses, strict=True)]
    return Plot(
        "Figure 1: the focal loss",
        curves,
        x_label="probability of the true class p_t",
        y_label="loss",
        x_range=(0.0, 1.0),
        y_range=(0.0, 5.0),
        shaded=(WELL_CLASSIFIED, 1.0, "well-classified\nexamples"),
    )


def _curve(name: str, x: Tensor, y: Tensor) -> Curve:
    return Curve(name, x.tolist(), y.tolist())


def _balance() -> Plot:
    """Positives and negatives with and without α (eqs. 3 and 5)."""
    p = torch.linspace(0.005, 0.995, NUM_POINTS, dtype=torch.float64)
    forms: dict[str, Loss] = {
        "balanced CE, α = .75": partial(balanced_cross_entropy, alpha=0.75),
        "balanced FL, α = .25, γ = 2": partial(balanced_focal_loss, alpha=0.25, gamma=2.0),
    }
    curves = [
        _curve(f"{name}: {kind}", p, loss(torch.logit(p), torch.full_like(p, target)))
        for name, loss in forms.items()
        for kind, target in (("object", 1.0), ("background", 0.0))
    ]
    return Plot(
        "α-balanced losses of objects and of background",
        curves,
        x_label="probability p that the network gives to an object",
        y_label="loss",
        x_range=(0.0, 1.0),
        y_range=(0.0, 3.0),
    )


def _star_forms() -> dict[str, Loss]:
    forms: dict[str, Loss] = {"CE": partial(focal_loss, gamma=0.0), "FL, γ = 2": partial(focal_loss, gamma=2.0)}
    for gamma, beta in STARS:
        forms[f"FL*, γ = {gamma:g}, β = {beta:g}"] = partial(focal_star_loss, gamma=gamma, beta=beta)
    return forms


def _figure_5() -> Plot:
    """FL* beside FL and the cross entropy (appendix A)."""
    x = torch.linspace(-5, 5, NUM_POINTS, dtype=torch.float64)
    curves = [_curve(name, x, loss(x, torch.ones_like(x))) for name, loss in _star_forms().items()]
    return Plot(
        "Figure 5: another form of the focal loss",
        curves,
        x_label="x_t = y x",
        y_label="loss",
        x_range=(-5.0, 5.0),
        y_range=(0.0, 5.0),
    )


def _figure_6() -> Plot:
    """Their derivatives by x (appendix B): well-classified examples (x_t > 0) hardly pull."""
    curves = []
    for name, loss in _star_forms().items():
        x = torch.linspace(-10, 10, NUM_POINTS, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(loss(x, torch.ones_like(x)).sum(), x)
        curves.append(_curve(name, x, slope))
    return Plot(
        "Figure 6: derivatives of the losses of figure 5",
        curves,
        x_label="x_t = y x",
        y_label="derivative",
        x_range=(-10.0, 10.0),
        y_range=(-1.2, 0.05),
    )


def _write_examples(out: Path, examples: tuple[Example, ...]) -> None:
    rows = [asdict(example) for example in examples]
    (out / "examples.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    with (out / "examples.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def _body(out: Path, plots: dict[str, Plot], examples: tuple[Example, ...]) -> str:
    figures = "".join(embedded(plot, out / name) for name, plot in plots.items())
    rows = []
    for p in EXAMPLES:
        cells = "".join(
            f"<td>{one.loss:.3g}<br><small>{one.times_smaller:,.3g} ×</small></td>" for one in examples if one.p_t == p
        )
        rows.append(f"<tr><th>{p:g}</th>{cells}</tr>")
    heads = "".join(f"<th>γ = {gamma:g}</th>" for gamma in GAMMAS)
    return (
        "<header><h1>The focal loss in pictures</h1><p>Drawn by the functions of <code>focaldet.losses</code>; "
        "Lin et al. 2017, figures 1, 5 and 6.</p></header>"
        f'<section class="charts">{figures}</section>'
        "<section><h2>The larger γ, the lower the loss of easy examples</h2>"
        "<p>Loss of one example, and how many times smaller than the cross entropy (γ = 0) it is.</p>"
        f'<div class="wide"><table><thead><tr><th>p_t</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
        "<p>An easy example at p_t = .9 counts a hundred times less with γ = 2, one at .968 a thousand times; a hard "
        "one at p_t ≤ .5 at most four times.</p></section>"
    )
