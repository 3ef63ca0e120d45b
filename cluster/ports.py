"""Which port of a range a process may listen on."""

from __future__ import annotations

import socket


def free_port(host: str, ports: tuple[int, int] | None) -> int:
    """The first port of a range that nobody listens on.

    Parameters
    ----------
    host : str
        Address of this machine; empty for all of them.
    ports : (int, int) or None
        First and last one.

    Returns
    -------
    int
        0 without a range, which lets the system choose.

    Raises
    ------
    OSError
        If none is free.
    """
    if ports is None:
        return 0
    for port in range(ports[0], ports[1] + 1):
        try:
            with socket.create_server((host, port)):
                return port
        except OSError:
            continue
    raise OSError(f"network.ports: none from {ports[0]} to {ports[1]} is free on {socket.gethostname()}")
