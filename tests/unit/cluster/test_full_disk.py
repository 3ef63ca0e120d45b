"""A full disk, or a used up quota: one message wherever it is met, and it does not need the disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from small_study import write_small_study
from typer.testing import CliRunner

from hpcenc.cli.app import app
from hpcenc.cluster.chain import SHARES
from hpcenc.cluster.chain_parts import run_part
from hpcenc.cluster.control import control
from hpcenc.cluster.run_folder import Event, RunFolder
from hpcenc.cluster.submit import Prepared, prepare, submit
from hpcenc.storage.errors import FullError
from hpcenc.storage.layout import lock_path, runs_folder
from hpcenc.storage.lock import acquire, this_process

WORKERS = {"partition": "any", "walltime": 10, "cores": 1, "memory": "2G"}
SITE = {"scratch": "/tmp", "controller": {"partition": "any", "walltime": 30}, "cpu": WORKERS}

Full = Callable[[str, int], None]


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepared:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return prepare(write_small_study(tmp_path), profile="serial")


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Full:
    """Let a call fail for all files of the results: ``full("fsync", errno.EDQUOT)``."""

    def fill(call: str, code: int) -> None:
        real = getattr(os, call)

        def fail(descriptor: int, *others: Any) -> Any:
            is_result = os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(tmp_path / "results"))
            if call == "close" or not is_result:
                done = real(descriptor, *others)
            if is_result:
                raise OSError(code, os.strerror(code))
            return done

        monkeypatch.setattr(os, call, fail)

    return fill


def full_log(self: RunFolder, event: Event) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["write", "fsync", "close"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_submit_says_so_in_one_line_and_leaves_nothing(
    call: str, code: int, prepared: Prepared, full: Full, tmp_path: Path
) -> None:
    full(call, code)
    result = CliRunner().invoke(app, ["submit", str(tmp_path / "study.toml"), "--profile", "serial"])
    (said,) = {" ".join(line.split()) for line in result.stderr.splitlines() if "units" not in line}
    assert "no space is left" in said
    assert "your quota is used up" in said
    store = prepared.study.store_path
    if call == "write":  # of the log, when the run had begun
        assert result.exit_code == 1
    else:
        assert result.exit_code == 2
        assert not runs_folder(store).exists()
    assert [path for path in store.parent.iterdir() if path.name.startswith(lock_path(store).name)] == []


def test_a_lock_for_which_there_is_no_space_is_not_said_to_want_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*arguments: Any) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OSError, match="quota"):
        acquire(tmp_path / "lock", this_process("abcdefgh"), lambda _: False)
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_log_is_full_ends_with_the_message(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Event] = []
    monkeypatch.setattr(RunFolder, "log", full_log)
    result = submit(prepared, "serial", (), told.append)
    reason = str(FullError(prepared.study.store_path))
    assert (result.exit_status, result.set_aside) == (1, (reason,))
    assert [event.get("reason", event.get("status")) for event in told[-2:]] == [reason, 1]


@pytest.mark.parametrize("log_is_full", [False, True])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("part", ["", "begin", "end"])
def test_a_job_says_so_and_that_its_run_has_ended(
    part: str,
    code: int,
    log_is_full: bool,
    prepared: Prepared,
    begin_run: Callable[..., RunFolder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, told = begin_run(prepared, SITE), []  # type: ignore[var-annotated]
    (folder.path / SHARES).write_text("{}")

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("hpcenc.cluster.control.prepare_study", fail)
    monkeypatch.setattr("hpcenc.cluster.chain_parts.prepare_study", fail)
    if log_is_full:
        monkeypatch.setattr(RunFolder, "log", full_log)
    take = partial(run_part, part=part) if part else control
    with pytest.raises(FullError):
        take(folder.path, listen=told.append)
    reason = str(FullError(prepared.study.store_path))
    assert [event["reason"] for event in told if event["event"] == "set aside"] == [reason]
    assert [event["status"] for event in told if event["event"] == "end"] == ([] if part == "begin" else [1])
    if not log_is_full:
        assert [event for event in folder.events() if event["event"] in ("set aside", "end")] != []
    assert not lock_path(prepared.study.store_path).exists()


def test_a_line_that_does_not_fit_costs_no_other(
    prepared: Prepared, begin_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, log = begin_run(prepared, SITE), RunFolder.log

    def almost_full(self: RunFolder, event: Event) -> None:
        if event["event"] == "set aside":
            full_log(self, event)
        log(self, event)

    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no cluster")

    monkeypatch.setattr("hpcenc.cluster.control.prepare_study", fail)
    monkeypatch.setattr(RunFolder, "log", almost_full)
    with pytest.raises(RuntimeError, match="no cluster"):
        control(folder.path)
    assert [event["event"] for event in folder.events()] == ["controller", "end"]
