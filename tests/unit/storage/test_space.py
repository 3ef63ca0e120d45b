"""Space that is left, with commands that print what real ones do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpcenc.storage import space
from hpcenc.storage.space import space_left

QUOTA = """\
Disk quotas for user alice (uid 1001):
     Filesystem   blocks    quota    limit    grace    files    quota    limit    grace
filer:/vol/home    4000*     3000     5000  1700000000      80       90      100        0
"""
NONE = "Disk quotas for user alice (uid 1001): none\n"
LUSTRE = """\
     /lustre/scratch
                    2000       0    2500       -      10       0       0       -
"""


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands, the only one on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}")
    return folder


def put(folder: Path, name: str, text: str, status: int = 0) -> None:
    script = f'#!/bin/sh\necho "$@" >> {folder}/calls\n/bin/cat <<"E"\n{text}E\nexit {status}\n'
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)


def test_without_quotas_it_is_that_of_the_file_system(commands: Path, tmp_path: Path) -> None:
    found, system = space_left(tmp_path), os.statvfs(tmp_path)
    assert found.n_bytes == pytest.approx(system.f_bavail * system.f_frsize, rel=0.05)
    assert found.of_what == "the file system"


@pytest.mark.parametrize("status", [0, 1])
def test_a_quota_that_is_tighter_counts(status: int, commands: Path, tmp_path: Path) -> None:
    put(commands, "quota", QUOTA, status)  # the real one ends with 1 where a quota is exceeded
    found = space_left(tmp_path)
    assert (found.n_bytes, found.n_files) == (1000 * 1024, 20)
    assert found.of_what.startswith("the quota of user ")
    assert found.files_of_what == found.of_what
    calls = (commands / "calls").read_text().splitlines()
    assert [call.split()[2] for call in calls] == ["-u", "-g"]
    assert all(Path(call.split()[4]).is_mount() for call in calls)


def test_lustre_is_asked_too_and_its_long_names_are_read(commands: Path, tmp_path: Path) -> None:
    put(commands, "quota", NONE)
    put(commands, "lfs", LUSTRE)
    found = space_left(tmp_path)
    assert found.n_bytes == 500 * 1024
    assert found.files_of_what in ("the file system", "")  # a limit of 0 is none


def test_commands_that_hang_or_talk_of_other_things_are_passed_over(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space, "ASK_S", 0.2)
    (commands / "lfs").write_text("#!/bin/sh\nexec /bin/sleep 20\n")
    (commands / "lfs").chmod(0o755)
    put(commands, "quota", "quota: cannot find mountpoint\n", 1)
    assert space_left(tmp_path).of_what == "the file system"
