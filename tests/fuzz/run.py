"""Open damaged files at random, for a time; every one is read or refused with a `FocaldetError`, and nothing else.

    python -m tests.fuzz.run --seconds 60 [--door coco ...] [--seed 0] [--out build/fuzz]

Every 16th file is opened with the lines of focaldet counted: one that reaches a new line becomes a seed. What fails is
kept in `--out`, and the exit status is 1.
"""

import argparse
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

from focaldet.errors import FocaldetError
from tests.data.formats.test_mutations import mutated
from tests.fuzz.door import Door
from tests.fuzz.doors import DOORS, scratch

PACKAGE = str(Path(__file__).resolve().parents[2] / "src" / "focaldet")
MOST_SECONDS, MOST_BYTES, GUIDED, MOST_SEEDS, LARGEST_SEED = 5.0, 6_000_000_000, 16, 200, 20_000


class TooSlowError(BaseException):
    """Raised by the clock; no reader catches it."""


class Fuzzer:
    """One door: its seeds, what they reached, and what failed."""

    def __init__(self, name: str, door: Door, folder: Path, *, seed: int) -> None:
        self.name, self.door, self.random = name, door, random.Random(f"{name} {seed}")
        with warnings.catch_warnings(action="ignore"):
            self.seeds = door.seeds(folder)
        self.path = folder / door.path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.outcomes: Counter[str] = Counter()
        self.lines: set[tuple[str, int]] = set()
        self.failures: dict[str, tuple[bytes, str]] = {}
        self.slowest = 0.0

    def step(self, number: int) -> None:
        """Open one changed file."""
        seed = self.random.choice(self.seeds)
        change = mutated if self.door.is_text or self.random.random() < 0.3 else mutate_bytes
        content = change(seed, self.random)
        new_lines = self.open(content, guided=number % GUIDED == 0)
        if new_lines and len(self.seeds) < MOST_SEEDS and len(content) < LARGEST_SEED:
            self.seeds.append(content)

    def open(self, content: bytes, *, guided: bool) -> bool:
        """Open a file with this content; whether it reached a new line."""
        self.path.write_bytes(content)
        before, begin = len(self.lines), time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
        try:
            if guided:
                sys.settrace(self.trace)
            self.door.open(self.path)
            self.outcomes["read"] += 1
        except FocaldetError as error:
            self.outcomes["refused"] += 1
            if not str(error).replace("\n", "").isprintable() or len(str(error)) > 2000:
                self.fail(content, error)
        except (Exception, TooSlowError) as error:
            self.fail(content, error)
        finally:
            sys.settrace(None)
            signal.setitimer(signal.ITIMER_REAL, 0)
        self.slowest = max(self.slowest, time.perf_counter() - begin)
        return len(self.lines) > before

    def trace(self, frame: FrameType, event: str, _: object) -> Any:
        """Count the lines of focaldet; nothing else is followed."""
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self.trace if event in ("call", "line") else None

    def fail(self, content: bytes, error: BaseException) -> None:
        self.outcomes["failed"] += 1
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(PACKAGE)]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        self.failures.setdefault(
            f"{type(error).__name__} at {where}", (content, "".join(traceback.format_exception(error)))
        )


def mutate_bytes(data: bytes, draw: random.Random) -> bytes:
    """One to four edits of single bytes, numbers and pieces."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        position = draw.randrange(len(out) + 1)
        kind = draw.randrange(7)
        if kind == 0 and position < len(out):
            out[position] ^= 1 << draw.randrange(8)
        elif kind == 1 and position < len(out):
            out[position] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        elif kind == 2:
            width = draw.choice((2, 4, 8))
            value = draw.choice((0, 1, (1 << 8 * width - 1) - 1, (1 << 8 * width) - 1, draw.randrange(1 << 20)))
            out[position : position + width] = (value % (1 << 8 * width)).to_bytes(
                width, draw.choice(("little", "big"))
            )
        elif kind == 3:
            del out[position : position + draw.choice((1, 2, 8, 64))]
        elif kind == 4:
            start = draw.randrange(len(out) + 1)
            out[position:position] = out[start : start + draw.choice((1, 4, 16, 64))]
        elif kind == 5:
            out[position:position] = draw.randbytes(draw.choice((1, 2, 4, 16)))
        else:
            del out[draw.randrange(len(out) + 1) :]
    return bytes(out)


def fuzz(names: list[str], *, seconds: float, seed: int, most: int | None = None) -> list[Fuzzer]:
    """Give each door its part of the time, in turns."""
    done = []
    for name in names:
        with tempfile.TemporaryDirectory(dir=scratch(Path(tempfile.gettempdir()))) as folder:
            fuzzer = Fuzzer(name, DOORS[name], Path(folder), seed=seed)
            end, number = time.monotonic() + seconds / len(names), 0
            for content in list(fuzzer.seeds):
                fuzzer.open(content, guided=True)
            while (time.monotonic() < end) if most is None else (number < most):
                fuzzer.step(number)
                number += 1
            done.append(fuzzer)
    return done


def clock() -> None:
    def ring(*_: object) -> None:
        raise TooSlowError(f"more than {MOST_SECONDS:g} s")

    signal.signal(signal.SIGALRM, ring)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--door", nargs="*", default=list(DOORS), choices=list(DOORS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"))
    options = parser.parse_args()
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)  # the decoders of images write to it what they think of a file
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES,) * 2)
    clock()
    warnings.simplefilter("ignore")
    begin, total, failures = time.monotonic(), 0, 0
    print(
        f"{'DOOR':32} {'FILES':>9} {'READ':>8} {'REFUSED':>8} {'FAILED':>7} {'SEEDS':>6} {'LINES':>6} {'SLOWEST s':>9}"
    )
    for fuzzer in fuzz(options.door, seconds=options.seconds, seed=options.seed):
        count = fuzzer.outcomes
        total, failures = total + count.total(), failures + count["failed"]
        print(
            f"{fuzzer.name:32} {count.total():9,} {count['read']:8,} {count['refused']:8,} {count['failed']:7,} "
            f"{len(fuzzer.seeds):6} {len(fuzzer.lines):6} {fuzzer.slowest:9.2f}"
        )
        for number, (kind, (content, text)) in enumerate(fuzzer.failures.items()):
            options.out.mkdir(parents=True, exist_ok=True)
            stem = f"{fuzzer.name.replace(':', '').replace(' ', '_').replace(',', '')}-{number}"
            (options.out / stem).write_bytes(content)
            (options.out / f"{stem}.txt").write_text(text, errors="backslashreplace")
            print(f"    {kind}: {options.out / stem}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{total:,} files in {time.monotonic() - begin:.0f} s, {failures} failures, {peak:.2f} GB at most")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
