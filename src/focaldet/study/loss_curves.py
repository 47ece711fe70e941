"""The paper's figures of the losses, drawn from the library's own functions: 1, 5, 6, the balance, worked examples."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, fields
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from focaldet.config import make_folder, write_csv, write_json
from focaldet.ops.losses.cross_entropy import balanced_cross_entropy, binary_cross_entropy
from focaldet.ops.losses.focal import balanced_focal_loss, focal_loss, focal_star_loss
from focaldet.report.charts import Chart, Curve, chart_section, write_chart, write_curves
from focaldet.report.page import header, section, table, write_page

FIGURE_GAMMAS = (0.0, 0.5, 1.0, 2.0, 5.0)
STARS = ((2.0, 1.0), (4.0, 0.0))
WELL_CLASSIFIED = 0.6  # shaded in figure 1
NUM_POINTS = 401
EXAMPLE_PROBABILITIES = (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.968, 0.99)

ElementwiseLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class WorkedExample:
    """The loss at p_t with one γ of figure 1, and how many times smaller than the cross entropy it is."""

    p_t: float
    gamma: float
    loss: float
    times_smaller: float


@dataclass(frozen=True, slots=True)
class LossStudy:
    """The files that `study_losses` wrote; `page` shows them all."""

    page: Path
    curves: Path
    examples: tuple[WorkedExample, ...]


def study_losses(out: Path) -> LossStudy:
    """Draw figures 1, 5 and 6 of the paper and the α-balance, and compute worked examples; all into the folder `out`.

    `<figure>.svg` and `.png`, `curves.csv` with all points, `examples.json` and `.csv`, `index.html` with all of it.

    Raises:
        ConfigError: the folder cannot be made.
    """
    make_folder(out)
    charts = {"focal_loss": _figure_1(), "balance": _balance_chart(), "star": _figure_5(), "star_slopes": _figure_6()}
    for name, chart in charts.items():
        write_chart(chart, out / name)
    write_curves(charts, out / "curves.csv")
    examples = worked_examples()
    write_json(out / "examples.json", [asdict(example) for example in examples])
    write_csv(out / "examples.csv", [field.name for field in fields(WorkedExample)], map(astuple, examples))
    write_page(
        out / "index.html",
        "The focal loss in figures · focaldet",
        header(
            "The focal loss in figures",
            "Drawn with the functions of <code>focaldet.losses</code>; Lin et al. 2017, figures 1, 5 and 6.",
        ),
        chart_section("", list(charts.values())),
        section(
            "The larger γ, the lower the loss of easy examples",
            "<p>Loss of one example, and how many times smaller than the cross entropy (γ = 0) it is.</p>",
            table(["p_t", *(f"γ = {gamma:g}" for gamma in FIGURE_GAMMAS)], _example_rows(examples)),
            "<p>With γ = 2, an easy example at p_t = .9 counts a hundred times less and one at .968 a thousand times "
            "less; a hard one at p_t ≤ .5 at most four times.</p>",
        ),
    )
    return LossStudy(out / "index.html", out / "curves.csv", examples)


def worked_examples() -> tuple[WorkedExample, ...]:
    """The loss with each γ for examples from hard (p_t = .1) to easy (.99)."""
    examples = []
    for p in EXAMPLE_PROBABILITIES:
        logit, target = torch.logit(torch.tensor(p, dtype=torch.float64)), torch.tensor(1.0)
        plain = binary_cross_entropy(logit, target).item()
        for gamma in FIGURE_GAMMAS:
            loss = focal_loss(logit, target, gamma=gamma).item()
            examples.append(WorkedExample(p, gamma, loss, plain / loss))
    return tuple(examples)


def gamma_name(gamma: float) -> str:
    """How a curve of the focal loss is called: "γ = 2"."""
    return f"γ = {gamma:g}{' (cross entropy)' if gamma == 0 else ''}"


def short_number(value: float) -> str:
    """A number with at least two and mostly three digits: "0.0217", "2.62", "1,006"."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _figure_1() -> Chart:
    """FL(p_t) for every γ; γ = 0 is the cross entropy."""
    p = torch.linspace(0.005, 0.9995, NUM_POINTS, dtype=torch.float64)
    forms = {gamma_name(gamma): partial(focal_loss, gamma=gamma) for gamma in FIGURE_GAMMAS}
    return Chart(
        "Figure 1: the focal loss",
        [_tensor_curve(name, p, loss(torch.logit(p), torch.ones_like(p))) for name, loss in forms.items()],
        x_label="probability of the true class p_t",
        y_label="loss",
        x_range=(0.0, 1.0),
        y_range=(0.0, 5.0),
        shaded=(WELL_CLASSIFIED, 1.0, "well-classified\nexamples"),
    )


