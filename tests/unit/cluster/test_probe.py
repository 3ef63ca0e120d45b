"""What a job of a site test finds when it stands alone."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import pytest

from hpcenc.cluster import probe as probes
from hpcenc.cluster.enlistment import code_digest
from hpcenc.cluster.probe import Finding, Role, probe, read_findings

SITE = {
    "scratch": "/tmp",
    "controller": {"partition": "any", "walltime": 30},
    "cpu": {"partition": "any", "walltime": 10, "cores": 1, "memory": "1G"},
    "network": {"interface": "lo"},
}


def look(folder: Path, role: Role, code: str = "", seconds: float = 0) -> dict[str, Finding]:
    asked = {"profile": "site", "site": SITE, "code": code, "n_workers": 1, "seconds": seconds}
    (folder / "test.json").write_text(json.dumps(asked))
    assert read_findings(folder, role) is None
    probe(folder, role)
    return {finding.name: finding for finding in read_findings(folder, role) or ()}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def write_address(folder: Path, port: int) -> None:
    address = {"host": "127.0.0.1", "port": port, "node": "another", "renamed_s": time.time()}
    (folder / probes.ADDRESS).write_text(json.dumps(address))


def test_files_that_are_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "SEEN_S", 0.1)
    found = look(tmp_path, "cpu", code_digest())
    assert found["hpcenc"].passed
    assert found["store"].passed is False
    assert "a file system that all nodes share" in found["store"].said
    assert found["network"].passed is None


def test_another_version_and_a_closed_port(tmp_path: Path) -> None:
    write_address(tmp_path, free_port())
    found = look(tmp_path, "cpu", "0123")
    assert found["hpcenc"].passed is False
    assert "install the same one" in found["hpcenc"].said
    assert found["store"].passed
    assert found["network"].passed is False
    assert "ConnectionRefusedError" in found["network"].said
    assert "--array" in found["network"].said


def test_a_controller_is_called_by_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "check_job", lambda script, options: "")
    (tmp_path / "cpu").mkdir()
    begin = time.monotonic()
    listening = threading.Thread(target=look, args=(tmp_path, "controller", "", 30))
    listening.start()
    while not (tmp_path / probes.ADDRESS).exists() and time.monotonic() < begin + 10:
        time.sleep(0.02)
    (finding,) = (finding for finding in probes._call(tmp_path) if finding.name == "network")
    listening.join()
    assert finding.passed, finding.said
    assert time.monotonic() - begin < 10  # it waited for no more workers than there are
    assert {finding.name for finding in read_findings(tmp_path, "controller") or ()} == {"hpcenc", "sbatch"}
