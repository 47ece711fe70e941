"""The tests themselves, and the programs they start, cannot leave the machine."""

import socket
import subprocess
import sys
import threading
from urllib.error import URLError
from urllib.request import urlopen

import pytest


def test_other_machines_are_out_of_reach():
    with pytest.raises(OSError, match="may not reach"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(URLError, match="may not reach"):
        urlopen("http://example.org", timeout=1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, pytest.raises(OSError, match="may not reach"):
        udp.sendto(b"hello", ("192.0.2.1", 53))


def answer_once(server: socket.socket) -> None:
    connection, _ = server.accept()
    connection.close()


def test_loopback_works():
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer_once, args=(server,))
        thread.start()
        with socket.create_connection(server.getsockname(), timeout=5) as client:
            assert client.recv(1) == b""
        thread.join()


def test_a_started_program_is_cut_off_too():
    program = "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "may not reach the network" in ended.stderr