def _balance_chart() -> Chart:
    """Positives and negatives with and without α (eqs. 3 and 5)."""
    p = torch.linspace(0.005, 0.995, NUM_POINTS, dtype=torch.float64)
    forms: dict[str, ElementwiseLoss] = {
        "balanced CE, α = .75": partial(balanced_cross_entropy, alpha=0.75),
        "balanced FL, α = .25, γ = 2": partial(balanced_focal_loss, alpha=0.25, gamma=2.0),
    }
    curves = [
        _tensor_curve(f"{name}: {kind}", p, loss(torch.logit(p), torch.full_like(p, target)))
        for name, loss in forms.items()
        for kind, target in (("object", 1.0), ("background", 0.0))
    ]
    return Chart(
        "α-balanced losses of objects and of background",
        curves,
        x_label="predicted probability p of an object",
        y_label="loss",
        x_range=(0.0, 1.0),
        y_range=(0.0, 3.0),
    )


def _star_forms() -> dict[str, ElementwiseLoss]:
    forms: dict[str, ElementwiseLoss] = {
        "CE": partial(focal_loss, gamma=0.0),
        "FL, γ = 2": partial(focal_loss, gamma=2.0),
    }
    for gamma, beta in STARS:
        forms[f"FL*, γ = {gamma:g}, β = {beta:g}"] = partial(focal_star_loss, gamma=gamma, beta=beta)
    return forms


def _figure_5() -> Chart:
    """FL* beside FL and the cross entropy (appendix A)."""
    x = torch.linspace(-5, 5, NUM_POINTS, dtype=torch.float64)
    curves = [_tensor_curve(name, x, loss(x, torch.ones_like(x))) for name, loss in _star_forms().items()]
    return Chart(
        "Figure 5: another form of the focal loss", curves, "x_t = y x", "loss", x_range=(-5.0, 5.0), y_range=(0.0, 5.0)
    )


def _figure_6() -> Chart:
    """Their derivatives by x (appendix B): well-classified examples (x_t > 0) have nearly no gradient."""
    curves = []
    for name, loss in _star_forms().items():
        x = torch.linspace(-10, 10, NUM_POINTS, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(loss(x, torch.ones_like(x)).sum(), x)
        curves.append(_tensor_curve(name, x, slope))
    title = "Figure 6: derivatives of the losses of figure 5"
    return Chart(title, curves, "x_t = y x", "derivative", x_range=(-10.0, 10.0), y_range=(-1.2, 0.05))


def _tensor_curve(name: str, x: Float64[Tensor, " P"], y: Float64[Tensor, " P"]) -> Curve:
    return Curve(name, x.tolist(), y.tolist())


def _example_rows(examples: Sequence[WorkedExample]) -> list[list[str]]:
    """Table rows of HTML cells, one for each p_t, with a column for each γ."""
    rows: dict[float, list[str]] = {}
    for one in examples:
        cell = f"{one.loss:.3g}<br><small>{short_number(one.times_smaller)} ×</small>"
        rows.setdefault(one.p_t, [f"{one.p_t:g}"]).append(cell)
    return list(rows.values())
