"""Results for an evaluation server: the ids of its list of images, and scoring results without any image."""

import json
from pathlib import Path

import pytest

from focaldet.errors import DataError
from focaldet.evaluation.image_list import read_image_list
from focaldet.evaluation.result_files import evaluate_files
from focaldet.prediction import Predictor, predict_files
from tests.data.datasets import coco_document, write_coco
from tests.evaluation.cases import BrightDetector, make_image


def write_list(file, names, **more):
    images = [{"id": 1000 + i, "file_name": name, "height": 64, "width": 64} for i, name in enumerate(names)]
    file.write_text(json.dumps({"images": images} | more))
    return file


def predictor():
    return Predictor(BrightDetector(), device="cpu", precision="fp32", category_ids=(7, 9))


def save(folder, *names):
    from PIL import Image

    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        array = make_image(box=(8, 8, 24, 40)).permute(1, 2, 0).numpy()
        Image.fromarray(array).save(folder / name)


@pytest.mark.parametrize(
    ("categories", "category_id"), [([], 7), ([{"id": 31, "name": "cell"}, {"id": 2, "name": "other"}], 31)]
)
def test_results_have_the_ids_of_the_list(tmp_path, categories, category_id):
    save(tmp_path / "in", "b.png", "x/a.png", "y/a.png", "extra.png")
    like = write_list(tmp_path / "info.json", ["b.png", "gone.png", "y/a.png"], categories=categories)
    result = predict_files(predictor(), [tmp_path / "in"], tmp_path / "out", formats=("coco",), drawn=False, like=like)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["image_id"] for row in results] == [1000, 1002]
    assert results[0] == {"image_id": 1000, "category_id": category_id, "bbox": [8, 8, 16, 32], "score": 1.0}
    document = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [(image["id"], Path(image["file_name"]).name) for image in document["images"]] == [
        (1000, "b.png"),
        (1002, "a.png"),
    ]
    assert [row["image_id"] for row in document["annotations"]] == [1000, 1002]
    assert result.num_images == 2
    assert "1 image of" in result.notes[0] and "gone.png" in result.notes[0]
    assert "2 images not in" in result.notes[1] and "extra.png" in result.notes[1]


def test_a_list_that_is_none_or_of_other_images(tmp_path):
    save(tmp_path / "in", "a.png")
    with pytest.raises(DataError, match="none of its 1 images is among those given"):
        predict_files(predictor(), [tmp_path / "in"], tmp_path / "out", like=write_list(tmp_path / "x.json", ["b.png"]))
    (tmp_path / "y.json").write_text("[]")
    with pytest.raises(DataError, match="must be a JSON object"):
        read_image_list(tmp_path / "y.json")


def test_results_are_scored_without_images_whatever_their_names_are(tmp_path):
    document = coco_document()
    for image, name in zip(document["images"], ("/abs/a.png", "..\\b.png", "https://x.org/c.png?sig=1"), strict=True):
        image["file_name"] = name
    write_coco(tmp_path, document)
    for image in (tmp_path / "images").iterdir():
        image.unlink()
    results = [row | {"score": 0.9} for row in document["annotations"]]
    (tmp_path / "results.json").write_text(json.dumps(results))
    for truth in (tmp_path / "instances_train.json", tmp_path):
        assert evaluate_files(tmp_path / "results.json", truth, split="train").ap == 1.0
