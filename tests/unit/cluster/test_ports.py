from __future__ import annotations

import socket

import pytest

from hpcenc.cluster.ports import free_port


def test_the_first_port_of_a_range_that_is_free_is_taken() -> None:
    assert free_port("127.0.0.1", None) == 0
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert free_port("127.0.0.1", (port, port + 50)) > port
        with pytest.raises(OSError, match=f"network.ports: none from {port} to {port} is free"):
            free_port("127.0.0.1", (port, port))
