"""What it saves that the command keeps the memory that it frees: any command, with and without, in turns.

    python benchmarks/kept_memory.py [--times 3] -- predict RUN IMAGE ... --out drawn/

Prints a row for each: seconds of the processor, of these the system's, seconds of the clock, thousands of page
faults, and the peak memory, each the median. What a command writes must be able to be written again.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

RUN = "import sys; from focaldet.cli import main; sys.exit(main(sys.argv[1:]))"
KEEP = "from focaldet.allocator import keep_freed_memory; assert keep_freed_memory(); "
HEADS = ("CPU s", "system s", "clock s", "k faults", "peak MB")


def run_command(words: list[str], *, is_kept: bool) -> list[float]:
    """The five numbers of `HEADS` of one run."""
    begin = time.perf_counter()
    code = (KEEP if is_kept else "") + RUN
    child = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        raise SystemExit(f"the command failed with status {os.waitstatus_to_exitcode(status)}")
    return [used.ru_utime + used.ru_stime, used.ru_stime, seconds, used.ru_minflt / 1e3, used.ru_maxrss * 1.024 / 1e3]


def main() -> None:
    """Run the command in turns, print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("words", nargs="+", help="the command behind `focaldet`")
    given = parser.parse_args()
    rows: dict[bool, list[list[float]]] = {False: [], True: []}
    for _ in range(given.times):
        for is_kept, row in rows.items():
            row.append(run_command(given.words, is_kept=is_kept))
    print(f"{'':14}" + "".join(f"{head:>10}" for head in HEADS))
    medians = {
        is_kept: [statistics.median(column) for column in zip(*row, strict=True)] for is_kept, row in rows.items()
    }
    for is_kept, values in medians.items():
        print(f"{'kept' if is_kept else 'given back':14}" + "".join(f"{value:10.2f}" for value in values))
    ratios = [kept / back for kept, back in zip(medians[True], medians[False], strict=True)]
    print(f"{'ratio':14}" + "".join(f"{value:10.2f}" for value in ratios))


if __name__ == "__main__":
    main()
