"""What a process keeps of the memory that it frees."""

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
    done = subprocess.run(
        [sys.executable, "-c", COUNT_PAGES.format(call=call)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(allocator.ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_freed_memory_is_used_again():
    assert count_pages("assert keep_freed_memory()") < MAP_PAGES / 10
    assert count_pages("") > 20 * MAP_PAGES / 512  # at the least in pages of 2 MB


@pytest.mark.parametrize("name", allocator.VARIABLES)
def test_environment_wins(name):
    assert not allocator.keep_freed_memory({name: "1"})


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
