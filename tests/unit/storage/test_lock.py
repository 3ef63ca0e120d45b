from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from hpcenc.cluster.liveness import is_gone
from hpcenc.storage.errors import LockError
from hpcenc.storage.lock import (
    LockOwner,
    acquire,
    hand_over,
    holds,
    job_of,
    process_start,
    read_lock,
    release,
    this_process,
)

ROUNDS = 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results" / "study.zarr.lock"


def dead_process(run_id: str) -> LockOwner:
    """An owner whose process has ended."""
    child = subprocess.Popen(["true"])
    child.wait()
    return replace(this_process(run_id), pid=child.pid, process_start="1")


def write_lock(path: Path, owner: LockOwner) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(owner)))


def test_a_lock_says_who_holds_it_and_is_given_back(path: Path) -> None:
    owner = this_process("run-1", job_id="77", restart_count=2)
    assert read_lock(path) is None
    acquire(path, owner, is_gone)
    assert read_lock(path) == owner
    assert (owner.pid, owner.job_id, owner.restart_count) == (os.getpid(), "77", 2)
    release(path, owner)
    assert read_lock(path) is None
    assert list(path.parent.iterdir()) == []


def test_an_owner_that_lives_is_refused_by_name(path: Path) -> None:
    holder = replace(this_process("run-1"), host="node07", user="ana", pid=4711)
    write_lock(path, holder)
    with pytest.raises(LockError) as refused:
        acquire(path, this_process("run-2"), lambda owner: False)
    message = str(refused.value)
    for fact in (str(path), "run-1", "ana", "process 4711", "node07", "remove the lock file"):
        assert fact in message
    assert read_lock(path) == holder
    assert list(path.parent.iterdir()) == [path]


def test_a_job_that_holds_the_store_is_named_by_its_number(path: Path) -> None:
    write_lock(path, replace(this_process("run-1"), job_id="123456"))
    with pytest.raises(LockError, match="job 123456 on"):
        acquire(path, this_process("run-2"), lambda owner: False)


def test_a_live_process_of_this_machine_is_refused(path: Path) -> None:
    acquire(path, this_process("run-1"), is_gone)
    with pytest.raises(LockError, match="run run-1"):
        acquire(path, this_process("run-2"), is_gone)


def test_the_lock_of_a_dead_process_is_taken_over(path: Path) -> None:
    write_lock(path, dead_process("run-1"))
    ours = this_process("run-2")
    acquire(path, ours, is_gone)
    assert read_lock(path) == ours


def test_the_lock_of_a_killed_run_is_taken_over(path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from hpcenc.storage.lock import *\n"
        "acquire(Path(sys.argv[1]), this_process('run-1'), lambda owner: False)\n"
        "print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LockError, match=f"process {holder.pid}"):
            acquire(path, this_process("run-2"), is_gone)
        holder.send_signal(signal.SIGKILL)
    acquire(path, this_process("run-2"), is_gone)


def test_the_lock_of_a_process_whose_number_has_come_back_is_taken_over(path: Path) -> None:
    # The parent of this process lives, but began at another time than the owner says.
    write_lock(path, replace(this_process("run-1"), pid=os.getppid(), process_start="1"))
    acquire(path, this_process("run-2"), is_gone)


def test_the_lock_of_another_machine_is_refused(path: Path) -> None:
    write_lock(path, replace(dead_process("run-1"), host="elsewhere", boot_id="another"))
    with pytest.raises(LockError, match="on elsewhere"):
        acquire(path, this_process("run-2"), is_gone)


def test_a_taker_that_comes_late_leaves_the_winners_lock(path: Path) -> None:
    dead, winner = dead_process("run-1"), this_process("run-2")
    write_lock(path, dead)

    def overtaken(owner: LockOwner) -> bool:
        """Tell that the dead owner is gone, but only after another run has taken the lock over."""
        if owner == dead:
            acquire(path, winner, lambda owner: True)
        return owner == dead

    with pytest.raises(LockError, match="run run-2"):
        acquire(path, this_process("run-3"), overtaken)
    assert read_lock(path) == winner


def test_taking_a_lock_that_is_ours_already_succeeds(path: Path) -> None:
    # NFS repeats a link whose answer was lost, and finds the file that the first one made.
    ours = this_process("run-1")
    acquire(path, ours, lambda owner: False)
    acquire(path, ours, lambda owner: False)
    assert read_lock(path) == ours


def test_a_lock_is_its_holders_until_it_is_another_ones_or_nobodys(path: Path) -> None:
    owner = this_process("run-1", job_id="77")
    acquire(path, owner, is_gone)
    assert holds(path, owner)
    assert not holds(path, replace(owner, restart_count=1))
    path.write_text("{")  # a file system that stumbles
    assert holds(path, owner)
    path.unlink()
    assert not holds(path, owner)


def test_releasing_the_lock_of_another_run_does_nothing(path: Path) -> None:
    holder = this_process("run-1")
    acquire(path, holder, is_gone)
    release(path, this_process("run-2"))
    release(path, replace(holder, restart_count=1))
    assert read_lock(path) == holder
    release(path, holder)
    release(path, holder)
    assert read_lock(path) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"run_id": "x"}', '{"stranger": 1}'])
