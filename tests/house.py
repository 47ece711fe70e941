"""The house rules that no other tool checks: who may import whom, and how large things may grow.

`python tests/house.py [package] [tests]` prints the sizes and every broken rule; its exit status is 1 if there is one.
It reads text only and runs none of it. `CONTRIBUTING.md` tells the rules in words.
"""

import ast
import graphlib
import io
import statistics
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

# A room may import from its own row and from the rows before it.
ROWS = (
    {"types", "errors"},
    {"config", "draw", "runtime", "ops"},
    {"losses", "nets"},
    {"models", "data"},
    {"weights"},
    {"check", "evaluation"},
    {"report"},
    {"training", "prediction", "export"},
    {"study", "compare", "serve"},
    {"cli"},
)
HEIGHT = {room: height for height, row in enumerate(ROWS) for room in row}
DOORS = {"__init__", "__main__"}  # the front doors lead into every room; only cli and __main__ may come in through them
FILE_LINES, MODEL_LINES, FUNCTION_LINES, MEDIAN_LINES = 300, 250, 50, 10
TEST_SHARE = 0.7
SAYS_NOTHING = {"utils", "util", "misc", "helpers", "helper", "common", "manager", "cfg", "tmp"}
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Module:
    """One source file and where it stands: `parts` is its dotted name below the package, () for the package itself."""

    path: Path
    parts: tuple[str, ...]

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def room(self) -> str:
        return self.parts[0] if self.parts else "__init__"

    @cached_property
    def code(self) -> set[int]:
        """The numbers of its lines of code: neither blank, nor comment, nor docstring."""
        holders = ast.Module | ast.ClassDef | Function
        strings = [
            node.body[0] for node in ast.walk(self.tree) if isinstance(node, holders) and ast.get_docstring(node)
        ]
        documentation = {line for string in strings for line in range(string.lineno, string.end_lineno + 1)}
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        spans = [range(token.start[0], token.end[0] + 1) for token in tokens if token.type not in LAYOUT]
        written = {line for span in spans for line in span} - documentation
        return {line for line in written if self.text.splitlines()[line - 1].strip()}

    @cached_property
    def functions(self) -> list[tuple[Function, int]]:
        """Every function with the number of its lines of code."""
        found = [node for node in ast.walk(self.tree) if isinstance(node, Function)]
        return [(node, len(self.code.intersection(range(node.lineno, node.end_lineno + 1)))) for node in found]


def read_package(package: Path) -> dict[tuple[str, ...], Module]:
    """The modules of a package by their dotted names below it."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        found[parts] = Module(path, parts)
    return found


def imports(modules: dict[tuple[str, ...], Module], module: Module, name: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, parts) of every module of package `name` that `module` imports, in any form and at any depth."""
    for node in ast.walk(module.tree):
        for dotted, names in _written(node, module, name):
            parts = tuple(dotted.split("."))
            if parts[0] != name:
                continue
            for imported in names or [None]:
                longest = (*parts[1:], imported) if imported else parts[1:]
                yield node.lineno, _known(modules, longest)


