"""A loaded detector beside the oracle of the program that its file belongs to."""

from dataclasses import replace

import torch

from focaldet.ops.boxes import decode
from focaldet.ops.proposals import ProposalLimits
from focaldet.types import ImageSize
from tests.weights.formats import peer_oracle as oracle


def noise_image(height, width, *, seed=3):
    """Noise with large spots, so that neither cells nor regions look alike."""
    source = torch.Generator().manual_seed(seed)
    spots = torch.nn.functional.interpolate(
        torch.rand(1, 3, height // 16, width // 16, generator=source), size=(height, width), mode="bilinear"
    )
    noise = torch.rand(1, 3, height, width, generator=source)
    return (255 * (0.6 * spots + 0.4 * noise))[0].to(torch.uint8)


def pad(rgb, preprocessing):
    """The image in a batch of one, as `collate` makes it."""
    height, width = rgb.shape[1:]
    batch = torch.tensor(preprocessing.rgb_padding)[None, :, None, None].repeat(
        1, 1, *preprocessing.padded_size(ImageSize(height, width))
    )
    batch[0, :, :height, :width] = rgb
    return batch


@torch.no_grad()
def require_equal_outputs(detector, network, rgb):
    """Compare every output, the regions and the detections; gives the largest differences by what they are of."""
    detector.eval()
    size, levels = tuple(rgb.shape[1:]), network.levels(rgb)
    if network.is_retinanet:
        outputs = detector(pad(rgb, detector.preprocessing), [ImageSize(*size)])
        logits, deltas = map(torch.cat, network.retina_outputs(levels))
        boxes = oracle.decode(deltas, torch.cat(network.anchors(levels)))
        differences = {
            "logits": relative(outputs.logits[0], logits),
            "boxes": largest(decode(outputs.deltas[0], outputs.anchors), boxes),
        }
        expected = network.retina_detections(levels, size)
    else:
        limits = ProposalLimits(network.top_k, network.keep)
        detector.config = replace(detector.config, proposals=replace(detector.config.proposals, detect=limits))
        outputs = detector(pad(rgb, detector.preprocessing), [ImageSize(*size)])
        first = outputs.rpn
        objectness, deltas = map(torch.cat, network.rpn_outputs(levels))
        boxes = oracle.decode(deltas, torch.cat(network.anchors(levels)))
        regions = network.proposals(levels, size)
        logits, region_deltas = network.region_outputs(levels, outputs.regions)
        differences = {
            "objectness": relative(first.objectness[0], objectness),
            "anchor boxes": largest(decode(first.deltas[0], first.anchors), boxes),
            "regions": float(partners(outputs.regions, regions)[0].max()),
            "logits": relative(outputs.logits, logits),
            "region deltas": relative(outputs.deltas, region_deltas),
        }
        expected = network.region_detections(levels, regions, size)
    assert float(logits.std()) > 0.5, "a dead network proves nothing"
    (detections,) = detector.detect(outputs, [ImageSize(*size)])
    differences["detections"], differences["scores"] = pair_detections(detections, *expected)
    assert len(expected[0]) >= 20 and len(set(expected[2].tolist())) >= 5, "too few detections to prove anything"
    for name, value in differences.items():
        assert value <= (1e-4 if name in ("logits", "objectness", "region deltas", "scores") else 1e-2), differences
    return differences


def pair_detections(detections, boxes, scores, labels):
    """How far the boxes and the scores of every two detections of a class that belong together are apart.

    focaldet's RetinaNet keeps boxes that the border clips to nothing, which count among its best.
    """
    real = (detections.boxes[:, 2:] > detections.boxes[:, :2]).all(1)
    count = min(int(real.sum()), len(boxes))
    assert count + int((~real).sum()) >= len(boxes)
    # Far away from all others, the boxes of a class find their partners among themselves.
    first = (detections.boxes.double() + 1e4 * detections.labels[:, None])[real][:count]
    apart, partner = partners(first, (boxes.double() + 1e4 * labels[:, None])[:count])
    return float(apart.max()), largest(detections.scores[real][:count], scores[partner])


def partners(first, second):
    """How far each box is from the nearest of the others, and which that is; nobody may be asked for by two."""
    apart, partner = torch.cdist(first, second, p=torch.inf).min(1)
    assert len(first) == len(second) == len(partner.unique())
    return apart, partner


def largest(first, second):
    assert first.shape == second.shape
    return float((first - second).abs().max())


def relative(first, second):
    """The largest difference, relative for numbers above 1."""
    assert first.shape == second.shape
    return float(((first - second).abs() / second.abs().clamp(min=1)).max())
