"""The demo: train on the embedded handwritten digits, evaluate on other writers, draw, report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from focaldet.data.augment.config import AugmentConfig
from focaldet.data.config import DataConfig
from focaldet.data.demo.dataset import DemoScenes, write_demo
from focaldet.data.demo.scenes import SCENE_SIZE
from focaldet.evaluation.coco import Metrics
from focaldet.prediction import load, predict_files
from focaldet.training.config import RunConfig
from focaldet.training.trainer import train

NUM_TEST_SCENES = 200
NUM_TRAINING_FILES = 40  # on disk to look at; training makes new scenes in every epoch
NUM_DRAWINGS = 12
SHOWN_SCORE = 0.5
MODEL = "retinanet_efficientnet_lite0_fpn"
# Narrower than the preset and with its first stages fixed, because it has minutes.
ARCHITECTURE: dict[str, Any] = {"width": 64, "head_depth": 2, "frozen_stages": 2}


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The outputs of the demo: run folder, report, folder of drawings, data, and the numbers on the test scenes.

    `metrics` is None where the demo was interrupted.
    """

    out: Path
    report: Path
    drawings: Path
    data: Path
    metrics: Metrics | None


def run_demo(
    out: Path, *, epochs: int = 7, images_per_epoch: int = 512, seed: int = 0, device: str | None = None
) -> DemoResult:
    """Train a narrow `retinanet_efficientnet_lite0_fpn` from its embedded weights; evaluate it, draw, report.

    An earlier demo in `out` is replaced.

    Args:
        out: the run folder.
        epochs: epochs, each of new scenes.
        images_per_epoch: scenes in an epoch.
        seed: of the scenes and the weights.
        device: such as cpu or cuda:1; the best there is by default.

    Raises:
        ConfigError: scikit-learn is not installed, or `out` is not the folder of a run.
    """
    sources = (
        DemoScenes("train", num_scenes=images_per_epoch, seed=seed),
        DemoScenes("test", num_scenes=NUM_TEST_SCENES, seed=seed),
    )
    trained = train(demo_config(out, epochs=epochs, seed=seed, device=device), sources=sources)
    data, drawings = out / "data", out / "drawn"
    if not trained.interrupted:
        write_demo(data, seed=seed, num_train=NUM_TRAINING_FILES, num_test=NUM_TEST_SCENES)
        scenes = sorted((data / "images").glob("test_*.png"))[:NUM_DRAWINGS]
        predict_files(load(out, device=device), scenes, drawings, score=SHOWN_SCORE)
    return DemoResult(out, out / "report.html", drawings, data, None if trained.interrupted else trained.last)


def demo_config(out: Path, *, epochs: int, seed: int, device: str | None) -> RunConfig:
    """The settings of the demo's run. Digits must not be mirrored, and scenes are always new: nothing is augmented."""
    return RunConfig(
        data=DataConfig(path=out / "data", val=out / "data" / "instances_test.json"),
        model=MODEL,
        architecture=ARCHITECTURE,
        out=out,
        overwrite=True,
        size=max(SCENE_SIZE),
        epochs=epochs,
        augment=AugmentConfig(preset="none"),
        ema=0.99,
        evaluate_every=4,
        seed=seed,
        device=device,
    )