def _written(node: ast.AST, module: Module, name: str) -> Iterator[tuple[str, list[str]]]:
    """(dotted module, names taken from it) as the statement or call `node` writes them."""
    if isinstance(node, ast.Import):
        yield from ((alias.name, []) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        here = (name, *module.parts)
        is_package = module.path.stem == "__init__"
        base = here[: len(here) - node.level + is_package] if node.level else ()
        yield ".".join([*base, *([node.module] if node.module else [])]), [alias.name for alias in node.names]
    elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
        yield from ((str(a.value), []) for a in node.args[:1] if isinstance(a, ast.Constant))


def _known(modules: dict[tuple[str, ...], Module], parts: tuple[str, ...]) -> tuple[str, ...]:
    """The longest beginning of `parts` that is a module; a name that is no module at all stands for itself."""
    known = next((parts[:end] for end in range(len(parts), 0, -1) if parts[:end] in modules), ())
    return known or (parts[:1] if parts and parts[0] in HEIGHT else ())


def layer_breaks(package: Path) -> list[str]:
    """Every import that runs back: into a room of a higher row, in through the front door, or round in a circle."""
    modules = read_package(package)
    found, rooms, files = [], {}, {}
    for module in modules.values():
        if module.room not in HEIGHT and module.room not in DOORS:
            found.append(f"{module.path}: stands in no row of the plan")
        for line, parts in imports(modules, module, package.name):
            other = parts[0] if parts else "__init__"
            files.setdefault(module.parts, set()).add(parts)
            if module.room in DOORS:
                continue
            rooms.setdefault(module.room, set()).update({other} - {module.room})
            if other == "__init__" and module.room != "cli":
                found.append(f"{module.path}:{line}: imports the package itself; name the room")
            elif HEIGHT.get(other, 0) > HEIGHT.get(module.room, len(ROWS)):
                found.append(f"{module.path}:{line}: {module.room} imports {other}, which stands above it")
    return found + _circle("rooms", rooms) + _circle("files", {k: v - {k, ()} for k, v in files.items()})


def _circle(kind: str, arrows: dict) -> list[str]:
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        names = [name if isinstance(name, str) else ".".join(name) for name in error.args[1]]
        return [f"{kind} import each other in a circle: {' < '.join(names)}"]
    return []


def size_breaks(package: Path) -> list[str]:
    """Every file or function that has grown too large, and names that say nothing."""
    found = []
    for module in read_package(package).values():
        limit = MODEL_LINES if module.room == "models" else FILE_LINES
        if len(module.code) > limit:
            found.append(f"{module.path}: {len(module.code)} lines of code (at most {limit})")
        if module.parts and module.parts[-1].lower() in SAYS_NOTHING:
            found.append(f"{module.path}: this name says nothing")
        for function, lines in module.functions:
            if lines > FUNCTION_LINES:
                found.append(
                    f"{module.path}:{function.lineno}: {function.name} has {lines} lines (at most {FUNCTION_LINES})"
                )
    return found


def habit_breaks(package: Path) -> list[str]:
    """Every bare `except`, every `print` or exit outside the command line, every postponed annotation."""
    found = []
    for module in read_package(package).values():
        for node in ast.walk(module.tree):
            place = f"{module.path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ExceptHandler) and node.type is None:
                found.append(f"{place}: a bare except hides what it does not expect")
            if isinstance(node, ast.Call) and module.room not in ("cli", "__main__"):
                call = ast.unparse(node.func)
                found += [f"{place}: {call} outside cli"] if call in ("print", "exit", "quit", "sys.exit") else []
            if isinstance(node, ast.ImportFrom) and node.module == "__future__":
                found.append(f"{place}: postponed annotations hide the shapes from the checks")
    return found


def summary(package: Path, tests: Path) -> tuple[str, list[str]]:
    """The sizes in one line, and the rules over the whole tree that they break."""
    modules = read_package(package).values()
    lines = [size for module in modules for _, size in module.functions] or [0]
    source = sum(len(module.code) for module in modules)
    tested = sum(len(module.code) for module in read_package(tests).values())
    median, share = statistics.median(lines), tested / max(source, 1)
    found = [f"the median function has {median} lines (at most {MEDIAN_LINES})"] if median > MEDIAN_LINES else []
    found += [f"{share:.2f} lines of test per line of code (at least {TEST_SHARE})"] if share < TEST_SHARE else []
    functions = f"functions: median {median}, longest {max(lines)}"
    return f"{len(modules)} files, {source} lines of code; {functions}; {share:.2f} lines of test per line", found


def main(arguments: list[str]) -> int:
    """Print what was measured and what is broken; 1 if anything is."""
    package, tests = (Path(given) for given in (*arguments, *("src/focaldet", "tests")[len(arguments) :]))
    text, found = summary(package, tests)
    found += layer_breaks(package) + size_breaks(package) + habit_breaks(package)
    print(text, *(found or ["no rule is broken"]), sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
