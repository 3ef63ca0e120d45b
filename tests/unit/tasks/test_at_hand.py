from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from hpcenc.tasks import at_hand
from hpcenc.tasks.at_hand import made_once

N_SLOTS = 4


@pytest.fixture
def slots() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(N_SLOTS) as pool:
        yield pool


def test_slots_that_ask_at_the_same_time_get_one_value(slots: ThreadPoolExecutor) -> None:
    made = []

    @made_once(maxsize=2)
    def make(key: str) -> list[str]:
        made.append(key)
        time.sleep(0.05)
        return [key]

    found = list(slots.map(make, "aabb"))
    assert sorted(made) == ["a", "b"]
    assert found[0] is found[1]
    assert found[2] is found[3]


def test_a_value_that_could_not_be_made_is_tried_again() -> None:
    tries = []

    @made_once(maxsize=1)
    def make() -> int:
        tries.append(1)
        if len(tries) == 1:
            raise OSError("not yet")
        return 7

    with pytest.raises(OSError, match="not yet"):
        make()
    assert make() == 7


def test_all_slots_of_a_worker_share_one_device(slots: ThreadPoolExecutor) -> None:
    for _ in range(20):
        at_hand.device("torch")  # takes the place of the one before
        together = Barrier(N_SLOTS)

        def ask(together: Barrier = together) -> int:
            together.wait()
            return id(at_hand.device("numpy"))

        assert len({future.result() for future in [slots.submit(ask) for _ in range(N_SLOTS)]}) == 1


def test_slots_compute_in_turns(slots: ThreadPoolExecutor) -> None:
    device = at_hand.device("numpy")
    computing = []

    def compute(_: int) -> int:
        with device.turn():
            computing.append(1)
            time.sleep(0.01)
            n_at_work = len(computing)
            computing.pop()
        return n_at_work

    assert set(slots.map(compute, range(3 * N_SLOTS))) == {1}


@pytest.mark.parametrize(
    ("device", "free", "expected"),
    [("cpu", 64e9, 500), ("cuda", 64e9, 106_500), ("cuda", 8e9, 13_000), ("cuda", 1e6, 500)],
)
def test_the_solver_takes_as_many_voxels_at_a_time_as_a_device_has_room_for(
    device: str, free: float, expected: int
) -> None:
    class Backend:
        def memory_bytes(self) -> int:
            return int(free)

    backend = Backend()
    backend.device = device  # type: ignore[attr-defined]
    found = at_hand.Device(backend)  # type: ignore[arg-type]
    assert found.sub_block == expected
