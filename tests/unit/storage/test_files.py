from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hpcenc.storage.errors import StudyError
from hpcenc.storage.files import created_with, sync, write_atomically, write_text


def test_a_file_holds_the_new_content_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "mark"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_on_the_disk_before_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mark"
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor: int) -> None:
        synced = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        content = synced.read_bytes() if synced.is_file() else b""
        calls.append(f"fsync {'folder' if synced == tmp_path else 'partial'} {content.decode()}".rstrip())
        fsync(descriptor)

    def recorded_replace(source: Any, target: Any) -> None:
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    write_atomically(path, b"done")
    assert calls == ["fsync partial done", "replace", "fsync folder"]


def test_the_old_content_stays_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mark"
    write_atomically(path, b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"


def test_files_and_folders_can_be_synced(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    sync(tmp_path / "file")
    sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "absent")


def test_a_name_that_is_no_utf8_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    with pytest.raises(StudyError, match=r'not UTF-8: movie = "M\\udce4d.mp4"\. Rename the file'):
        write_text(path, 'name = "x"\nmovie = "' + os.fsdecode(b"M\xe4d.mp4") + '"\n')
    assert list(tmp_path.iterdir()) == []
    write_text(path, "ä\n")
    assert path.read_bytes() == "ä\n".encode()


def test_files_are_made_under_another_umask_for_a_while(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        for name, umask, mode in (("a", 0o007, 0o660), ("b", None, 0o644)):
            with created_with(umask):
                (tmp_path / name).touch()
            assert (tmp_path / name).stat().st_mode & 0o777 == mode
        (tmp_path / "c").touch()
        assert (tmp_path / "c").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(before)
