from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from hpcenc.cluster.credentials import make_credentials, remove_credentials
from hpcenc.storage.errors import StoreError


def test_keys_are_their_users_alone_and_go_with_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "private"
    made = make_credentials(folder)
    # The run folder may be the group's, who could put other files there before they are read.
    assert not [
        path for path in made.get_tls_config_for_role("scheduler").values() if str(folder) in str(path)
    ]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
    remove_credentials(folder)
    assert not folder.exists()
    remove_credentials(folder)


@pytest.mark.parametrize("how", ["open", "another's", "a link"])
def test_keys_are_put_into_no_folder_that_somebody_else_could_read(how: str, tmp_path: Path) -> None:
    folder, other = tmp_path / "private", tmp_path / "other"
    other.mkdir(0o700)
    if how == "a link":
        folder.symlink_to(other)
    else:
        folder.mkdir(0o700)
        if how == "open":
            folder.chmod(0o710)
        elif os.getuid() != 0:
            pytest.skip("needs root, to be another user")
        else:
            os.chown(folder, 1, -1)
    with pytest.raises(StoreError, match=r"private: expected a folder of user \d+ alone .*Remove it"):
        make_credentials(folder)
    assert [*folder.iterdir(), *other.iterdir()] == []


def test_the_folder_of_a_run_that_died_is_used_again(tmp_path: Path) -> None:
    folder = tmp_path / "private"
    make_credentials(folder)
    folder.chmod(0o2700)  # as in a folder whose group is inherited
    before = (folder / "key.pem").read_text()
    make_credentials(folder)
    assert (folder / "key.pem").read_text() != before


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user")
def test_keys_of_another_user_are_left_to_that_user(tmp_path: Path) -> None:
    folder = tmp_path / "private"
    make_credentials(folder)
    for path in (*tmp_path.parents, tmp_path):
        if path.stat().st_mode & 0o005 != 0o005:
            path.chmod(path.stat().st_mode | 0o005)
    child = os.fork()
    if child == 0:
        os.setuid(1)
        try:
            remove_credentials(folder)
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert sorted(path.name for path in folder.iterdir()) == ["cert.pem", "key.pem"]
