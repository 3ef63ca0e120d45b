from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcenc.slurm import commands
from hpcenc.slurm.commands import SlurmError, run_command

Fake = Callable[..., Callable[[], list[list[str]]]]

TIMED_OUT = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation\n"
DOWN = "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n"
NO_GPUS = "sbatch: error: Batch job submission failed: Requested node configuration is not available\n"


def test_a_command_that_slurm_refuses_fails_at_once_with_slurms_words(
    fake: Fake, no_pause: list[float]
) -> None:
    calls = fake("sbatch", ("", NO_GPUS, 1))
    with pytest.raises(SlurmError, match="Requested node configuration is not available") as caught:
        run_command(["sbatch", "--gres=gpu:99"])
    error = caught.value
    assert (error.command, error.exit_status, error.transient) == (("sbatch", "--gres=gpu:99"), 1, False)
    assert len(calls()) == 1
    assert no_pause == []


@pytest.mark.parametrize("words", [TIMED_OUT, DOWN])
def test_a_command_is_tried_again_until_slurm_answers(fake: Fake, no_pause: list[float], words: str) -> None:
    calls = fake("squeue", ("", words, 1), ("", words, 1), ("answer\n", "", 0))
    assert run_command(["squeue"]) == "answer\n"
    assert len(calls()) == 3
    assert no_pause == [1, 2]


def test_patience_ends(fake: Fake, no_pause: list[float]) -> None:
    calls = fake("squeue", ("", DOWN, 1))
    with pytest.raises(SlurmError, match="could not be reached; try again later") as caught:
        run_command(["squeue"], patience_s=0)
    assert caught.value.transient
    assert len(calls()) == 1


def test_no_answer_in_time_is_transient(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake("squeue", ("", "", 124))
    monkeypatch.setattr(commands, "TIMEOUT_S", 0.3)
    with pytest.raises(SlurmError, match="no answer") as caught:
        run_command(["squeue"], patience_s=0)
    assert caught.value.transient


def test_a_machine_without_slurm_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match=r"sbatch: not found on PATH\. Is this a login node"):
        run_command(["sbatch"])


def test_a_login_shells_settings_of_slurm_do_not_reach_its_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = {"SBATCH_PARTITION", "SQUEUE_STATES", "SACCT_FORMAT", "SLURM_CLUSTERS"}
    for name in hidden:
        monkeypatch.setenv(name, "users")
    monkeypatch.setenv("SLURM_CONF", "/etc/other.conf")
    show = ["python3", "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
    found = json.loads(run_command(show))
    assert hidden.isdisjoint(found)
    kept = ("SLURM_CONF", "SLURM_TIME_FORMAT", "LC_ALL")
    assert [found[name] for name in kept] == ["/etc/other.conf", "%s", "C"]