def test_a_file_that_is_no_lock_is_left_to_the_user(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(LockError, match=r"not a lock file of hpcenc .* If no run is at work, remove it"):
        acquire(path, this_process("run-1"), lambda owner: True)
    assert path.read_text() == content
    assert list(path.parent.iterdir()) == [path]


def test_a_process_start_tells_processes_apart() -> None:
    assert process_start(os.getpid()) == process_start(os.getpid()) != ""
    with subprocess.Popen(["sleep", "60"]) as child:
        began = process_start(child.pid)
        assert int(began) > int(process_start(os.getpid()))
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, but not waited for: a zombie
        assert Path(f"/proc/{child.pid}").exists()
        assert process_start(child.pid) == ""
    assert process_start(child.pid) == ""


# Races: two processes that take the same lock at the same instant.

RACER = """
import sys, time
from pathlib import Path
from hpcenc.cluster.liveness import is_gone
from hpcenc.storage.errors import LockError
from hpcenc.storage.lock import acquire, release, this_process
owner = this_process(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    verb, path, start = line.split()
    if verb == "release":
        release(Path(path), owner)
        print("released", flush=True)
        continue
    while time.monotonic() < float(start):
        pass
    try:
        acquire(Path(path), owner, is_gone)
        print("won", flush=True)
    except LockError as error:
        print("refused" if "holds this store" in str(error) else error, flush=True)
"""


class Racers:
    def __init__(self) -> None:
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-c", RACER, f"racer-{number}"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number in range(2)
        ]
        assert self._answers() == ["ready", "ready"]

    def _answers(self) -> list[str]:
        return [process.stdout.readline().strip() for process in self._processes if process.stdout]

    def tell(self, verb: str, path: Path) -> list[str]:
        for process in self._processes:
            print(verb, path, time.monotonic() + 0.01, file=process.stdin, flush=True)
        return self._answers()

    def end(self) -> None:
        for process in self._processes:
            process.communicate()


@pytest.fixture(scope="module")
def racers() -> Iterator[Racers]:
    racers = Racers()
    yield racers
    racers.end()


def test_of_two_takers_of_a_free_lock_one_wins(tmp_path: Path, racers: Racers) -> None:
    winners = set()
    for number in range(ROUNDS):
        path = tmp_path / f"{number}.lock"
        answers = racers.tell("take", path)
        assert sorted(answers) == ["refused", "won"]
        holder = read_lock(path)
        assert holder is not None
        assert holder.run_id == f"racer-{answers.index('won')}"
        winners.add(holder.run_id)
        racers.tell("release", path)
        assert read_lock(path) is None
    assert winners


def test_of_two_takers_of_a_stale_lock_one_wins(tmp_path: Path, racers: Racers) -> None:
    dead = dead_process("run-1")
    for number in range(ROUNDS):
        path = tmp_path / f"{number}.lock"
        write_lock(path, dead)
        answers = racers.tell("take", path)
        assert sorted(answers) == ["refused", "won"]
        holder = read_lock(path)
        assert holder is not None
        assert holder.run_id == f"racer-{answers.index('won')}"
        racers.tell("release", path)


PAUSED = """
import sys, time
from pathlib import Path
from hpcenc.storage.errors import LockError
from hpcenc.storage.lock import acquire, this_process
name, path, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
remove = Path.unlink
def pause_and_remove(file, missing_ok=False):
    if file == path:
        (folder / f"{name} removes").touch()
        while not (folder / f"{name} may").exists():
            time.sleep(0.01)
    remove(file, missing_ok)
Path.unlink = pause_and_remove
def is_gone(owner):
    (folder / f"{name} looked").touch()
    return owner.run_id == "run-1"
try:
    acquire(path, this_process(name), is_gone)
    print("won")
except LockError as error:
    print("refused" if "holds this store" in str(error) else error)
"""


def test_a_taker_that_pauses_before_it_removes_a_stale_lock_does_not_remove_the_winners(
    path: Path, tmp_path: Path
) -> None:
    write_lock(path, dead_process("run-1"))

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PAUSED, name, str(path), str(tmp_path)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def await_file(name: str) -> None:
        end = time.monotonic() + 30
        while not (tmp_path / name).exists():
            assert time.monotonic() < end, name
            time.sleep(0.01)

    (tmp_path / "quick may").touch()
    slow = start("slow")
    await_file("slow removes")
    quick = start("quick")
    await_file("quick looked")
    with contextlib.suppress(subprocess.TimeoutExpired):
        quick.wait(0.5)  # it would be through by now, if nothing kept it
    (tmp_path / "slow may").touch()
    answers = [process.communicate(timeout=30)[0].strip() for process in (slow, quick)]
    assert sorted(answers) == ["refused", "won"]
    holder = read_lock(path)
    assert holder is not None
    assert holder.run_id == ("slow", "quick")[answers.index("won")]


def test_a_lock_is_handed_to_the_job_of_its_run_and_back_to_a_process(path: Path) -> None:
    first = this_process("run-1")
    acquire(path, first, is_gone)
    hand_over(path, job_of("run-1", "4711"))
    assert read_lock(path) == job_of("run-1", "4711")
    release(path, first)
    assert read_lock(path) is not None, "it is no longer the first one's"
    with pytest.raises(LockError, match=r"run run-1 of .* \(job 4711, which waits\) holds this store"):
        acquire(path, this_process("run-2"), lambda owner: False)
    second = this_process("run-1", job_id="4711", restart_count=1)
    hand_over(path, second)
    assert read_lock(path) == second


def test_a_lock_is_not_handed_over_by_another_run(path: Path) -> None:
    with pytest.raises(LockError, match="expected run run-2 to hold this store, found nobody"):
        hand_over(path, job_of("run-2", "4712"))
    owner = this_process("run-1")
    acquire(path, owner, is_gone)
    with pytest.raises(LockError, match="expected run run-2 to hold this store, found run run-1"):
        hand_over(path, job_of("run-2", "4712"))
    assert read_lock(path) == owner
