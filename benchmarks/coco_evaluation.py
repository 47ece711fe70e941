"""COCO numbers of many detections: focaldet beside pycocotools, each from its own form of the same data in memory.

python benchmarks/coco_evaluation.py            # focaldet at 500 000, both at 50 000
"""

import argparse
import contextlib
import io
import resource

import measure
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from focaldet.data.dataset import Classes, Dataset, pack_paths, starts
from focaldet.data.problems import Problems
from focaldet.evaluation.coco import HEADLINES, evaluate_detections
from focaldet.types import Detections

NUM_CLASSES, PER_IMAGE, TRUTH_PER_IMAGE = 80, 100, 7


def made_up(num_detections):
    """A dataset and detections; every box of the truth has a detection near it."""
    rng = torch.Generator().manual_seed(0)
    num_images = num_detections // PER_IMAGE
    corner = torch.rand(num_images, PER_IMAGE, 2, generator=rng) * 400
    boxes = torch.cat([corner, corner + 5 + torch.rand(num_images, PER_IMAGE, 2, generator=rng) * 200], 2)
    labels = torch.randint(NUM_CLASSES, (num_images, PER_IMAGE), generator=rng)
    scores = torch.rand(num_images, PER_IMAGE, generator=rng)
    truth = boxes[:, :TRUTH_PER_IMAGE].reshape(-1, 4).double()
    path_bytes, path_offsets = pack_paths(["x.png"] * num_images)
    dataset = Dataset(
        name="made up",
        root=measure.RESULTS,
        classes=Classes(tuple(map(str, range(NUM_CLASSES))), tuple(range(1, NUM_CLASSES + 1))),
        image_ids=torch.arange(num_images) + 1,
        sizes=torch.full((num_images, 2), 640, dtype=torch.int32),
        offsets=starts(torch.full((num_images,), TRUTH_PER_IMAGE)),
        boxes=truth,
        labels=labels[:, :TRUTH_PER_IMAGE].reshape(-1).int(),
        flags=torch.zeros(len(truth), dtype=torch.uint8),
        areas=(truth[:, 2:] - truth[:, :2]).prod(1),
        path_bytes=path_bytes,
        path_offsets=path_offsets,
        problems=Problems(),
    )
    noisy = boxes + torch.randn(boxes.shape, generator=rng)
    return dataset, {place: Detections(noisy[place], scores[place], labels[place]) for place in range(num_images)}


def as_coco(dataset, detections):
    """The same for pycocotools."""
    images = torch.repeat_interleave(dataset.image_ids, dataset.offsets.diff()).tolist()
    rows = zip(images, dataset.boxes.tolist(), dataset.labels.tolist(), dataset.areas.tolist(), strict=True)
    annotations = [
        {"id": k, "image_id": i, "category_id": label + 1, "bbox": [x, y, x2 - x, y2 - y], "area": area, "iscrowd": 0}
        for k, (i, (x, y, x2, y2), label, area) in enumerate(rows, 1)
    ]
    categories = [{"id": k + 1, "name": str(k)} for k in range(NUM_CLASSES)]
    document = {"images": [{"id": i} for i in dataset.image_ids.tolist()], "categories": categories}
    results = [
        record for position, detected in detections.items() for record in detected.to_coco(image_id=position + 1)
    ]
    return {**document, "info": {}, "annotations": annotations}, results


def peer(document, results):
    """pycocotools' twelve numbers."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = document
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes([dict(record) for record in results]), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--large", type=int, default=500_000, help="detections for focaldet alone")
    parser.add_argument("--small", type=int, default=50_000, help="detections for both")
    arguments = parser.parse_args()
    large = made_up(arguments.large)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    alone = measure.interleaved({"focaldet": lambda: evaluate_detections(*large)}, rounds=arguments.rounds)
    extra_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    small = made_up(arguments.small)
    documents = as_coco(*small)
    forms = {"focaldet": lambda: evaluate_detections(*small), "pycocotools": lambda: peer(*documents)}
    both = measure.interleaved(forms, rounds=arguments.rounds, warmup=0)
    metrics = evaluate_detections(*small)
    difference = max(
        abs(getattr(metrics, name) - number) for name, number in zip(HEADLINES, peer(*documents), strict=True)
    )
    ratio = both["pycocotools"]["median"] / both["focaldet"]["median"]
    print(
        f"{arguments.large:,} detections: {alone['focaldet']['min']:.2f} s, {extra_mb:.0f} MB more (target 2 s, 400 MB)"
    )
    print(f"{arguments.small:,} detections: pycocotools / focaldet = {ratio:.0f}, largest difference {difference:.1e}")
    measure.write_result(
        "coco_evaluation",
        {"large": alone, "small": both, "ratio": ratio, "extra_mb": extra_mb, "difference": difference}
        | {"detections": {"large": arguments.large, "small": arguments.small}},
    )


if __name__ == "__main__":
    main()
