"""Run folders as training and evaluation leave them, for the tests of reports."""

import json

from PIL import Image

from focaldet.data.config import DataConfig
from focaldet.evaluation.coco import evaluate_detections
from focaldet.evaluation.evaluate import open_evaluation_split, read_run_settings
from focaldet.evaluation.results import write_results
from focaldet.files import write_json
from focaldet.report.kept_detections import open_validation_images
from tests.evaluation.cases import make_detections, make_image

BOX = [8, 8, 24, 40]
METRICS = "kind,epoch,step,learning_rate,images_per_second,loss,class_loss,ap,ap50,ap75\n"
STEPS = (
    "".join(f"step,1,{step},0.01,5.0,{2 / step},1.0,,,\n" for step in range(1, 9)) + "evaluation,1,8,,,,,0.25,0.5,\n"
)


def write_coco(folder, name, numbers, *, box=(8, 8, 16, 32)):
    """Images with one bright box each (xywh), as a COCO file of their split."""
    (folder / name).mkdir(parents=True)
    images, annotations = [], []
    for number in numbers:
        pixels = make_image().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / name / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 48})
        annotations.append({"id": number, "image_id": number, "category_id": 1 + number % 2, "bbox": list(box)})
    names = [{"id": 1, "name": "cell"}, {"id": 2, "name": "dog"}]
    text = json.dumps({"images": images, "annotations": annotations, "categories": names})
    (folder / f"instances_{name}.json").write_text(text)
    return folder


def detect(dataset, *, shift=0):
    """The box of every image, moved by `shift` pixels."""
    box = [BOX[0] + shift, BOX[1], BOX[2] + shift, BOX[3]]
    labels = [int(dataset.target(k).labels[0]) for k in range(len(dataset))]
    return {k: make_detections((box, 0.9, label)) for k, label in enumerate(labels)}


def make_run(folder, data, *, shift=0, model="m1", events=(), seed=0, fingerprints=True, settings=""):
    """A run folder as training leaves it, whose detections are moved by `shift` pixels."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"model: {model}\nseed: {seed}\nsize: null\ndata: {{path: {data}}}\n{settings}")
    (folder / "metrics.csv").write_text(METRICS + STEPS)
    records = [{"event": "started"}, {"event": "epoch", "seconds": {"loading": 1.0, "update": 3.0}}, *events]
    (folder / "events.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    dataset, _ = open_validation_images(DataConfig(path=data), read_run_settings(folder))
    if fingerprints:
        known = {"train": "of the training", "validation": dataset.fingerprint()}
        (folder / "environment.json").write_text(json.dumps({"torch": "2.14", "data": known}))
    write_results(folder / "predictions.json", dataset, detect(dataset, shift=shift))
    return folder


def evaluate_run(run, data, name, *, split="val", max_detections=100, shift=0):
    """What `eval` leaves in the run folder."""
    dataset = open_evaluation_split(DataConfig(path=data), split, seed=0)
    detections = detect(dataset, shift=shift)
    (run / name).mkdir()
    write_results(run / name / "predictions.json", dataset, detections)
    metrics = evaluate_detections(dataset, detections, max_detections=max_detections)
    about = {"split": dataset.name, "data": dataset.fingerprint()}
    write_json(run / name / "metrics.json", about | metrics.to_dict())
    return dataset
