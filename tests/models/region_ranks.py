"""What each process of `torchrun` does in test_region_ranks.py: `region_ranks.py FOLDER`.

Three updates of a small Faster R-CNN: objects for both processes, for one alone, and for one while the other has no
region at all. All anchors train, and the regions are given, so that no lot decides.
"""

import os
import sys
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from focaldet.models import LossContext, build
from focaldet.models.faster_rcnn import model
from focaldet.models.faster_rcnn.model import FasterRCNN
from focaldet.ops.losses.normalize import sum_over_ranks
from focaldet.types import ImageSize, Target
from tests import tiny_backbones  # noqa: F401  ARCHITECTURE names one

EVERY = {"count": 10_000, "positives": 1.0}
ARCHITECTURE = {
    "backbone": "resnet_tiny",
    "width": 8,
    "head_width": 16,
    "rpn": {"sampling": EVERY},
    "region": {"sampling": EVERY},
    "proposals": {"nms_iou": 1.0, "train": {"keep": 10}},
}
OBJECT = Target(torch.tensor([[8.0, 8.0, 40.0, 44.0]]), torch.tensor([1]), torch.tensor([False]))
STEPS = ((OBJECT, OBJECT), (OBJECT, Target.empty()), (OBJECT, Target.empty()))
WITHOUT_REGIONS = 2


def detector() -> FasterRCNN:
    torch.manual_seed(0)
    network = build("faster_rcnn_mobilenet_v2_fpn", num_classes=2, architecture=ARCHITECTURE)
    assert isinstance(network, FasterRCNN)
    return network.train()


def random_images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 255


def given_regions(targets: tuple[Target, ...], *, step: int, ranks: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Five regions of each image around an object, one of them the object; none for the second in the last step."""
    base = OBJECT.boxes + torch.tensor([[0.0], [2.0], [-3.0], [12.0], [20.0]])
    regions_of_ranks = [base[:0] if step == WITHOUT_REGIONS and rank == 1 else base for rank in ranks]
    index = [torch.full((len(regions),), position) for position, regions in enumerate(regions_of_ranks)]
    assert len(targets) == len(ranks)
    return torch.cat(regions_of_ranks), torch.cat(index)


def train(ranks: tuple[int, ...], context: LossContext, *, parallel: bool) -> dict[str, Tensor]:
    """The weights after all steps; `ranks` are the images that this process has."""
    network = detector()
    module = DistributedDataParallel(network) if parallel else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    for step, every in enumerate(STEPS):
        targets = tuple(every[rank] for rank in ranks)
        optimizer.zero_grad()
        given = given_regions(targets, step=step, ranks=ranks)
        with mock.patch.object(model, "propose_regions", return_value=given):
            outputs = module(random_images()[list(ranks)], [ImageSize(64, 64)] * len(ranks), targets)
        torch.stack(list(network.losses(outputs, targets, context).values())).sum().backward()
        optimizer.step()
    return {name: parameter.detach() for name, parameter in network.named_parameters()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    weights = train((rank,), LossContext(all_reduce_sum=sum_over_ranks, num_ranks=2), parallel=True)
    torch.save(weights, Path(sys.argv[1]) / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()
