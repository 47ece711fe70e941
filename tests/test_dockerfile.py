"""The Dockerfile says what the repository has: extras, files, a user without rights, and the port of the service."""

import builtins
import fnmatch
import io
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from focaldet.cli import main
from focaldet.export.export import FORMAT_SUFFIXES
from focaldet.service.options import ServiceOptions

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def instructions():
    """The instructions in their order: name and the rest, continued lines put together."""
    lines = [line for line in (REPOSITORY / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    whole = re.sub(r"\\\n", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in whole.splitlines() if line.strip()]


def those(name):
    return [rest for each, rest in instructions() if each == name]


def copied():
    """What is copied out of the repository."""
    return [source for rest in those("COPY") for source in shlex.split(rest)[:-1]]


def test_extras_are_those_of_the_project():
    named = re.findall(r"EXTRAS=([\w,]+)", (REPOSITORY / "Dockerfile").read_text())
    named += re.findall(r"EXTRAS=([\w,]+)", (REPOSITORY / "docs" / "guide" / "serving.md").read_text())
    assert len(named) >= 3
    assert {extra for text in named for extra in text.split(",")} <= PROJECT["optional-dependencies"].keys()


def test_what_is_copied_is_there_and_enough_to_install():
    ignored = (REPOSITORY / ".dockerignore").read_text().split()
    for source in copied():
        assert (REPOSITORY / source).exists()
        assert not any(fnmatch.fnmatch(source, pattern) for pattern in ignored)
    for needed in ("pyproject.toml", "constraints.txt", PROJECT["readme"], *PROJECT["license-files"]):
        assert any(Path(needed).is_relative_to(source) for source in copied()), needed


def test_it_does_not_run_as_root():
    names = [name for name, _ in instructions()]
    (user,) = those("USER")
    assert user not in ("0", "root")
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert "RUN" not in names[names.index("USER") :]
    assert re.search(rf"useradd .*--uid {user}\b", *those("RUN"))


def test_the_ports_are_that_of_the_service():
    command = json.loads(those("ENTRYPOINT")[0]) + json.loads(those("CMD")[0])
    assert command[:2] == ["focaldet", "serve"]
    assert "--port" not in command
    assert those("EXPOSE") == [str(ServiceOptions().port)]


def run_lines():
    """The words of every `docker run` that is documented."""
    texts = [(REPOSITORY / name).read_text() for name in ("Dockerfile", "docs/guide/serving.md")]
    return [shlex.split(line) for text in texts for line in re.findall(r"^(?:#   )?(docker run --rm .*)$", text, re.M)]


@pytest.mark.parametrize("words", run_lines(), ids=" ".join)
def test_what_a_container_serves_is_what_is_mounted(monkeypatch, words):
    """And others than the container itself reach it, at the port that is published."""
    seen = []
    monkeypatch.setattr("focaldet.cli.serve.serve", lambda factory, ready: seen.append(factory))
    monkeypatch.delenv("FOCALDET_TOKEN", raising=False)
    image = words.index("focaldet")
    command = json.loads(those("ENTRYPOINT")[0]) + (words[image + 1 :] or json.loads(those("CMD")[0]))
    assert main(command[1:]) == 0
    (factory,) = seen
    source, target, mode = words[words.index("-v") + 1].split(":")
    assert (factory.options.host, mode) == ("0.0.0.0", "ro")
    assert words[words.index("-p") + 1].split(":")[-1] == str(factory.options.port)
    served = Path(factory.spec)
    assert served.is_relative_to(target)
    assert not Path(source).suffix  # a mounted file would lose its suffix, by which its kind is known
    assert served.suffix in ("", *FORMAT_SUFFIXES.values())


def test_the_files_of_both_kinds_are_documented():
    assert {words[-1] == "focaldet" for words in run_lines()} == {True, False}
    assert len(run_lines()) == 4


@pytest.mark.parametrize(
    ("words", "port"),
    [
        (["/run_folder", "--host", "0.0.0.0"], 8000),
        (["/run_folder", "--host", "0.0.0.0", "--port", "9001"], 9001),
        (["--port=9002", "/run_folder"], 9002),
    ],
)
def test_the_health_is_asked_for_at_the_port_of_the_command(monkeypatch, words, port):
    (check,) = those("HEALTHCHECK")
    program, option, code = json.loads(check.partition("CMD ")[2])
    assert (program, option) == ("python", "-c")
    opened, asked = builtins.open, []

    def open_file(path, *rest, **settings):
        if path != "/proc/1/cmdline":
            return opened(path, *rest, **settings)
        return io.StringIO("".join(f"{word}\0" for word in ["python", "/usr/bin/focaldet", "serve", *words]))

    monkeypatch.setattr(builtins, "open", open_file)
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: asked.append(url))
    exec(code, {})
    assert asked == [f"http://127.0.0.1:{port}/healthz"]
