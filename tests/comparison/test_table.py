"""The results table in the form of the paper, in each of its formats."""

import csv
import io
from dataclasses import replace

import pytest

from focaldet.comparison.table import (
    HEADS,
    html_table,
    latex_table,
    markdown_table,
    number_columns,
    table_lines,
)
from tests.comparison.rows_by_hand import make_row

ROWS = [
    make_row("faster_rcnn_r18_c4", [0.40], 80.0, model="faster_rcnn_r18_c4"),
    make_row("faster_rcnn_mobilenet_v2_fpn", [0.50, 0.54], 90.0, model="faster_rcnn_mobilenet_v2_fpn"),
    make_row("yolov2_tiny", [], model="yolov2_tiny", error="loss is NaN in step 3"),
    make_row("ssd_r18", [0.30], 20.04, model="ssd_r18"),
    make_row("ssd_mobilenet_v2", [0.35], 20.0, model="ssd_mobilenet_v2"),
    make_row("peer", [0.20]),
]


def test_two_stage_stands_above_one_stage_and_the_published_row_below_the_last_of_its_system():
    lines = [(line.kind, line.cells[0]) for line in table_lines(ROWS)]
    assert lines == [
        ("heading", "Two-stage methods"),
        ("detector", "faster_rcnn_r18_c4"),
        ("published", "Faster R-CNN+++, paper, COCO"),
        ("detector", "faster_rcnn_mobilenet_v2_fpn"),
        ("published", "Faster R-CNN w FPN, paper, COCO"),
        ("heading", "One-stage methods"),
        ("failed", "yolov2_tiny"),
        ("published", "YOLOv2, paper, COCO"),
        ("detector", "ssd_r18"),
        ("detector", "ssd_mobilenet_v2"),
        ("published", "SSD513, paper, COCO"),
        ("heading", "Other results"),
        ("detector", "peer"),
    ]


def test_cells_are_percent_with_the_deviation_between_seeds_and_the_best_is_marked():
    lines = {line.cells[0]: line for line in table_lines(ROWS)}
    best = lines["faster_rcnn_mobilenet_v2_fpn"]
    assert best.cells == (
        "faster_rcnn_mobilenet_v2_fpn",
        "mobilenet_v2",
        "52.0 ± 2.8",
        "78.0",
        "52.0",
        "-",
        "46.8",
        "57.2",
        "90.0",
    )
    assert best.best == {2, 3, 4, 6, 7}, "no detector has small objects"
    assert lines["ssd_r18"].best == lines["ssd_mobilenet_v2"].best == {8}, "equal as they are printed"
    published = lines["SSD513, paper, COCO"]
    assert published.cells[1:] == ("ResNet-101-SSD", "31.2", "50.4", "33.3", "10.2", "34.5", "49.8", "")


def test_markdown_has_a_cell_for_every_head():
    lines = markdown_table(ROWS).splitlines()
    assert {line.count("|") for line in lines} == {len(HEADS) + 1}
    assert "| faster_rcnn_mobilenet_v2_fpn | mobilenet_v2 | **52.0 ± 2.8** | **78.0** |" in lines[5]
    assert "failed: loss is NaN in step 3" in markdown_table(ROWS)
    assert "| *31.2* |" in markdown_table(ROWS)


def test_latex_escapes_what_it_must():
    text = latex_table([make_row("a_b&c%", [0.5], 1.0), *ROWS])
    assert r"a\_b\&c\% & - & 50.0" in text and r"\textbf{52.0 $\pm$ 2.8}" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    assert r"\textcolor{gray}{31.2}" in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {line.count(" & ") for line in rows} == {len(HEADS) - 1}


def test_names_cannot_become_markup():
    html = html_table([make_row("<script>", [0.5], 1.0)], {"<script>": "A"})
    assert "<script>" not in html and "&lt;script&gt;" in html and '<span class="mark">A</span>' in html


def test_numbers_for_programs_are_fractions_and_one_column_each():
    columns = number_columns(ROWS[1])
    assert (
        columns["ap"] == pytest.approx(0.52) and columns["ap_small"] is None and columns["ms_p90"] == pytest.approx(117)
    )
    assert columns["ap_low"] == pytest.approx(0.501) and columns["ap_high"] == pytest.approx(0.539)
    assert columns["images_seen"] == 40 and columns["epochs"] == 2.0
    assert columns["training_pflop"] == pytest.approx(3 * 2.0 * 40 / 1e6)
    buffer = io.StringIO()
    csv.writer(buffer).writerow(columns)
    assert all(list(number_columns(row)) == list(columns) for row in ROWS)
    assert columns["decode_ms"] is None, "a column for every part, measured or not"
    assert number_columns(ROWS[2])["error"] == "loss is NaN in step 3"


def test_special_characters_of_latex_are_words_where_they_have_to_be():
    assert r"a\textasciitilde{}b\textasciicircum{}c\_d" in latex_table([make_row("a~b^c_d", [0.2])])


def test_in_a_column_of_zeros_none_is_the_best():
    lines = table_lines([make_row("a", [0.0], 10.0), make_row("b", [0.0], 20.0)])
    assert [line.best for line in lines if line.kind == "detector"] == [frozenset({8}), frozenset()]


def test_seeds_that_failed_are_counted_beside_the_deviation():
    row = ROWS[1]
    failed = replace(row.results[0], seed=2, images_seen=0, error="out of memory")
    row = replace(row, results=(*row.results, failed))
    (line,) = (line for line in table_lines([row]) if line.kind == "detector")
    assert line.cells[2] == "52.0 ± 2.8 (n = 2)"
    columns = number_columns(row)
    assert (columns["seeds"], columns["failed_seeds"], columns["images_seen"], columns["error"]) == (2, 1, 40, None)


def test_what_is_not_known_is_empty_and_no_zero():
    unknown = {"images_seen", "epochs", "training_seconds", "wall_seconds", "training_pflop", "initial_weights"}
    added = make_row("added", [0.5], 10.0, model="ssd_r18")
    note = "an exported file"
    exported = tuple(replace(each, images_seen=0, num_images=0, seconds=0.0, note=note) for each in added.results)
    for row in (ROWS[-1], replace(added, results=exported)):
        columns = number_columns(row)
        assert {name for name in unknown if columns[name] is not None} == set()
    assert number_columns(added)["initial_weights"] == "random"
