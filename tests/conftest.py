"""What holds in every test: shapes and types are checked, only loopback is reachable; and where real data is found."""

import os
import sys
from pathlib import Path

from jaxtyping import install_import_hook

REPOSITORY = Path(__file__).resolve().parent.parent
BLOCKED_NETWORK = Path(__file__).parent / "blocked_network"

install_import_hook("focaldet", "beartype.beartype")
sys.path.insert(0, str(BLOCKED_NETWORK))
# Programs that a test starts are cut off as well: Python imports `sitecustomize` before anything else.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(BLOCKED_NETWORK), os.environ.get("PYTHONPATH")]))
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest  # noqa: E402
from sitecustomize import block_network  # noqa: E402

block_network()


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
