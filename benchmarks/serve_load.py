"""Load on `focaldet serve` over loopback: good, broken, huge, slow and lying clients at once, then SIGTERM under load.

    python benchmarks/serve_load.py RUN IMAGES [--seconds 60] [--clients 32] [--workers 1] [--num-images 32]

Measures `predict` alone, then the service on a free port under load, bounded by `--seconds` and `--requests`, then
`predict` again: where the two differ much, other programs had the cores. Prints one JSON object: p50 and p99 of good
answers, throughput beside the mean of predict's own, CPU seconds per image of the service (of its answers of every
kind) and of predict, the mean size of a batch, statuses by kind of client, answers that differ from `predict`'s, memory
of the service, and what SIGTERM lost.
The exit status is 1 where an answer differs, a good request before SIGTERM has another end than 200 or 503 (such as a
connection that is cut), any status is 5xx but 503, or an accepted request is lost.

Of 32 clients 24 send good images one after the other; two each send broken files, bodies that are too large, bodies
that come a byte at a time, and bodies whose Content-Length is wrong. Clients, service and `predict` share the cores.
"""

import argparse
import asyncio
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx2
import torch

import focaldet

KINDS = ("good",) * 12 + ("broken", "huge", "slow", "lying")  # by turns
LARGEST_BYTES = 2_000_000
BOX_PX, SCORE = 0.05, 1e-3  # batches of other sizes are summed in another order


