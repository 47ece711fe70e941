"""What a sweep found, as sentences, table, plot and page, beside the paper's own figures."""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from html import escape
from pathlib import Path

from focaldet.evaluation.coco import percent
from focaldet.ops.classifier import Classifier
from focaldet.report.page import whole_page
from focaldet.study.plots import Curve, Plot, embedded, write_plot
from focaldet.study.table1 import TABLE_1A, TABLE_1B, TABLE_1D, TABLE_1D_FOCAL, PublishedLoss, PublishedMining
from focaldet.training.config import RunConfig

NOISE_POINTS = 2.0  # of AP, between two trainings that differ by nothing but chance


@dataclass(frozen=True, slots=True)
class Row:
    """One setting and the AP after its last epoch, in [0, 1]; None where nothing was to be found or it diverged.

    `batch`, `nms_iou` and `ratio` are those of hard example mining. `diverged` is what the training said of its loss.
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

    def title(self) -> str:
        """The setting for people."""
        if self.batch is not None:
            ratio = "" if self.ratio is None else f", 1:{self.ratio:g}"
            return f"cross entropy with OHEM, batch {self.batch}, NMS {self.nms_iou:g}{ratio}"
        if not self.is_focal:
            return "softmax cross entropy with a background class"
        return f"γ = {self.gamma:g}, α {'off' if self.alpha is None else f'= {self.alpha:g}'}"

    def in_words(self) -> str:
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
class Comparison:
    """AP with α off (eq. 4) and with the best of the α that were tried (eq. 5), for one γ."""

    gamma: float
    off: float
    balanced: float
    alpha: float

    @property
    def gain(self) -> float:
        """What the best α adds."""
        return self.balanced - self.off


def best_of(rows: Iterable[Row]) -> Row | None:
    """The row with the highest AP, of equals the first; None where none has an AP."""
    return max((row for row in rows if row.ap is not None), key=lambda row: row.ap or 0.0, default=None)


def comparisons(rows: Sequence[Row]) -> tuple[Comparison, ...]:
    """Eq. 5 against eq. 4 for every γ that was trained both ways."""
    grid = [row for row in rows if row.is_focal]
    found = []
    for gamma in dict.fromkeys(row.gamma for row in grid):
        off = next((row.ap for row in grid if row.gamma == gamma and row.alpha is None), None)
        best = best_of(row for row in grid if row.gamma == gamma and row.alpha is not None)
        if off is not None and best is not None and best.ap is not None and best.alpha is not None:
            found.append(Comparison(gamma, off, best.ap, best.alpha))
    return tuple(found)


def sentences(rows: Sequence[Row]) -> tuple[str, ...]:
    """What the numbers say, computed from them."""
    found = []
    if best := best_of(rows):
        found.append(f"Best: {best.title()}, with AP {percent(best.ap)}.")
    if compared := comparisons(rows):
        each = "; ".join(
            f"γ = {one.gamma:g}: {percent(one.off)} off, {percent(one.balanced)} with α = {one.alpha:g} "
            f"({_signed(one.gain)})"
            for one in compared
        )
        better = sum(one.gain > 0 for one in compared)
        mean = sum(one.gain for one in compared) / len(compared)
        clear = sum(abs(one.gain) * 100 >= NOISE_POINTS for one in compared)
        found.append(
            f"Is the balance (eq. 5) better than none (eq. 4)? With its best α at {better} of {len(compared)} γ, by "
            f"{_signed(mean)} points of AP in the mean; {clear} of the differences reach {NOISE_POINTS:g} points. "
            f"{each}. The best of several α is chosen on the images that judge it, which favours eq. 5."
        )
    focal = best_of(row for row in rows if row.is_focal and row.gamma > 0)
    plain = best_of(row for row in rows if row.is_focal and row.gamma == 0)
    for name, other in (
        ("the best cross entropy (γ = 0)", plain),
        ("the best OHEM", best_of(row for row in rows if row.batch is not None)),
        ("softmax", best_of(row for row in rows if row.classifier == "softmax")),
    ):
        if focal and other:
            gain = _signed((focal.ap or 0.0) - (other.ap or 0.0))
            found.append(
                f"The best focal loss ({focal.title()}) against {name}: {percent(focal.ap)} to {percent(other.ap)} "
                f"({gain})."
            )
    if diverged := [row.title() for row in rows if row.diverged is not None]:
        found.append(f"Diverged: {'; '.join(diverged)}.")
    return tuple(found)


def _signed(gain: float) -> str:
    return f"{100 * gain:+.1f}".replace("-", "−")


def write_files(out: Path, rows: Sequence[Row], *, run: RunConfig, num_images: int) -> Path:
    """Write `sweep.csv`, `ap.svg`, `ap.png` and `index.html`, which is returned; the same rows give the same bytes."""
    with (out / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Row)])
        table.writeheader()
        table.writerows(asdict(row) for row in rows)
    plot = ap_plot(rows)
    write_plot(plot, out / "ap")
    page = out / "index.html"
    body = _body(rows, embedded(plot, out / "ap"), run=run, num_images=num_images)
    page.write_text(whole_page("A sweep of α and γ · focaldet", body), encoding="utf-8")
    return page


def ap_plot(rows: Sequence[Row]) -> Plot:
    """AP against γ, a curve for each α; a setting without AP is a gap."""
    grid = [row for row in rows if row.is_focal]
    gammas = sorted({row.gamma for row in grid})
    curves = []
    for alpha in dict.fromkeys(row.alpha for row in grid):
        ap = {row.gamma: row.ap for row in grid if row.alpha == alpha and row.ap is not None}
        name = "α off (eq. 4)" if alpha is None else f"α = {alpha:g}"
        curves.append(Curve(name, gammas, [100 * ap.get(gamma, math.nan) for gamma in gammas]))
    room = max(0.5, 0.05 * (gammas[-1] - gammas[0]))
    highest = max((row.ap or 0.0 for row in grid), default=0.0)
    return Plot(
        "AP after the same training with every γ and α",
        curves,
        x_label="γ",
        y_label="AP",
        x_range=(gammas[0] - room, gammas[-1] + room),
        y_range=(0.0, max(1.0, 110 * highest)),
        points=True,
    )


def _body(rows: Sequence[Row], picture: str, *, run: RunConfig, num_images: int) -> str:
    said = "".join(f"<p>{escape(line)}</p>" for line in sentences(rows))
    others = [row for row in rows if not row.is_focal]
    beside = ""
    if others:
        lines = [[escape(row.title()), *_cells(row)] for row in others]
        beside = (
            f"<section><h2>In place of the focal loss</h2>{_table(['setting', 'AP', 'AP50', 'AP75'], lines)}</section>"
        )
    return (
        "<header><h1>A sweep of α and γ</h1>"
        f'<p class="model">{escape(run.model)}, {run.epochs} epochs, seed {run.seed}</p></header>'
        f'<section class="charts">{picture}</section>'
        f"<section><h2>What came out</h2>{said}</section>"
        "<section><h2>AP for every γ and α</h2><p>AP, below it AP50 / AP75; ★ marks the best.</p>"
        f"{_grid(rows)}</section>"
        f"{beside}<section><h2>How far this goes</h2>{_note(run, num_images)}</section>"
        f"<section><h2>The paper's figures beside these</h2>{_paper(rows)}</section>"
    )


def _note(run: RunConfig, num_images: int) -> str:
    return (
        f'<p class="note">Every setting was trained once, with seed {run.seed}, and judged by {num_images} images: '
        f"differences below 1 to {NOISE_POINTS:g} points of AP mean nothing, and near settings would change places "
        "with another seed.</p><p>All settings share the initial weights, the order of the images, the rates and the "
        "length of training; nothing was tuned for any of them. AP is that of the last evaluation. A short training "
        "favours what learns fast. What can be compared with the paper is the direction in which AP moves, not its "
        "height.</p>"
    )


def _grid(rows: Sequence[Row]) -> str:
    """The table γ × α."""
    grid = {(row.gamma, row.alpha): row for row in rows if row.is_focal}
    best = best_of(grid.values())
    alphas = list(dict.fromkeys(alpha for _, alpha in grid))
    heads = ["γ", *("α off (eq. 4)" if alpha is None else f"α = {alpha:g}" for alpha in alphas)]
    lines = []
    for gamma in sorted({gamma for gamma, _ in grid}):
        cells = [grid[gamma, alpha] for alpha in alphas]
        lines.append([f"{gamma:g}", *(_cell(row, is_best=row is best) for row in cells)])
    return _table(heads, lines)


def _cell(row: Row, *, is_best: bool) -> str:
    if row.diverged is not None:
        return "diverged"
    star = "★ " if is_best else ""
    return f"<strong>{star}{percent(row.ap)}</strong><br><small>{percent(row.ap50)} / {percent(row.ap75)}</small>"


def _cells(row: Row) -> list[str]:
    return ["diverged", "-", "-"] if row.diverged is not None else [percent(value) for value in row.numbers()]


def _paper(rows: Sequence[Row]) -> str:
    """Tables 1a, 1b and 1d with a column for what was measured here."""
    losses = {(row.gamma, row.alpha): row for row in rows if row.is_focal}
    minings = {(row.batch, row.nms_iou, row.ratio): row for row in rows if row.batch is not None}
    heads = ["AP", "AP50", "AP75", "AP here"]
    parts = []
    for title, table in (
        ("Table 1a: cross entropy with every α", TABLE_1A),
        ("Table 1b: every γ with its best α", TABLE_1B),
    ):
        lines = [
            [f"{one.gamma:g}", f"{one.alpha:g}", *_published(one, losses.get((one.gamma, one.alpha)))] for one in table
        ]
        parts.append(f"<h3>{title}</h3>{_table(['γ', 'α', *heads], lines)}")
    lines = []
    for one in TABLE_1D:
        name = f"OHEM {'' if one.ratio is None else f'1:{one.ratio:g} '}{one.batch}"
        lines.append([name, f"{one.nms_iou:g}", *_published(one, minings.get((one.batch, one.nms_iou, one.ratio)))])
    focal = TABLE_1D_FOCAL
    lines.append(["focal loss", "-", *_published(focal, losses.get((focal.gamma, focal.alpha)))])
    parts.append(f"<h3>Table 1d: hard example mining</h3>{_table(['batch', 'NMS', *heads], lines)}")
    source = "<p>Lin et al. 2017 on COCO at 600 px; tables 1a and 1b with ResNet-50-FPN, 1d with ResNet-101-FPN.</p>"
    return source + "".join(parts)


def _published(one: PublishedLoss | PublishedMining, here: Row | None) -> list[str]:
    return [f"{one.ap:.1f}", f"{one.ap50:.1f}", f"{one.ap75:.1f}", "" if here is None else _cells(here)[0]]


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table whose cells are HTML; the first of every line is its head."""
    top = f'<th class="text">{heads[0]}</th>' + "".join(f"<th>{head}</th>" for head in heads[1:])
    body = "".join(f"<tr><th>{line[0]}</th>{''.join(f'<td>{cell}</td>' for cell in line[1:])}</tr>" for line in lines)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
