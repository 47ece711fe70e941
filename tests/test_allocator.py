"""What a process keeps of the memory that it frees."""

import os
import subprocess
import sys

import pytest

from focaldet import allocator

# Maps of 40 MB, one after the other; the pages that the system handed out for the last five.
COUNT_PAGES = """
import resource, torch
from focaldet.allocator import keep_freed_memory
{call}
torch.set_num_threads(1)
def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(10_000_000)
before = pages()
for _ in range(5):
    torch.ones(10_000_000)
print(pages() - before)
"""
MAP_PAGES = 40_000_000 // 4096


def count_pages(call: str) -> int:
    """In a process whose environment says nothing about it."""
    environment = {name: value for name, value in os.environ.items() if name not in allocator.VARIABLES}
    words = [sys.executable, "-c", COUNT_PAGES.format(call=call)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


def takes_large_maps() -> bool:
    """Whether this C library is glibc, and one that keeps maps of 40 MB."""
    code = "import ctypes; print(ctypes.CDLL(None).mallopt(-3, 1 << 30))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() == "1"


@pytest.mark.skipif(not takes_large_maps(), reason="no glibc, or one that gives maps of more than 32 MB back")
def test_freed_memory_is_used_again():
    kept, given_back = count_pages("assert keep_freed_memory()"), count_pages("")
    assert given_back > 4 * MAP_PAGES / 512  # five maps, at the least in pages of 2 MB
    assert kept < given_back / 5


@pytest.mark.parametrize("name", allocator.VARIABLES)
def test_environment_wins(name):
    assert not allocator.keep_freed_memory({name: "1"})


def test_a_record_says_what_holds(monkeypatch):
    for name in allocator.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(allocator._state, "is_kept", False)
    assert allocator.freed_memory() == "given back"
    monkeypatch.setitem(allocator._state, "is_kept", True)
    assert allocator.freed_memory() == "kept"
    monkeypatch.setenv(allocator.VARIABLES[0], "1")
    assert allocator.freed_memory() == "as the environment says"


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert not allocator.keep_freed_memory({})


def test_command_keeps_memory_and_a_calling_program_does_not(monkeypatch, capsys):
    from focaldet import cli

    calls = []
    monkeypatch.setattr(cli, "keep_freed_memory", lambda: calls.append(1))
    assert cli.main(["--version"]) == 0
    assert not calls
    monkeypatch.setattr(sys, "argv", ["focaldet", "--version"])
    assert cli.main() == 0
    assert calls
