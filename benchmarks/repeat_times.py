"""Whether the times of `focaldet compare` repeat: measured again and again, what each number differs by.

    python benchmarks/repeat_times.py runs/compare [--times 2]

Runs, images, rounds and batch size are those of the comparison's timing.json, which stays as it is and is the first of
the measurements. The last two columns are the largest value over the smallest, less one, of the fastest round (of each
image; of images/s of all) and of the median, which the comparison goes by. The probe is a fixed piece of work beside
each measurement.
"""

import argparse
from pathlib import Path

import torch

from focaldet import config as configs
from focaldet.allocator import keep_freed_memory
from focaldet.comparison.timing import TIMING_RECORD, TimingReport, read_timing, time_detectors


def measure_again(folder: Path, *, times: int) -> list[TimingReport]:
    """The times of a comparison's detectors as it has them, then measured so many times more."""
    file = folder / TIMING_RECORD
    saved = configs.read_mapping(file)
    key, reports = saved["key"], [read_timing(saved["report"], source=str(file))]
    runs = {name: Path(path) for name, (path, _) in key["runs"].items()}
    images = [Path(path) for path in key["images"]]
    threads, device, precision = key["computing"]
    torch.set_num_threads(threads)
    for number in range(times):
        report = time_detectors(
            runs, images, rounds=key["rounds"], batch_size=key["batch"], device=device, precision=precision
        )
        print(f"{number + 1} of {times}: load {report.load_before} before, {report.load_after} after", flush=True)
        steady = "quiet" if report.is_quiet else "not quiet"
        if report.probe is not None:
            print(f"probe {report.probe.median:.2f} ms, p90 {report.probe.p90:.2f}: {steady}", flush=True)
        reports.append(report)
    return reports


def spread(values: list[float]) -> str:
    """The largest over the smallest, less one."""
    return f"{max(values) / min(values) - 1:6.1%}"


def main() -> None:
    """Measure, and print a row for each detector and each number."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a finished comparison")
    parser.add_argument("--times", type=int, default=2)
    words = parser.parse_args()
    keep_freed_memory()  # as the command does
    reports = measure_again(words.folder, times=words.times)
    for unit, part in (("ms", "total"), ("images/s", "throughput")):
        print(f"{unit:42} {'median':>{9 * len(reports)}} {'best':>6} {'median':>7}")
        for name in reports[0].detectors:
            measured = [getattr(report.detectors[name], part) for report in reports if name in report.detectors]
            best, median = [each.best for each in measured], [each.median for each in measured]
            columns = f"{spread(best)} {spread(median):>7}"
            print(f"{name:42} {''.join(f'{value:9.1f}' for value in median)} {columns}", flush=True)


if __name__ == "__main__":
    main()
