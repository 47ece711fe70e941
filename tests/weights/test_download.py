"""Downloads against a server on loopback: resume after a cut, wrong content, absent server."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from focaldet.errors import CheckpointError
from focaldet.weights.download import cache_folder, download, stated_checksum

CONTENT = bytes(range(256)) * 4000
NAME = f"net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"


class Server(ThreadingHTTPServer):
    """Serves CONTENT under every name; `cuts` says after how many bytes the next responses break off."""

    cuts: list[int]
    ranges: list[str | None]
    offers_ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/models/{NAME}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if "missing" in self.path:
            self.send_error(404)
            return
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.offers_ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = self.server.cuts.pop(0) if self.server.cuts else len(CONTENT)
        self.wfile.write(CONTENT[start:end])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server(("127.0.0.1", 0), Handler) as server:
        server.cuts, server.ranges = [], []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = download(server.url, tmp_path / "cache", progress=lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "cache" / NAME
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert download(server.url, tmp_path / "cache") == path
    assert server.ranges == [None]
    assert not list(path.parent.glob("*.partial"))


def test_a_cut_download_is_continued(server: Server, tmp_path: Path) -> None:
    server.cuts = [400_000, 700_000]
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=400000-", "bytes=700000-"]


def test_after_many_cuts_the_next_call_continues(server: Server, tmp_path: Path) -> None:
    server.cuts = [1000, 2000, 3000]
    with pytest.raises(CheckpointError, match=f"cut after 3000 of {len(CONTENT)} bytes"):
        download(server.url, tmp_path)
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=3000-"


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.cuts, server.offers_ranges = [5000], False
    assert download(server.url, tmp_path).read_bytes() == CONTENT


def test_a_partial_file_that_is_whole_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / f".{NAME}.partial").write_bytes(CONTENT)
    assert download(server.url, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"]


def test_wrong_content_is_removed_and_named(server: Server, tmp_path: Path) -> None:
    url = server.url.replace(NAME, "net-00000000.pth")
    with pytest.raises(
        CheckpointError, match=r"wrong checksum: the name states 00000000, the content has [0-9a-f]{8}$"
    ):
        download(url, tmp_path)
    assert not list(tmp_path.glob("*pth")), "nothing may look like weights"
    assert not list(tmp_path.glob(".*partial")), "the next try must start again"


def test_a_missing_file_is_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"missing-12345678\.pth could not be downloaded: the server answers 404"):
        download(server.url.replace(NAME, "missing-12345678.pth"), tmp_path)


def test_an_absent_server_gives_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/{NAME}"
    with pytest.raises(CheckpointError, match=r"refused; give the path of a local copy instead$") as caught:
        download(url, tmp_path)
    assert "\n" not in str(caught.value)
    assert url in str(caught.value)


def test_two_at_once_fetch_once(server: Server, tmp_path: Path) -> None:
    threads = [threading.Thread(target=download, args=(server.url, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / NAME).read_bytes() == CONTENT
    assert server.ranges == [None]


def test_an_unwritable_cache_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be downloaded: Not a directory"):
        download(server.url, tmp_path / "file" / "cache")


def test_names_state_checksums() -> None:
    assert stated_checksum("resnet50-0676ba61.pth") == "0676ba61"
    assert stated_checksum("resnet50.pth") is None


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FOCALDET_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "weights"
    monkeypatch.delenv("FOCALDET_HOME")
    assert cache_folder() == Path.home() / ".cache" / "focaldet" / "weights"
