"""Which jobs a crew asks for, takes in and gives up: races and refusals that a real SLURM shows only by
chance. Dask's cluster and squeue are stand-ins here; the same crew on a real SLURM is in tests/slurm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from hpcenc.cluster.accounting import WorkerTime, account
from hpcenc.cluster.enlistment import Enlistment
from hpcenc.cluster.pools import CrewError
from hpcenc.cluster.slurm_crew import ENLIST_S, HUNG_S, QUEUE_S, REFUSED_S, SlurmCrew
from hpcenc.slurm.commands import SlurmError
from hpcenc.slurm.jobs import JobState
from hpcenc.storage.errors import LockError


@dataclass
class Answer:
    """A future that has ended."""

    value: Any
    status: str = "finished"
    is_done: bool = True

    def done(self) -> bool:
        return self.is_done

    def result(self, timeout: float = 0) -> Any:
        return self.value

    def exception(self) -> Any:
        return self.value


@dataclass
class Job:
    job_id: str | None
    error: SlurmError | None = None


class Cluster:
    """Jobs and workers as Dask's cluster knows them."""

    def __init__(self) -> None:
        self.workers: dict[str, Job] = {}
        self.worker_spec: dict[str, Any] = {}
        self.scheduler_info: dict[str, Any] = {"workers": {}}
        self.asked: list[int] = []

    def add(self, name: str, job_id: str | None, address: str = "", error: SlurmError | None = None) -> None:
        self.workers[name] = Job(job_id, error)
        self.worker_spec[name] = {}
        if address:
            self.scheduler_info["workers"][address] = {"name": name}

    def leave(self, address: str) -> None:
        del self.scheduler_info["workers"][address]

    def sync(self, function: Callable[[list[str]], None], names: list[str]) -> None:
        function(names)

    def scale_down(self, names: list[str]) -> None:
        for name in names:
            self.workers.pop(name, None)
            self.worker_spec.pop(name, None)

    def scale(self, jobs: int) -> None:
        self.asked.append(jobs)


@dataclass
class Recruiter:
    workers: Any = field(
        default_factory=lambda: type("Workers", (), {"max_jobs": 4, "memory_bytes": 4 << 30})
    )
    run_id: str = "abcdefgh"
    excluded: set[str] = field(default_factory=set)


def good(address: str) -> Answer:
    return Answer(Enlistment(address.partition(":")[0], "gpu", "0", None, ""))


def state(job_id: str, word: str = "RUNNING", node: str = "n1") -> JobState:
    return JobState(job_id, "", word, "", node, None, None, None)


@dataclass
class Scene:
    """A crew, and what is around it."""

    crew: SlurmCrew
    cluster: Cluster
    recruiter: Recruiter
    events: list[dict[str, Any]]
    queue: dict[str, JobState]
    enlist: list[Callable[[str], Answer]]
    cancelled: list[str]
    clock: list[float]
    lost: list[LockError]

    def told(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.events if each["event"] == event]

    def workers_later(self, seconds: float = QUEUE_S + 1) -> set[str]:
        self.clock[0] += seconds
        return self.crew.workers()


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    queue: dict[str, JobState] = {}
    enlist: list[Callable[[str], Answer]] = [good]
    cancelled: list[str] = []
    clock = [1000.0]
    module = "hpcenc.cluster.slurm_crew"

    def ask(name: str = "", ids: Any = (), patience_s: float = 0) -> list[JobState]:
        return [job for job in queue.values() if not ids or job.job_id in ids]

    class Client:
        def submit(self, *call: Any, workers: list[str], **options: Any) -> Answer:
            return enlist[0](workers[0])

    monkeypatch.setattr(f"{module}.job_states", ask)
    monkeypatch.setattr(f"{module}.cancel_jobs", lambda ids, patience_s: cancelled.extend(ids))
    monkeypatch.setattr(f"{module}.time.monotonic", lambda: clock[0])
    cluster, recruiter, events = Cluster(), Recruiter(), []  # type: ignore[var-annotated]
    lost: list[LockError] = []

    def check_lock() -> None:
        for error in lost:
            raise error

    crew = SlurmCrew(cluster, Client(), recruiter, "", events.append, check_lock)  # type: ignore[arg-type]
    crew.want(4)
    return Scene(crew, cluster, recruiter, events, queue, enlist, cancelled, clock, lost)


