"""What `import focaldet` offers, and what it does not load."""

import ast
import inspect
import subprocess
import sys
import types
from pathlib import Path

import pytest

import focaldet

PUBLIC = """
AugmentConfig Batch CheckpointError CompareConfig Comparison ConfigError Conversion DataConfig DataError Detection
Detections Detector DetectorConfig ExportResult FocaldetError ImageSize InferenceOptions Metrics NonFiniteLossError
OutOfMemoryError Predictor Preprocessing Preset Resize RunConfig Target TrainResult __version__ build check_data
compare convert convert_data draw evaluate evaluate_files export_detector load losses register report_runs train
""".split()  # noqa: SIM905  a column of 30 lines tells no more
HEAVY = (
    "lightning",
    "lightning_fabric",
    "matplotlib",
    "hotcoco",
    "sklearn",
    "timm",
    "pycocotools",
    "tensorboard",
    "supervision",
)


def test_the_public_names_are_these_and_sorted():
    assert focaldet.__all__ == PUBLIC
    assert sorted(PUBLIC) == PUBLIC


def test_every_public_name_is_there_and_documented():
    for name in PUBLIC:
        value = getattr(focaldet, name)
        assert isinstance(value, str) or inspect.getdoc(value), name


def test_the_package_has_no_other_names():
    """Of modules only the packages themselves; of everything else only the public names and the tables behind them."""
    loose = {
        name
        for name, value in vars(focaldet).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name not in PUBLIC
    }
    assert loose == {"Any", "MODULES", "RENAMED", "TYPE_CHECKING"}


def test_the_names_that_mypy_sees_are_those_that_are_imported_at_their_first_use():
    tree = ast.parse(Path(focaldet.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {alias.name: node.module for node in imports for alias in node.names}
    modules = {name: f"focaldet.{module}" for module, names in focaldet.MODULES.items() for name in names}
    assert seen == modules | {"draw": "focaldet", "losses": "focaldet"}


def test_every_public_name_is_listed_before_it_is_used():
    program = "import focaldet; print(*(set(focaldet.__all__) - set(dir(focaldet)))); print('load' in vars(focaldet))"
    assert printed(program) == "\nFalse\n"


ORDERS = (
    "focaldet.train, focaldet.training.config, focaldet.evaluate, focaldet.evaluation",
    "focaldet.training.config, focaldet.evaluation, focaldet.train, focaldet.evaluate",
)


def test_functions_and_packages_do_not_hide_each_other():
    """Imported as modules where they are packages, in any order, each time without a module of focaldet before."""
    forget = "for name in [name for name in sys.modules if name.split('.')[0] == 'focaldet']: del sys.modules[name]"
    program = ["import sys"]
    for order in ORDERS:
        modules = [name for name in order.split(", ") if name not in ("focaldet.train", "focaldet.evaluate")]
        lines = [f"import {name}" if name in modules else f"assert callable({name})" for name in order.split(", ")]
        kinds = "print(focaldet.training.config.__name__, focaldet.evaluation.__name__, focaldet.train.__name__)"
        program += [forget, "import focaldet", *lines, kinds]
    assert printed("\n".join(program)) == "focaldet.training.config focaldet.evaluation train\n" * 2


def test_old_names_answer_with_a_warning(tmp_path):
    with pytest.warns(DeprecationWarning, match=r"now called focaldet\.OutOfMemoryError"):
        assert focaldet.MemoryShortError is focaldet.OutOfMemoryError
    with (
        pytest.warns(DeprecationWarning, match=r"now called focaldet\.check_data"),
        pytest.raises(focaldet.DataError),
    ):
        focaldet.check(focaldet.DataConfig(path=tmp_path))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'focaldet' has no attribute 'retinanet'"):
        focaldet.retinanet  # noqa: B018  the look-up is the test


def test_the_losses_have_their_own_public_names():
    assert sorted(focaldet.losses.__all__) == focaldet.losses.__all__
    assert all(callable(getattr(focaldet.losses, name)) for name in focaldet.losses.__all__)


def printed(program: str) -> str:
    """What a fresh Python prints for `program`."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        (("focaldet",), (*HEAVY, "torch", "pydantic")),
        (("focaldet.prediction", "focaldet.training.trainer"), HEAVY),  # only a run needs Lightning
    ],
)
def test_heavy_libraries_wait_until_they_are_needed(modules, heavy):
    loaded = printed(f"import sys, {', '.join(modules)}; print(*sys.modules)").split()
    assert [name for name in heavy if name in loaded] == []
    assert {*modules} <= {*loaded}
