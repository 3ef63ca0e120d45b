"""The first profile of a real SLURM."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from sandbox import Sandbox

from hpcenc.slurm.commands import run_command
from hpcenc.slurm.profiles import SlurmProfile, find_profile
from hpcenc.slurm.site import Nodes, draft_profile, read_site


@pytest.mark.usefixtures("sandbox")
def test_a_real_sinfo_is_understood() -> None:
    site = read_site(run_command)
    assert (site.cluster, site.wants_account, site.scratch) == ("sandbox", False, "/tmp")
    found = {partition.name: partition for partition in site.partitions}
    assert set(found) == {"cpu", "gpu", "high"}
    assert {name for name, partition in found.items() if partition.preempts} == {"gpu"}
    for partition in found.values():
        assert partition.is_up
        assert (partition.is_default, partition.walltime_min) == (False, None)
        assert partition.nodes == (Nodes(3, 8, 16000 << 20, {"": 2}),)


def test_a_default_partition_and_limits_are_seen(sandbox: Sandbox) -> None:
    sandbox.run("scontrol", "update", "PartitionName=high", "Default=YES", "MaxTime=1-12:00:00")
    try:
        draft = draft_profile(read_site(run_command))
    finally:
        sandbox.run("scontrol", "update", "PartitionName=high", "Default=NO", "MaxTime=UNLIMITED")
    assert draft.missing == ()
    profile = SlurmProfile.model_validate(tomllib.loads(draft.text))
    assert (profile.controller.partition, profile.controller.walltime_min) == ("high", 36 * 60)


def test_a_draft_that_is_filled_in_is_taken_by_sbatch(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = draft_profile(read_site(run_command))
    assert draft.missing == (
        "partition: expected one that is never preempted; choose from: cpu, high",
        "partition: expected one for work without GPUs; choose from: cpu, gpu, high",
        "partition: expected one with GPUs; choose from: cpu, gpu, high",
    )
    text = draft.text
    for mark, name in zip(draft.missing, ("cpu", "cpu", "gpu"), strict=True):
        text = text.replace(f"# FIX: {mark}", f'partition = "{name}"')
    monkeypatch.setenv("HPCENC_PROFILES", str(tmp_path))
    (tmp_path / "sandbox.toml").write_text(text)
    profile = find_profile("sandbox")
    assert profile.gpu is not None
    for jobs in (profile.controller, profile.cpu, profile.gpu):
        sandbox.run(
            "sbatch", "--test-only", f"--partition={jobs.partition}", f"--time={jobs.walltime_min}",
            f"--cpus-per-task={jobs.cores}", f"--mem={jobs.memory_bytes >> 20}M",
            *([profile.gpu.gpu_request] if jobs is profile.gpu else []), "--wrap=true",
        )  # fmt: skip
