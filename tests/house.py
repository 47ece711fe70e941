"""Measure the source tree: sizes, names, and how far one has to walk to follow a training run.

    python tests/house.py [src/focaldet]

prints a line per measure and a line per broken rule; the exit status is 1 if there is one. The layers are checked by
import-linter, complexity and forbidden calls by ruff; here is what these two cannot say.
"""

import argparse
import ast
import collections
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

FILE_LINES, MODEL_LINES, TRAINER_LINES, FUNCTION_LINES = 300, 250, 600, 50
SAYS_NOTHING = {"utils", "util", "misc", "helpers", "helper", "common", "manager", "cfg", "tmp"}
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
# Words of an earlier private dialect, each of which has an ordinary name in the field.
DIALECT = re.compile(r"(?<![A-Za-z])(pictures?|found|ours|theirs|lots)(?![A-Za-z])", re.I)
MOST_DIALECT_LINES = 5
PARTICIPLES = {"brought", "drawn", "found", "given", "grown", "held", "kept", "known", "left", "made", "met", "seen"}
PARTICIPLES |= {"sent", "shown", "spread", "taken", "told", "written"}
ENDS_IN_ED = {"embed", "feed", "need", "seed", "speed", "shed", "exceed", "proceed", "succeed", "bed"}
DETECTOR_NAME = re.compile(r"(retinanet|faster_rcnn|d?ssd\d*|yolov2)(_|$)")
INFERENCE = {
    "Precision",
    "autocast",
    "pick_device",
    "pick_precision",
    "has_native_bf16",
    "eval_mode",
    "AUTOCAST_DTYPES",
}
Function = ast.FunctionDef | ast.AsyncFunctionDef

COUNT_CLASSES = """
import sys, tempfile, pathlib
from focaldet import RunConfig, DataConfig, train
try: from focaldet.data.demo.dataset import write_demo
except ImportError: from focaldet.data.demo import write_demo
folder = pathlib.Path(tempfile.mkdtemp())
write_demo(folder / "data", seed=0, num_train=2, num_test=2)
seen = set()
def note(frame, event, argument):
    if event != "call": return
    owner = frame.f_locals.get("self")
    module = type(owner).__module__ or ""
    if module.startswith("focaldet.train"): seen.add(type(owner).__name__)
data = DataConfig(path=folder / "data", val=folder / "data" / "instances_test.json")
config = RunConfig(data=data, model="retinanet_mobilenet_v2_fpn", architecture={"width": 32, "head_depth": 1},
                   out=folder / "run", epochs=1, size=64, threads=1)
sys.setprofile(note)
train(config)
sys.setprofile(None)
print(len(seen), *sorted(seen))
"""


def code_lines(text: str, tree: ast.Module) -> set[int]:
    """The numbers of the lines of code: neither blank, nor comment, nor docstring."""
    holders = ast.Module | ast.ClassDef | Function
    strings = [node.body[0] for node in ast.walk(tree) if isinstance(node, holders) and ast.get_docstring(node)]
    documentation = {line for string in strings for line in range(string.lineno, string.end_lineno + 1)}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    spans = [range(token.start[0], token.end[0] + 1) for token in tokens if token.type not in LAYOUT]
    lines = text.splitlines()
    return {line for span in spans for line in span if lines[line - 1].strip()} - documentation