def test_a_crew_whose_run_another_controller_has_takes_none_of_its_jobs_for_strays(scene: Scene) -> None:
    scene.queue["99"] = state("99")
    scene.workers_later()
    scene.lost.append(LockError("another controller"))
    assert scene.crew.workers() == set()  # it is looked at as often as the queue
    for _ in range(2):
        with pytest.raises(LockError, match="another controller"):
            scene.workers_later()
    assert scene.cancelled == []


def test_what_a_worker_says_of_its_device_is_on_record(scene: Scene) -> None:
    device = {"device": "NVIDIA A100", "driver": "570.1"}
    scene.enlist[0] = lambda address: Answer(Enlistment("n1", "gpu", "0", None, "", device))
    scene.cluster.add("w0", "10", "n1:40000")
    assert scene.crew.workers() == {"w0"}
    assert scene.told("backend") == [{"event": "backend", "job": "10", "backend": "", **device}]


def test_a_worker_at_the_address_of_one_that_is_gone_gets_to_work(scene: Scene) -> None:
    scene.cluster.add("w0", "10", "n1:40000")
    assert scene.crew.workers() == {"w0"}
    scene.cluster.leave("n1:40000")
    scene.queue["10"] = state("10", "PREEMPTED")
    assert scene.workers_later(2) == set()
    scene.cluster.add("w1", "11", "n1:40000")
    assert scene.crew.workers() == {"w1"}
    assert scene.crew.how_lost("w0") == (
        "preempted",
        f"job 10 on n1 ended: preempted; its log is {LOG}-10.log",
    )


LOG = "logs/hpcenc-w-abcdefgh"


def test_a_job_that_needed_more_memory_than_it_had_is_told_with_what_it_had(scene: Scene) -> None:
    scene.cluster.add("w0", "10", "n1:40000")
    scene.crew.workers()
    scene.cluster.leave("n1:40000")
    scene.queue["10"] = state("10", "OUT_OF_MEMORY")
    scene.workers_later(2)
    assert scene.crew.how_lost("w0") == (
        "crash",
        f"job 10 on n1 ended: out_of_memory; its log is {LOG}-10.log; it had 4.3 GB, the profile's `memory`",
    )


def test_a_worker_is_hung_only_when_slurm_had_the_time_to_see_that_its_node_failed(scene: Scene) -> None:
    scene.cluster.add("w0", "10", "n1:1")
    scene.crew.workers()
    scene.cluster.leave("n1:1")
    scene.queue["10"] = state("10")
    assert scene.workers_later(2) == set()
    assert scene.crew.how_lost("w0") is None
    scene.clock[0] += HUNG_S - 60
    scene.queue["10"] = state("10", "NODE_FAIL")
    found = scene.crew.how_lost("w0")
    assert found is not None
    assert found[0] == "node_fail"


@pytest.mark.parametrize(("word", "by"), [("RUNNING", "hung"), ("COMPLETING", "cancelled")])
def test_a_job_that_never_ends_is_given_up(scene: Scene, word: str, by: str) -> None:
    scene.cluster.add("w0", "10", "n1:1")
    scene.crew.workers()
    scene.cluster.leave("n1:1")
    scene.queue["10"] = state("10", word)
    scene.workers_later(2)
    scene.workers_later(HUNG_S)
    assert scene.crew.how_lost("w0") is not None
    assert [event["by"] for event in scene.told("worker lost")] == [by]
    assert scene.cluster.workers == {}


def test_a_worker_that_cannot_even_say_so_is_let_go_and_its_node_gets_no_other(scene: Scene) -> None:
    scene.enlist[0] = lambda address: Answer(ModuleNotFoundError("No module named 'hpcenc'"), "error")
    scene.queue["10"] = state("10", node="n7")
    scene.cluster.add("w0", "10", "n7:1")
    assert scene.crew.workers() == set()
    assert scene.cluster.workers == {}
    assert scene.recruiter.excluded == {"n7"}
    (refused,) = scene.told("worker refused")
    assert refused["why"] == "job 10 on n7: ModuleNotFoundError: No module named 'hpcenc'"