class Load:
    """The clients, and what they were told."""

    def __init__(
        self, address: str, images: list[bytes], expected: list[focaldet.Detections], limits: argparse.Namespace
    ):
        self.address, self.images, self.expected, self.limits = address, images, expected, limits
        self.host, port = address.removeprefix("http://").split(":")
        self.port = int(port)
        self.statuses: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        self.seconds: list[float] = []
        self.num_wrong = self.num_lost = self.num_sent = 0
        self.end = 0.0
        self.is_ending = False

    async def run(self, seconds: float) -> None:
        """All clients at once, until the time is over."""
        self.end = time.monotonic() + seconds
        kinds = itertools.islice(itertools.cycle(KINDS), self.limits.clients)
        await asyncio.gather(*(self.client(kind, number) for number, kind in enumerate(kinds)))

    async def client(self, kind: str, number: int) -> None:
        """One client, one request after the other."""
        async with httpx2.AsyncClient(base_url=self.address, timeout=60) as client:
            for turn in itertools.count(number):
                if time.monotonic() > self.end or self.num_sent >= self.limits.requests:
                    return
                self.num_sent += 1
                try:
                    status = await getattr(self, kind)(client, turn)
                except (OSError, httpx2.TransportError) as error:
                    status = type(error).__name__
                    if self.is_ending:
                        self.num_lost += kind == "good" and not isinstance(error, httpx2.ConnectError)
                        return
                self.statuses[kind][str(status)] += 1
                if status == 503:
                    await asyncio.sleep(1)

    async def good(self, client: httpx2.AsyncClient, turn: int) -> int:
        index, started = turn % len(self.images), time.monotonic()
        answer = await client.post("/predict?score=0", content=self.images[index])
        if answer.status_code == 200:
            self.seconds.append(time.monotonic() - started)
            self.num_wrong += not equals(answer.json()["predictions"], self.expected[index])
        return answer.status_code

    async def broken(self, client: httpx2.AsyncClient, turn: int) -> int:
        data = bytearray(self.images[turn % len(self.images)])
        kinds = (b"", b"<html>", bytes(data[: len(data) // 3]), os.urandom(2000), bytes(data[:400]) + os.urandom(400))
        answer = await client.post("/predict", content=kinds[turn % len(kinds)])
        await asyncio.sleep(0.02)
        return answer.status_code

    async def huge(self, client: httpx2.AsyncClient, turn: int) -> int:
        await asyncio.sleep(0.1)
        return (await client.post("/predict", content=bytes(LARGEST_BYTES + 1 + turn % 1000))).status_code

    async def slow(self, _client: httpx2.AsyncClient, _turn: int) -> str:
        return await self.talk(len(self.images[0]), *[self.images[0][k : k + 1] for k in range(100)], pause=0.1)

    async def lying(self, _client: httpx2.AsyncClient, turn: int) -> str:
        data = self.images[turn % len(self.images)]
        await asyncio.sleep(0.05)
        return await self.talk(len(data) + (-500, 500)[turn % 2], data)

    async def talk(self, length: int, *parts: bytes, pause: float = 0.0) -> str:
        """The status that a request with this Content-Length gets for these bytes."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode())
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)
                if time.monotonic() > self.end:
                    return "given up"
            line = await asyncio.wait_for(reader.readline(), 30)
            return (line.decode().split() or ["", "closed"])[1]
        except (ConnectionError, TimeoutError) as error:
            return type(error).__name__
        finally:
            writer.close()


def equals(predictions: list[dict], expected: focaldet.Detections) -> bool:
    """Whether an answer has the detections of `predict`, whatever the order of equal scores."""
    if len(predictions) != len(expected):
        return False
    mine = sorted(
        (row["class"], round(row["confidence"], 2), *row["box"].values(), row["confidence"]) for row in predictions
    )
    other = sorted((label, round(score, 2), *box, score) for box, score, label, _ in expected)
    return all(
        a[0] == b[0]
        and abs(a[6] - b[6]) <= SCORE
        and all(abs(x - y) <= BOX_PX for x, y in zip(a[2:6], b[2:6], strict=True))
        for a, b in zip(mine, other, strict=True)
    )


def find_faults(statuses: dict[str, Counter[str]]) -> list[str]:
    """The kinds of clients with a status that none of them may have, an error of the connection included."""
    return [
        f"{kind}: {status}"
        for kind, counts in statuses.items()
        for status in counts
        if (status not in ("200", "503") if kind == "good" else status[:1] == "5" and status != "503")
    ]


def family_of(pid: int) -> list[tuple[Path, str]]:
    """The folders in /proc of a process and its children, and their status."""
    family = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if re.search(rf"^(Pid|PPid):\t{pid}$", text, re.MULTILINE):
            family.append((status.parent, text))
    return family


def resident_megabytes(pid: int) -> float:
    """The memory of a process and its children."""
    sizes = [re.search(r"VmRSS:\s+(\d+)", text) for _, text in family_of(pid)]
    return round(sum(int(match[1]) for match in sizes if match) / 1024, 1)


def cpu_seconds(pid: int) -> float:
    """What a process and its children have computed so far."""
    words = [(folder / "stat").read_text().rpartition(")")[2].split() for folder, _ in family_of(pid)]
    return sum(int(row[11]) + int(row[12]) for row in words) / os.sysconf("SC_CLK_TCK")


def read_batches(address: str) -> tuple[float, float]:
    """How many images and batches the service has computed, by its metrics."""
    text = httpx2.get(f"{address}/metrics", timeout=60).text
    matches = [re.search(rf"^focaldet_batch_size_{name} (\S+)", text, re.MULTILINE) for name in ("sum", "count")]
    return tuple(float(match[1]) if match else 0.0 for match in matches)


async def measure(load: Load, process: subprocess.Popen, options: argparse.Namespace) -> dict:
    """The load, the memory before and after it, and SIGTERM under it."""
    warm = max(5.0, options.seconds / 5)
    await load.run(warm)
    before, load.seconds = resident_megabytes(process.pid), []
    counted, spent, started = read_batches(load.address), cpu_seconds(process.pid), time.monotonic()
    await load.run(options.seconds)
    seconds, after = time.monotonic() - started, resident_megabytes(process.pid)
    spent = cpu_seconds(process.pid) - spent
    images, batches = (now - then for now, then in zip(read_batches(load.address), counted, strict=True))
    good = sorted(load.seconds)
    result = {
        "seconds": round(seconds, 1),
        "good_answers": len(good),
        "p50_ms": round(1000 * statistics.median(good), 1),
        "p99_ms": round(1000 * good[int(0.99 * (len(good) - 1))], 1),
        "images_per_second": round(len(good) / seconds, 2),
        "cpu_seconds_per_image": round(spent / max(1, images), 4),
        "mean_batch_size": round(images / max(1, batches), 2),
        "memory_mb": [before, after],
        "memory_growth_percent": round(100 * (after / before - 1), 2),
    }
    load.is_ending = True
    ending = asyncio.create_task(load.run(8))
    await asyncio.sleep(2)
    process.send_signal(signal.SIGTERM)
    sent = time.monotonic()
    while process.poll() is None and time.monotonic() - sent < 20:
        await asyncio.sleep(0.05)
    result["sigterm_seconds"] = round(time.monotonic() - sent, 2)
    result["exit_status"] = process.poll()
    await ending
    return result


def measure_predict(predictor: focaldet.Predictor, paths: list[Path], seconds: float) -> tuple[float, float]:
    """Images a second of `predict` itself, files read included, and its CPU seconds per image."""
    started, computed, num_images = time.monotonic(), time.process_time(), 0
    while time.monotonic() - started < seconds:
        predictor.predict(paths)
        num_images += len(paths)
    return num_images / (time.monotonic() - started), (time.process_time() - computed) / num_images


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("images", type=Path, help="a folder with images")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=200_000, help="at most so many in all")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--num-images", type=int, default=32)
    options = parser.parse_args()
    paths = sorted(path for path in options.images.rglob("*") if path.suffix.lower() in (".jpg", ".png"))
    paths = [path for path in paths if path.stat().st_size < LARGEST_BYTES][: options.num_images]
    predictor = focaldet.load(options.run, precision="fp32")
    expected = predictor.predict(paths)
    own = [measure_predict(predictor, paths, min(10.0, options.seconds / 4))]
    command = [sys.executable, "-m", "focaldet", "serve", options.run, "--port", "0", "--precision", "fp32"]
    command += ["--workers", str(options.workers), "--max-megabytes", str(LARGEST_BYTES / 1e6), "--body-seconds", "5"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        while "http" not in (line := process.stdout.readline()):
            if not line:
                raise SystemExit("the service did not start")
        address = next(word for word in line.split() if word.startswith("http"))
        load = Load(address, [path.read_bytes() for path in paths], expected, options)
        result = asyncio.run(measure(load, process, options))
    finally:
        process.kill()
        process.wait()
    own.append(measure_predict(predictor, paths, min(10.0, options.seconds / 4)))
    mean = statistics.mean(rate for rate, _ in own)
    result |= {
        "predict_images_per_second": [round(rate, 2) for rate, _ in own],
        "predict_cpu_seconds_per_image": [round(spent, 4) for _, spent in own],
        "throughput_of_predict": round(result["images_per_second"] / mean, 3),
        "statuses": {kind: dict(counts) for kind, counts in load.statuses.items()},
        "faults": find_faults(load.statuses),
        "answers_that_differ": load.num_wrong,
        "lost_at_sigterm": load.num_lost,
        "clients": options.clients,
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
    }
    print(json.dumps(result, indent=1))
    return int(bool(load.num_wrong or load.num_lost or result["faults"]))


if __name__ == "__main__":
    sys.exit(main())
