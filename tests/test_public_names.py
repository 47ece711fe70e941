"""What `import focaldet` offers, and what it does not load."""

import inspect
import subprocess
import sys
import types

import pytest

import focaldet

PUBLIC = """
AugmentConfig Batch CheckpointError ConfigError Conversion DataConfig DataError Detections Detector FocaldetError
ImageSize OutOfMemoryError Metrics NonFiniteLossError Predictor Preprocessing Resize RunConfig Target TrainResult
__version__ build check convert draw evaluate evaluate_files load losses train
""".split()  # noqa: SIM905  a column of 30 lines tells no more
HEAVY = ("lightning", "matplotlib", "hotcoco", "sklearn", "timm", "pycocotools", "tensorboard", "supervision")


def test_the_public_names_are_these_and_sorted():
    assert focaldet.__all__ == PUBLIC
    assert sorted(PUBLIC) == PUBLIC


def test_every_public_name_is_there_and_documented():
    for name in PUBLIC:
        value = getattr(focaldet, name)
        assert isinstance(value, str) or inspect.getdoc(value), name


def test_nothing_else_is_lying_about():
    """Of modules only the rooms themselves; of everything else only the public names."""
    loose = {
        name
        for name, value in vars(focaldet).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name not in PUBLIC
    }
    assert loose == {"version"}


def test_the_losses_have_their_own_public_names():
    assert sorted(focaldet.losses.__all__) == focaldet.losses.__all__
    assert all(callable(getattr(focaldet.losses, name)) for name in focaldet.losses.__all__)


@pytest.mark.parametrize("module", ["focaldet", "focaldet.cli"])
def test_heavy_libraries_wait_until_they_are_needed(module):
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in HEAVY if name in loaded] == []
    assert module in loaded