def test_a_worker_that_does_not_answer_is_let_go(scene: Scene) -> None:
    scene.enlist[0] = lambda address: Answer(None, "pending", is_done=False)
    scene.queue["10"] = state("10")
    scene.cluster.add("w0", "10", "n1:1")
    scene.crew.workers()
    assert scene.workers_later(ENLIST_S - 1) == set()
    assert scene.told("worker refused") == []
    scene.workers_later(2)
    assert "did not say in 600 s" in scene.told("worker refused")[0]["why"]


def refuse_on(bad: str) -> Callable[[str], Answer]:
    def enlist(address: str) -> Answer:
        node = address.partition(":")[0]
        return Answer(Enlistment(node, "gpu", "0", None, f"{node}: no GPU works" if node == bad else ""))

    return enlist


def test_one_bad_node_does_not_end_a_run_whose_workers_are_at_work(scene: Scene) -> None:
    scene.enlist[0] = refuse_on("n2")
    scene.cluster.add("w0", "10", "n1:1")
    assert scene.crew.workers() == {"w0"}
    for place in range(3):
        scene.cluster.add(f"bad{place}", f"2{place}", f"n2:{place}")
    assert scene.crew.workers() == {"w0"}
    assert scene.recruiter.excluded == {"n2"}


def test_several_jobs_of_one_bad_node_are_one_failure(scene: Scene) -> None:
    scene.enlist[0] = refuse_on("n2")
    for place in range(4):
        scene.cluster.add(f"bad{place}", f"2{place}", f"n2:{place}")
    assert scene.crew.workers() == set()
    for bad in ("n3", "n4"):
        scene.enlist[0] = refuse_on(bad)
        scene.cluster.add(bad, bad, f"{bad}:1")
        if bad == "n3":
            scene.crew.workers()
    with pytest.raises(CrewError, match="3 in a row, the last: n4: no GPU works"):
        scene.crew.workers()


def test_jobs_that_die_at_their_start_end_the_run_and_the_second_on_a_node_excludes_it(scene: Scene) -> None:
    for place, node in enumerate(("n5", "n5", "n5", "n6")):
        scene.cluster.add(f"w{place}", str(place), "")
        scene.queue[str(place)] = state(str(place), "FAILED", node=node)
        if place < 3:  # the third landed on a node that was excluded meanwhile
            scene.workers_later()
            assert scene.recruiter.excluded == ({"n5"} if place else set())
    with pytest.raises(CrewError, match=r"3 in a row, the last: job 3 ended \(FAILED\)"):
        scene.workers_later()


def test_jobs_that_wait_for_a_node_that_was_excluded_are_asked_for_anew(scene: Scene) -> None:
    for name in ("w0", "w1", "w2"):
        scene.cluster.add(name, name)
        scene.queue[name] = state(name, "FAILED" if name != "w2" else "PENDING", node="n5")
    scene.workers_later()
    assert scene.recruiter.excluded == {"n5"}
    scene.workers_later()
    assert scene.cluster.workers == {}
    scene.cluster.add("w3", "w3")
    scene.queue["w3"] = state("w3", "PENDING", node="")
    scene.workers_later()
    assert list(scene.cluster.workers) == ["w3"]


def test_the_pause_before_the_next_job_doubles_until_one_comes_to_work(scene: Scene) -> None:
    for place, pause_s in enumerate((15, 30, 60)):
        scene.cluster.add("w0", f"job {place}")
        scene.queue[f"job {place}"] = state(f"job {place}", "CANCELLED")
        scene.workers_later()
        asked = len(scene.cluster.asked)
        scene.workers_later(pause_s - 1)
        assert len(scene.cluster.asked) == asked
        scene.workers_later(2)
        assert len(scene.cluster.asked) == asked + 1


def test_a_worker_that_is_gone_is_not_what_is_too_many(scene: Scene) -> None:
    """Its job would be cancelled, and that taken for how it ended."""
    for place in range(3):
        scene.cluster.add(f"w{place}", str(place), f"n1:{place}")
        scene.queue[str(place)] = state(str(place))
    scene.cluster.add("w3", "3")
    scene.queue["3"] = state("3", "PENDING")
    scene.crew.workers()
    scene.cluster.leave("n1:0")
    scene.crew.want(2)
    scene.workers_later(2)
    assert list(scene.cluster.workers) == ["w0", "w1", "w2"]


