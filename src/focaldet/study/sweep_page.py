"""The results of a sweep as sentences, table, chart and page, beside the paper's own figures."""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from focaldet import config as configs
from focaldet.data.formats.text import quantity
from focaldet.evaluation.coco import percent
from focaldet.ops.classifier import Classifier
from focaldet.report.charts import Chart, Curve, chart_section, write_chart
from focaldet.report.page import header, section, table, write_page
from focaldet.training.config import RunConfig

NOISE_POINTS = 2.0  # of AP, between two trainings that differ by chance alone
ALPHA_OFF = "α off (eq. 4)"


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One setting and the AP after its last epoch, in [0, 1]; None where there are no objects or it diverged.

    `name` is that of its folder in `runs`. `batch`, `nms_iou` and `ratio` are those of hard example mining. `diverged`
    is the message of the training that diverged.
    """

    name: str
    gamma: float
    alpha: float | None
    batch: int | None = None
    nms_iou: float | None = None
    ratio: float | None = None
    classifier: Classifier = "sigmoid"
    ap: float | None = None
    ap50: float | None = None
    ap75: float | None = None
    epochs: int = 0
    seconds: float = 0.0
    diverged: str | None = None

    @property
    def is_focal(self) -> bool:
        """A row of the grid of γ and α, neither mining nor softmax."""
        return self.batch is None and self.classifier == "sigmoid"

    @property
    def loss(self) -> tuple[float | int | None, ...]:
        """The settings of the loss, by which measured and published rows are compared."""
        return self.gamma, self.alpha, self.batch, self.nms_iou, self.ratio

    def architecture(self) -> dict[str, Any]:
        """The architecture settings of a detector with this loss."""
        loss: dict[str, Any] = {"gamma": self.gamma, "alpha": self.alpha}
        if self.batch is not None:
            loss["mining"] = {"batch": self.batch, "nms_iou": self.nms_iou, "ratio": self.ratio}
        return {"loss": loss} if self.classifier == "sigmoid" else {"loss": loss, "classifier": self.classifier}

    def title(self) -> str:
        """The setting in words."""
        if self.batch is not None:
            ratio = "" if self.ratio is None else f", 1:{self.ratio:g}"
            return f"cross entropy with OHEM, batch {self.batch}, NMS {self.nms_iou:g}{ratio}"
        if not self.is_focal:
            return "softmax cross entropy with a background class"
        return f"γ = {self.gamma:g}, α {'off' if self.alpha is None else f'= {self.alpha:g}'}"

    def summary(self) -> str:
        """The three numbers in one line."""
        if self.diverged is not None:
            return "diverged"
        return "  ".join(
            f"{name} {percent(value)}" for name, value in zip(("AP", "AP50", "AP75"), self.numbers(), strict=True)
        )

    def numbers(self) -> tuple[float | None, float | None, float | None]:
        """AP, AP50 and AP75."""
        return self.ap, self.ap50, self.ap75


@dataclass(frozen=True, slots=True)
class BalanceComparison:
    """AP with α off (eq. 4) and with the best of the α that were tried (eq. 5), for one γ."""

    gamma: float
    off: float
    balanced: float
    alpha: float

    @property
    def gain(self) -> float:
        """What the best α adds."""
        return self.balanced - self.off


def best_row(rows: Iterable[SweepRow]) -> SweepRow | None:
    """The row with the highest AP, of equals the first; None where none has an AP."""
    return max((row for row in rows if row.ap is not None), key=lambda row: row.ap or 0.0, default=None)


def compare_balance(rows: Sequence[SweepRow]) -> tuple[BalanceComparison, ...]:
    """Eq. 5 against eq. 4 for every γ that was trained both ways."""
    grid = [row for row in rows if row.is_focal]
    compared = []
    for gamma in dict.fromkeys(row.gamma for row in grid):
        off = next((row.ap for row in grid if row.gamma == gamma and row.alpha is None), None)
        best = best_row(row for row in grid if row.gamma == gamma and row.alpha is not None)
        if off is not None and best is not None and best.ap is not None and best.alpha is not None:
            compared.append(BalanceComparison(gamma, off, best.ap, best.alpha))
    return tuple(compared)


def sweep_sentences(rows: Sequence[SweepRow]) -> tuple[str, ...]:
    """The best setting and what the settings show beside each other, in sentences computed from the numbers."""
    lines = []
    if best := best_row(rows):
        lines.append(f"Best: {best.title()}, with AP {percent(best.ap)}.")
    if compared := compare_balance(rows):
        each = "; ".join(
            f"γ = {one.gamma:g}: {percent(one.off)} off, {percent(one.balanced)} with α = {one.alpha:g} "
            f"({_format_gain(one.gain)})"
            for one in compared
        )
        better = sum(one.gain > 0 for one in compared)
        mean = sum(one.gain for one in compared) / len(compared)
        clear = sum(abs(one.gain) * 100 >= NOISE_POINTS for one in compared)
        lines.append(
            f"Is the balance (eq. 5) better than none (eq. 4)? With its best α at {better} of {len(compared)} γ, by "
            f"{_format_gain(mean)} points of AP on average; {clear} of the differences reach {NOISE_POINTS:g} points. "
            f"{each}. The best of several α is chosen on the images that it is evaluated on, which favors eq. 5."
        )
    focal = best_row(row for row in rows if row.is_focal and row.gamma > 0)
    plain = best_row(row for row in rows if row.is_focal and row.gamma == 0)
    for name, other in (
        ("the best cross entropy (γ = 0)", plain),
        ("the best OHEM", best_row(row for row in rows if row.batch is not None)),
        ("softmax", best_row(row for row in rows if row.classifier == "softmax")),
    ):
        if focal and other:
            gain = _format_gain((focal.ap or 0.0) - (other.ap or 0.0))
            lines.append(
                f"The best focal loss ({focal.title()}) against {name}: {percent(focal.ap)} to {percent(other.ap)} "
                f"({gain})."
            )
    if diverged := [row.title() for row in rows if row.diverged is not None]:
        lines.append(f"Diverged: {'; '.join(diverged)}.")
    return tuple(lines)


def _format_gain(gain: float) -> str:
    return f"{100 * gain:+.1f}".replace("-", "−")


def write_sweep(out: Path, rows: Sequence[SweepRow], *, run: RunConfig, num_images: int) -> Path:
    """Write `sweep.csv`, `ap.svg`, `ap.png` and `index.html`, which is returned; the same rows give the same bytes."""
    configs.write_csv(out / "sweep.csv", [field.name for field in fields(SweepRow)], map(astuple, rows))
    chart = ap_chart(rows)
    write_chart(chart, out / "ap")
    page = out / "index.html"
    others = [[escape(row.title()), *_ap_cells(row)] for row in rows if not row.is_focal]
    write_page(
        page,
        "A sweep of α and γ · focaldet",
        header("A sweep of α and γ", model=f"{run.model}, {quantity(run.epochs, 'epoch')}, seed {run.seed}"),
        chart_section("", [chart]),
        section("Results", *(f"<p>{escape(line)}</p>" for line in sweep_sentences(rows))),
        section("AP for every γ and α", "<p>AP, below it AP50 / AP75; ★ marks the best.</p>", _grid_table(rows)),
        section("Other losses", table(["setting", "AP", "AP50", "AP75"], others) if others else ""),
        section("What can be concluded", _caveats(run, num_images)),
        section("The paper's figures beside these", *_paper_tables(rows)),
    )
    return page


def ap_chart(rows: Sequence[SweepRow]) -> Chart:
    """AP by γ, a curve for each α; a setting without AP is a gap."""
    grid = {(row.gamma, row.alpha): row.ap for row in rows if row.is_focal}
    gammas = sorted({gamma for gamma, _ in grid})
    curves = []
    for alpha in dict.fromkeys(alpha for _, alpha in grid):
        values = [grid.get((gamma, alpha)) for gamma in gammas]
        curves.append(Curve(_alpha_name(alpha), gammas, [math.nan if ap is None else 100 * ap for ap in values]))
    top = max(1.0, 110 * max((ap or 0.0 for ap in grid.values()), default=0.0))
    title = "AP after the same training with every γ and α"
    return Chart(title, curves, x_label="γ", y_label="AP, %", y_range=(0.0, top), dots=True)


def _alpha_name(alpha: float | None) -> str:
    return ALPHA_OFF if alpha is None else f"α = {alpha:g}"


def _caveats(run: RunConfig, num_images: int) -> str:
    return (
        f'<p class="note">Every setting was trained once, with seed {run.seed}, and evaluated on '
        f"{quantity(num_images, 'image')}: differences below 1 to {NOISE_POINTS:g} points of AP mean nothing, and "
        "settings that are close may change order with another seed.</p><p>All settings share the initial weights, the "
        "order of the images, the learning rates and the length of training; nothing was tuned for any of them. AP is "
        "that of the last evaluation. A short training favors what learns fast. What can be compared with the paper is "
        "the direction in which AP moves, not its height.</p>"
    )


def _grid_table(rows: Sequence[SweepRow]) -> str:
    """The table γ × α."""
    grid = {(row.gamma, row.alpha): row for row in rows if row.is_focal}
    best = best_row(grid.values())
    alphas = list(dict.fromkeys(alpha for _, alpha in grid))
    lines = []
    for gamma in sorted({gamma for gamma, _ in grid}):
        cells = [grid[gamma, alpha] for alpha in alphas]
        lines.append([f"{gamma:g}", *(_grid_cell(row, is_best=row is best) for row in cells)])
    return table(["γ", *map(_alpha_name, alphas)], lines)


def _grid_cell(row: SweepRow, *, is_best: bool) -> str:
    if row.diverged is not None:
        return "diverged"
    star = "★ " if is_best else ""
    return f"<strong>{star}{percent(row.ap)}</strong><br><small>{percent(row.ap50)} / {percent(row.ap75)}</small>"


def _ap_cells(row: SweepRow) -> list[str]:
    return ["diverged", "-", "-"] if row.diverged is not None else [percent(value) for value in row.numbers()]


def _paper_tables(rows: Sequence[SweepRow]) -> list[str]:
    """Tables 1a, 1b and 1d with a column for what was measured here."""
    measured = {row.loss: row for row in rows if row.classifier == "sigmoid"}
    published = read_published()
    html = ["<p>Lin et al. 2017 on COCO at 600 px; tables 1a and 1b with ResNet-50-FPN, 1d with ResNet-101-FPN.</p>"]
    for name, title, heads in (
        ("1a", "cross entropy with every α", ("γ", "α")),
        ("1b", "every γ with its best α", ("γ", "α")),
        ("1d", "hard example mining", ("batch", "NMS")),
    ):
        lines = []
        for row in published:
            if row.name == name:
                here = _ap_cells(measured[row.loss])[0] if row.loss in measured else ""
                lines.append([*_published_setting(row), *_ap_cells(row), here])
        html += [f"<h3>Table {name}: {title}</h3>", table([*heads, "AP", "AP50", "AP75", "AP here"], lines)]
    return html


def read_published() -> list[SweepRow]:
    """The rows of tables 1a, 1b and 1d of Lin et al. 2017, on COCO minival; their `name` is that of the table.

    γ = 0 is cross entropy; the last row of table 1d is the focal loss with the network of that table.
    """
    lines = files("focaldet.study").joinpath("table1.csv").read_text(encoding="utf-8").splitlines()
    records = [{name: value or None for name, value in record.items()} for record in csv.DictReader(lines)]
    return [configs.from_dict(SweepRow, record, source="table1.csv") for record in records]


def _published_setting(row: SweepRow) -> tuple[str, str]:
    """The first two cells of a published row."""
    if row.batch is not None:
        ratio = "" if row.ratio is None else f"1:{row.ratio:g} "
        return f"OHEM {ratio}{row.batch}", f"{row.nms_iou:g}"
    return ("focal loss", "-") if row.name == "1d" else (f"{row.gamma:g}", f"{row.alpha:g}")
