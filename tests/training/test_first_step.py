"""The first step on real images: a detector that starts from ImageNet begins at its prior, and nothing explodes."""

import pytest
import torch

from focaldet.data.augment.config import AugmentConfig
from focaldet.data.config import DataConfig
from focaldet.runtime import launch_fabric
from focaldet.training.config import RunConfig
from focaldet.training.sources import build_loader, open_sources
from focaldet.training.state import build_state
from focaldet.training.step import train_step


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("model", ["retinanet_efficientnet_lite0_fpn", "retinanet_mobilenet_v2_fpn"])
def test_a_small_retinanet_begins_at_its_prior(demo_data, request, tmp_path, model, seed):
    """Without norms in its subnets the first class loss was 25 and the gradient's norm 2300 on such images."""
    weights = "auto"
    if model == "retinanet_mobilenet_v2_fpn":
        weights = str(request.getfixturevalue("real_weights") / "mobilenet_v2.safetensors")
    config = RunConfig(
        data=DataConfig(path=demo_data, val=demo_data / "instances_test.json"),
        model=model,
        weights=weights,
        out=tmp_path,
        size=192,
        batch_size=4,
        precision="fp32",
        augment=AugmentConfig(preset="none"),
        ema=None,
        seed=seed,
    )
    fabric = launch_fabric(torch.device("cpu"))
    source, validation, _ = open_sources(config, None)
    state, _ = build_state(config, classes=validation.dataset.classes, fabric=fabric, saved=None)
    detector = state.detector
    batch = next(build_loader(config, 0, source, preprocessing=detector.preprocessing, ranks=fabric).epoch(0))
    with torch.no_grad():
        outputs = detector.eval()(batch.images, batch.sizes)
    assert float(outputs.logits.sigmoid().mean()) == pytest.approx(detector.config.prior, rel=0.3)
    detector.train()
    losses, norm, _ = train_step(state, [batch], module=detector, config=config, rate=1e-9)
    assert losses["class"] < 5 and norm < 50