def test_squeue_is_asked_once_for_all_that_are_gone_and_ever_less_often(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def ask(**query: Any) -> list[JobState]:
        asked.append(scene.clock[0])
        return list(scene.queue.values())

    monkeypatch.setattr("hpcenc.cluster.slurm_crew.job_states", ask)
    for place in range(4):
        scene.cluster.add(f"w{place}", str(place), f"n1:{place}")
        scene.queue[str(place)] = state(str(place))
    scene.crew.workers()
    for place in range(4):
        scene.cluster.leave(f"n1:{place}")
    for _ in range(600):
        scene.workers_later(0.5)
    assert len(asked) < 45
    assert asked[1] - asked[0] < 3
    assert {scene.crew.how_lost(f"w{place}") for place in range(4)} == {None}


def test_jobs_submitted_while_squeue_answers_are_not_taken_for_forgotten(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(**query: Any) -> list[JobState]:
        for place in range(4):
            scene.cluster.add(f"w{place}", str(30 + place))
        return []

    monkeypatch.setattr("hpcenc.cluster.slurm_crew.job_states", ask)
    scene.workers_later()
    assert len(scene.cluster.workers) == 4
    assert scene.told("worker lost") == []


REFUSAL = SlurmError(["sbatch"], 1, "Job violates accounting/QOS policy", transient=False)


def test_a_run_with_workers_asks_later_for_those_that_slurm_refuses(scene: Scene) -> None:
    scene.cluster.add("w0", "10", "n1:1")
    scene.cluster.add("w1", None, error=REFUSAL)
    scene.cluster.add("w2", None, error=REFUSAL)
    assert scene.crew.workers() == {"w0"}
    assert "QOS policy" in scene.told("slurm refuses")[0]["why"]
    asked = len(scene.cluster.asked)
    scene.queue["10"] = state("10")
    scene.workers_later(REFUSED_S - 1)
    assert len(scene.cluster.asked) == asked
    scene.workers_later(2)
    assert scene.cluster.asked[asked:] == [4]


def test_a_run_without_workers_ends_with_the_words_of_slurm(scene: Scene) -> None:
    scene.cluster.add("w0", None, error=REFUSAL)
    with pytest.raises(CrewError, match="QOS policy"):
        scene.crew.workers()


def test_nothing_is_taken_for_a_stray_while_jobs_are_being_submitted(scene: Scene) -> None:
    scene.cluster.add("w0", "10", "n1:1")
    scene.queue |= {"10": state("10"), "77": state("77")}
    scene.cluster.worker_spec["w1"] = {}  # sbatch has not answered yet
    for _ in range(3):
        scene.workers_later()
    assert scene.cancelled == []


def test_the_job_of_a_lost_worker_that_could_not_be_cancelled_is_cancelled_later(scene: Scene) -> None:
    scene.cluster.add("w0", "10", "n1:1")
    scene.crew.workers()
    scene.cluster.leave("n1:1")
    scene.queue["10"] = state("10")
    scene.workers_later(2)
    for _ in range(3):
        scene.workers_later(HUNG_S)
    assert set(scene.cancelled) == {"10"}


def test_a_job_that_nobody_knows_is_cancelled_when_seen_twice(scene: Scene) -> None:
    scene.cluster.add("w0", "10", "n1:1")
    scene.queue |= {"10": state("10"), "77": state("77"), "78": state("78", "COMPLETING")}
    scene.workers_later()
    assert scene.cancelled == []
    scene.workers_later()
    assert scene.cancelled == ["77"]


def test_workers_that_were_let_go_are_at_work_no_more(scene: Scene) -> None:
    from datetime import UTC, datetime, timedelta

    scene.cluster.add("w0", "10", "n1:1")
    scene.crew.workers()
    scene.crew.dismiss("w0")
    began = datetime(2026, 1, 1, tzinfo=UTC)
    events = [{"time": began.isoformat(), **event} for event in scene.events]
    found = account(events, began + timedelta(hours=10))
    assert found.workers == {"gpu": WorkerTime(0, 0.0, None)}
