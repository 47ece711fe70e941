"""Cuts a Python process off from every network but loopback; imported by itself in processes that tests start."""

import ipaddress
import socket
from collections.abc import Callable
from typing import Any


class NetworkBlockedError(OSError):
    """A test tried to leave the machine."""


def is_local(address: Any) -> bool:
    """Whether a socket address is a path, a pipe or a loopback host."""
    if not isinstance(address, tuple):
        return True
    host = address[0]
    if host in ("", "localhost", None):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return host == socket.gethostname()


def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    """`method`, refusing to run when its last argument is an address outside of this machine."""

    def guard(*arguments: Any, **named: Any) -> Any:
        if not is_local(arguments[-1]):
            raise NetworkBlockedError(f"tests may not reach the network: {arguments[-1]}")
        return method(*arguments, **named)

    return guard


def block_network() -> None:
    """From here on, connecting, sending or looking up a name outside of this machine raises `NetworkBlockedError`."""
    if getattr(socket, "_focaldet_blocked", False):
        return
    lookup = socket.getaddrinfo

    def local_lookup(host: Any, *arguments: Any, **named: Any) -> Any:
        if not is_local((host.decode() if isinstance(host, bytes) else host,)):
            raise NetworkBlockedError(f"tests may not reach the network: {host}")
        return lookup(host, *arguments, **named)

    socket.socket.connect = guarded(socket.socket.connect)  # type: ignore[method-assign]
    socket.socket.connect_ex = guarded(socket.socket.connect_ex)  # type: ignore[method-assign]
    socket.socket.sendto = guarded(socket.socket.sendto)  # type: ignore[method-assign]
    socket.getaddrinfo = local_lookup
    socket._focaldet_blocked = True  # type: ignore[attr-defined]


block_network()
