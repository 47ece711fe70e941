"""What the site adds to docs/: a reference page for each module, and the files beside docs/ that pages link to.

Pages in docs/ link to the repository (`../src/focaldet/ops/nms.py`, `../LOG.md`), so that they read well there too;
here these links lead to the reference page of the module, or to a copy of the file.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
PAGES = {
    "README.md": "index.md",
    "README.ko.md": "index.ko.md",
    "LOG.md": "LOG.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "LICENSE": "LICENSE.md",
    "src/focaldet/weights/embedded/NOTICE": "NOTICE.md",
}
FOLDERS = {"recipes": "*.yaml", "examples": "*.py", "benchmarks": "*.py"}
LINK = re.compile(r"(\]\()(\.\./|)([\w./-]+)(#[\w-]+)?(\))")


def on_config(config: Any) -> Any:
    """Fill the part `Reference` of the navigation: a section for each package."""
    sections: dict[str, list[dict[str, str]]] = {}
    for name in module_names():
        sections.setdefault(".".join(name.split(".")[:2]), []).append({name: page_of(name)})
    entry = [pages[0] if len(pages) == 1 else {name: pages} for name, pages in sections.items()]
    for part in config.nav:
        if "Reference" in part:
            part["Reference"] = entry
    return config


def on_files(files: Files, *, config: Any) -> Files:
    """Add the generated pages and the files from beside docs/."""
    for name in module_names():
        files.append(File.generated(config, page_of(name), content=f"::: {name}\n"))
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        content = text if name.endswith(".md") else f"# {Path(name).name}\n\n```\n{text}\n```\n"
        files.append(File.generated(config, page, content=content))
    for folder, pattern in FOLDERS.items():
        for path in sorted((ROOT / folder).glob(pattern)):
            language = "yaml" if path.suffix == ".yaml" else "python"
            text = f"# {folder}/{path.name}\n\n```{language}\n{path.read_text(encoding='utf-8')}\n```\n"
            files.append(File.generated(config, f"{folder}/{path.stem}.md", content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Let links to the repository's files lead to their pages on the site."""
    here = Path(page.file.src_uri)
    from_root = page.file.src_uri in PAGES.values()
    depth = "../" * (len(here.parts) - 1)

    def rewrite(match: re.Match[str]) -> str:
        opening, up, path, anchor, closing = match.groups()
        if not (up or from_root):
            return match.group()
        target = path.removeprefix("../")
        linked = site_page(target)
        if linked is None and not (ROOT / "docs" / here.parent / up / path).exists():
            raise PluginError(f"{here}: the link to {target} leads to no page of the site")
        return match.group() if linked is None else f"{opening}{depth}{linked}{anchor or ''}{closing}"

    return LINK.sub(rewrite, markdown)


def site_page(path: str) -> str | None:
    """The page of the repository's file or folder `path`; None where it has none of its own."""
    parts = Path(path).parts
    if not parts:
        return None
    if path in PAGES:
        return PAGES[path]
    if parts[0] == "docs":
        return "/".join(parts[1:]) or None
    if parts[:2] == ("src", "focaldet"):
        name = ".".join(Path(path).with_suffix("").parts[1:]).removesuffix(".__init__")
        return page_of(name) if name in module_names() else None
    if parts[0] in FOLDERS and len(parts) == 2:
        return f"{parts[0]}/{Path(parts[1]).stem}.md"
    return None


def module_names() -> list[str]:
    """The dotted names of all public modules, packages before what is in them."""
    paths = sorted(SOURCE.rglob("*.py"), key=lambda path: path.with_suffix("").parts)
    names = []
    for path in paths:
        parts = path.relative_to(SOURCE).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            names.append(".".join(parts))
    return sorted(names)


def page_of(name: str) -> str:
    """The path of a module's reference page."""
    return f"reference/{name}.md"
