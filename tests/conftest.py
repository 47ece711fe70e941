"""What holds in every test: shapes and types are checked, only loopback is reachable; and where real data is found."""

import gc
import os
import sys
from pathlib import Path

# Small products gain nothing from threads and lose much to waiting on a busy machine; the tests run in processes.
os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported

REPOSITORY = Path(__file__).resolve().parent.parent
BLOCKED_NETWORK = Path(__file__).parent / "blocked_network"

# The hook compiles anew, in every process, whatever is imported for the first time by a file that it changes.
import cyclopts  # noqa: E402, F401
import pydantic  # noqa: E402, F401
import torchvision  # noqa: E402, F401

from tests.shape_checks import install  # noqa: E402

install()
sys.path.insert(0, str(BLOCKED_NETWORK))
# Programs that a test starts are cut off as well (Python imports `sitecustomize` first of all) and find `tests`.
_PATHS = [str(BLOCKED_NETWORK), str(REPOSITORY), os.environ.get("PYTHONPATH")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _PATHS))
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest  # noqa: E402
from sitecustomize import block_network  # noqa: E402

block_network()

# What has been imported stays: looking through it again and again for garbage took a sixteenth of the tests' time.
gc.collect()
gc.freeze()
gc.set_threshold(50_000, 20, 50)


# The files that take longest: a process that begins one of them last would leave the others waiting.
LONGEST = """
every_detector/test_every_detector models/test_faster_rcnn_equivalence training/test_trainer study/test_sweep test_cli
training/test_kills training/test_ranks weights/test_convert every_detector/test_plain_torch test_examples
weights/formats/test_detectron2 models/test_retinanet_equivalence weights/formats/test_mmdetection training/test_phases
""".split()  # noqa: SIM905  a column of 14 lines tells no more


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; `make test` tells xdist to keep to the order."""
    order = {Path(__file__).parent / f"{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets (`bccd`, `coco_mini`, …); the test is skipped where there is none."""
    folder = Path(os.environ.get("FOCALDET_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is absent and FOCALDET_DATA names no folder")
    return folder


@pytest.fixture(scope="session")
def real_weights(real_data: Path) -> Path:
    """The folder of real weights beside the data; the test is skipped where there is none."""
    folder = Path(os.environ.get("FOCALDET_WEIGHTS", real_data.parent / "weights"))
    if not folder.is_dir():
        pytest.skip(f"no real weights: {folder} is absent and FOCALDET_WEIGHTS names no folder")
    return folder


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder of twelve training and four test scenes of the embedded data. Read only."""
    from focaldet.data.demo.dataset import write_demo

    folder = tmp_path_factory.mktemp("demo_data")
    write_demo(folder, seed=0, num_train=12, num_test=4)
    return folder


@pytest.fixture(scope="session")
def tiny_run(demo_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of two training steps on `demo_data`. Read only."""
    import focaldet

    data = focaldet.DataConfig(path=demo_data, val=demo_data / "instances_test.json")
    out = tmp_path_factory.mktemp("tiny") / "run"
    model = "retinanet_mobilenet_v2_fpn"
    # A threshold of 0 lets a detector that has learned nothing find something.
    architecture = {
        "width": 32,
        "head_depth": 1,
        "norm": "batch",
        "frozen_stages": 0,
        "detect": {"score_threshold": 0.0},
    }
    config = focaldet.RunConfig(
        data=data, model=model, architecture=architecture, out=out, size=64, epochs=1, precision="fp32"
    )
    focaldet.train(config)
    return out


@pytest.fixture(scope="session", autouse=True)
def few_logits_may_look_like_probabilities() -> None:
    """The losses warn once where all logits are in [0, 1], which chance does to small tests."""
    from focaldet.ops.losses import inputs

    inputs._warned_of_probabilities = True
