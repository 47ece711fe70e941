"""Images with boxes: the right pixels, the right colors, and nothing that a class name or a size can break."""

from pathlib import Path

import matplotlib
import numpy
import pytest
import torch
from PIL import Image

from focaldet import draw
from focaldet.errors import ConfigError
from focaldet.types import Detections


def detections_of(*boxes, labels=None, scores=None, names=("cell",)):
    labels = labels if labels is not None else [0] * len(boxes)
    scores = scores if scores is not None else [0.9] * len(boxes)
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Detections(
        corners, torch.tensor(scores, dtype=torch.float32).reshape(-1), torch.tensor(labels).long(), names
    )


def gray(width=200, height=160):
    return Image.new("RGB", (width, height), (128, 128, 128))


def test_the_frame_has_the_color_of_the_class_and_the_rest_stays():
    image = draw.boxes(gray(), detections_of([50, 60, 150, 140], labels=[3], names=("a", "b", "c", "d")))
    pixels = numpy.asarray(image)
    for x, y in [(100, 60), (100, 140), (50, 100), (150, 100)]:
        assert tuple(pixels[y, x]) == draw.class_color(3)
    assert (pixels[70:130, 60:140] == 128).all()


def test_the_given_image_is_not_changed():
    image = gray()
    draw.boxes(image, detections_of([10, 30, 100, 100]))
    assert image.getcolors() == [(200 * 160, (128, 128, 128))]


def test_no_detections_leave_the_image_as_it_was():
    assert draw.boxes(gray(), detections_of()).tobytes() == gray().tobytes()


def test_detections_below_the_score_are_not_drawn():
    both = detections_of([10, 30, 60, 80], [90, 30, 160, 80], scores=[0.8, 0.2])
    assert draw.boxes(gray(), both, min_score=0.5).tobytes() == draw.boxes(gray(), both.above(0.5)).tobytes()
    assert draw.boxes(gray(), both, min_score=0.9).tobytes() == gray().tobytes()


def test_the_better_detection_lies_on_top():
    twice = detections_of([20, 40, 100, 100], [20, 40, 100, 100], labels=[0, 1], scores=[0.9, 0.8], names=("a", "b"))
    assert draw.boxes(gray(), twice).getpixel((60, 100)) == draw.class_color(0)


def test_pil_array_and_tensor_give_the_same_image():
    pixels = numpy.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=numpy.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    detections = detections_of([10, 20, 50, 50])
    expected = draw.boxes(Image.fromarray(pixels), detections).tobytes()
    for image in (pixels, tensor, tensor.float()):
        assert draw.boxes(image, detections).tobytes() == expected


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16"])
def test_every_mode_of_image_is_drawn_on(mode):
    assert draw.boxes(Image.new(mode, (50, 50)), detections_of([5, 20, 45, 45])).mode == "RGB"


def test_what_is_not_an_image_is_refused():
    with pytest.raises(ConfigError, match=r"PIL image, an RGB array .* got ndarray of shape \(4, 4\)"):
        draw.to_image(numpy.zeros((4, 4), dtype=numpy.uint8))
    with pytest.raises(ConfigError, match=r"got Tensor of shape \(1, 4, 4\)"):
        draw.to_image(torch.zeros(1, 4, 4))


@pytest.mark.parametrize("name", ["적혈구", "日本", "é Ł", "two\nlines", "", "x" * 500, "\U0001f600", "\x00"])
def test_any_class_name_is_drawn(name):
    image = draw.boxes(gray(), detections_of([40, 60, 150, 140], names=(name,)))
    assert image.getpixel((100, 140)) == draw.class_color(0)


def test_a_name_without_a_font_shows_its_label(monkeypatch):
    monkeypatch.setattr(draw, "WIDE_FONTS", ())
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", list)
    draw._font_with.cache_clear()
    bare = detections_of([40, 60, 150, 140], labels=[0], names=("#0",))
    assert (
        draw.boxes(gray(), detections_of([40, 60, 150, 140], names=("적혈구",))).tobytes()
        == draw.boxes(gray(), bare).tobytes()
    )
    draw._font_with.cache_clear()


def test_boxes_outside_the_image_and_points_do_no_harm():
    boxes = [[-1e9, -1e9, 1e9, 1e9], [199, 159, 200, 160], [5, 5, 5, 5], [300, 300, 400, 400]]
    assert draw.boxes(gray(), detections_of(*boxes)).size == (200, 160)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (20, 20)])
def test_tiny_images_keep_their_size(size):
    assert draw.boxes(Image.new("RGB", size), detections_of([0, 0, 1, 1])).size == size


def test_lines_and_text_grow_with_the_image():
    assert [draw.line_width((side, side)) for side in (100, 500, 1000, 4000)] == [1, 2, 4, 16]
    assert [draw.font_size((side, side)) for side in (100, 500, 1000, 4000)] == [10, 14, 28, 112]


def test_labels_stay_inside_and_do_not_cover_each_other_while_there_is_room():
    rectangles = [(100, 80, 140, 110), (105, 82, 150, 112), (0, 0, 30, 30), (190, 150, 200, 160)]
    labels = draw.place_labels(["cell 0.90"] * 4, rectangles, (200, 160), 10)
    for one in labels:
        left, top, right, bottom = one.rectangle
        assert left >= 0 and top >= 0 and right <= 200 and bottom <= 160
    assert not any(draw.rectangles_overlap(a.rectangle, b.rectangle) for a in labels for b in labels if a is not b)


def test_a_label_stands_above_its_box_when_it_can_and_inside_at_the_upper_edge():
    above, inside = draw.place_labels(["a", "b"], [(50, 80, 90, 120), (120, 0, 160, 50)], (200, 160), 10)
    assert above.rectangle[3] == 80
    assert inside.rectangle[1] == 0


def contrast(a, b):
    def luminance(color):
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in color)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def test_every_label_reaches_the_contrast_for_body_text():
    assert min(contrast(draw.class_color(k), draw.text_color(draw.class_color(k))) for k in range(400)) >= 4.5


def test_the_first_twenty_classes_have_clearly_different_colors():
    colors = numpy.array([draw.class_color(k) for k in range(20)], dtype=float)
    distances = numpy.linalg.norm(colors[:, None] - colors[None], axis=2) + numpy.eye(20) * 1e3
    assert distances.min() >= 40


def test_ground_truth_is_drawn_without_scores():
    detections = detections_of([40, 60, 150, 140])
    assert draw.boxes(gray(), detections, show_scores=False).tobytes() != draw.boxes(gray(), detections).tobytes()


def test_names_of_version_0_1_still_work_with_a_warning():
    for old, new in [("to_picture", "to_image"), ("class_colour", "class_color"), ("text_colour", "text_color")]:
        with pytest.warns(DeprecationWarning, match=f"draw.{old} is now called draw.{new}"):
            assert getattr(draw, old) is getattr(draw, new)
    with pytest.raises(AttributeError, match="no attribute 'to_pixels'"):
        draw.to_pixels  # noqa: B018


def test_a_font_of_the_system_is_searched_for_letters_that_the_usual_ones_lack(monkeypatch):
    """Greek, Cyrillic and anything else that some installed font has; what none has is told with its label."""
    draw._font_with.cache_clear()
    monkeypatch.setattr(draw, "WIDE_FONTS", ())
    dejavu = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: [str(dejavu)])
    names = ("cat", "кошка", "γάτα", "\U00012000 \U00012001")
    assert draw.undrawable_names(names) == {3: names[3]}
    assert draw.font_for("кошка", 12).path == str(dejavu)
    draw._font_with.cache_clear()