def read_package(package: Path) -> dict[Path, tuple[str, ast.Module]]:
    """The text and the syntax tree of every file of a package, by its path below it."""
    texts = {path.relative_to(package): path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    return {path: (text, ast.parse(text)) for path, text in texts.items()}


def size_breaks(files: dict[Path, tuple[str, ast.Module]]) -> Iterator[str]:
    """Every file or function that has grown too large, and file names that say nothing."""
    for path, (text, tree) in files.items():
        code = code_lines(text, tree)
        limit = MODEL_LINES if path.parts[0] == "models" else FILE_LINES
        limit = TRAINER_LINES if path.name == "trainer.py" else limit
        if len(code) > limit:
            yield f"{path}: {len(code)} lines of code (at most {limit})"
        if path.stem.lower() in SAYS_NOTHING:
            yield f"{path}: this name says nothing"
        for node in ast.walk(tree):
            if isinstance(node, Function):
                lines = len(code.intersection(range(node.lineno, node.end_lineno + 1)))
                if lines > FUNCTION_LINES:
                    yield f"{path}:{node.lineno}: {node.name} has {lines} lines (at most {FUNCTION_LINES})"


def name_breaks(files: dict[Path, tuple[str, ast.Module]]) -> Iterator[str]:
    """Functions named by a participle, and names that are defined at the top of more than one file."""
    homes = collections.defaultdict(list)
    for path, (_, tree) in files.items():
        for name in set(top_level_names(tree)):
            homes[name].append(str(path))
        for node in ast.walk(tree):
            if isinstance(node, Function) and is_participle(node.name) and not is_property(node):
                yield f"{path}:{node.lineno}: {node.name} is neither a verb nor a noun"
    yield from (f"{name} is defined in {' and in '.join(paths)}" for name, paths in homes.items() if len(paths) > 1)


def top_level_names(tree: ast.Module) -> Iterator[str]:
    """The names of the classes, functions and constants of a file."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function) and node.name[:2] != "__":
            yield node.name
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        yield from (target.id for target in targets if isinstance(target, ast.Name) and target.id[:2] != "__")


def is_participle(name: str) -> bool:
    """Whether a function's name is one word such as `merged` or `kept`."""
    word = name.strip("_")
    is_regular = word.endswith("ed") and word not in ENDS_IN_ED and len(word) > 3
    return "_" not in word and (is_regular or word in PARTICIPLES)


def is_property(node: ast.FunctionDef) -> bool:
    """Whether it is read like a value."""
    return any(
        ast.unparse(decorator).split(".")[-1] in ("property", "cached_property") for decorator in node.decorator_list
    )


def dialect_lines(files: dict[Path, tuple[str, ast.Module]]) -> list[str]:
    """The lines with a word of the private dialect."""
    rows = (
        (path, number, line) for path, (text, _) in files.items() for number, line in enumerate(text.splitlines(), 1)
    )
    return [f"{path}:{number}: {line.strip()}" for path, number, line in rows if DIALECT.search(line)]


def longest_chain(files: dict[Path, tuple[str, ast.Module]]) -> str:
    """The attribute chain on `self` with the most dots."""
    return max((chain for _, tree in files.values() for chain in chains(tree)), key=lambda c: c.count("."), default="")


def chains(tree: ast.Module) -> Iterator[str]:
    """Every chain such as `self.position.step`."""
    for node in ast.walk(tree):
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(node, ast.Attribute) and isinstance(root, ast.Name) and root.id == "self":
            yield ast.unparse(node)


def detector_tables(files: dict[Path, tuple[str, ast.Module]]) -> list[str]:
    """The dictionaries whose keys are names of detectors."""
    tables = []
    for path, (_, tree) in files.items():
        for node in ast.walk(tree):
            keys = (
                [key.value for key in node.keys if isinstance(key, ast.Constant)] if isinstance(node, ast.Dict) else []
            )
            if len(keys) > 4 and all(isinstance(key, str) and DETECTOR_NAME.match(key) for key in keys):
                tables.append(f"{path}:{node.lineno}")
    return tables


def device_imports(files: dict[Path, tuple[str, ast.Module]]) -> list[str]:
    """The files that fetch device, precision or processes from the room of evaluation."""
    paths = set()
    for path, (_, tree) in files.items():
        for node in ast.walk(tree):
            module = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            names = {alias.name for alias in node.names} if module.startswith("focaldet.evaluat") else set()
            if INFERENCE & names or (names and module.endswith("processes")):
                paths.add(str(path))
    return sorted(paths)


def training_classes(package: Path) -> str:
    """How many classes of the training room a plain run passes through, and which."""
    command = [sys.executable, "-W", "ignore", "-c", COUNT_CLASSES]
    done = subprocess.run(command, env={"PYTHONPATH": str(package.parent)}, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def breaks(package: Path) -> list[str]:
    """Every broken rule of sizes and names."""
    files = read_package(package)
    dialect = dialect_lines(files)
    return [*size_breaks(files), *name_breaks(files), *(dialect if len(dialect) > MOST_DIALECT_LINES else [])]


def main() -> int:
    """Print what was measured and what is broken; 1 if anything is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", nargs="?", type=Path, default=Path("src/focaldet"))
    parser.add_argument("--run", action="store_true", help="also train two images and count the classes on the way")
    options = parser.parse_args()
    files = read_package(options.package.resolve())
    training = {path: file for path, file in files.items() if path.parts[0] in ("train", "training")}
    broken = breaks(options.package)
    print(f"files {len(files)}, lines of code {sum(len(code_lines(*file)) for file in files.values())}")
    print(f"lines with a word of the dialect: {len(dialect_lines(files))}")
    print(f"longest chain on self: {longest_chain(files)}; in training: {longest_chain(training)}")
    print(f"dictionaries keyed by detector names: {' '.join(detector_tables(files))}")
    print(f"files that import device, precision or processes from evaluation: {len(device_imports(files))}")
    if options.run:
        print(f"classes of training that a run passes through: {training_classes(options.package.resolve())}")
    print(*(broken or ["no rule is broken"]), sep="\n")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
