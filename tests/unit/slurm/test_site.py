"""What sinfo and scontrol said on real clusters, names changed, stands for SLURM."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from hpcenc.slurm.profiles import ProfileError, SlurmProfile, find_profile
from hpcenc.slurm.site import Nodes, Partition, Site, draft_profile, parse_gpus, read_site

CONFIG = """\
Configuration data as of 2026-01-01T00:00:00
AccountingStorageEnforce = {enforce}
ClusterName             = comet
PreemptMode             = REQUEUE
PreemptType             = {preempt}
TmpFS                   = /local/scratch
"""

CLEAR = """\
batch*|up|7-00:00:00|OFF|100|64|257000|(null)
gpu|up|2-00:00:00|OFF|10|48|510000|gpu:a100:4(S:0-1),nvme:1
gpu|up|2-00:00:00|OFF|4|32|192000|gpu:v100:2(S:0)
old|drain|infinite|OFF|3|16|64000|gpu:4
"""

SEVERAL = """\
short|up|4:00:00|OFF|100|64|257000|(null)
long|up|infinite|OFF|100|64|257000|(null)
spare|up|1-00:00:00|REQUEUE|100|64|257000|(null)
gpu-a|up|2-00:00:00|OFF|10|48|510000|gpu:4
gpu-b|up|1:00:00|OFF|10|16|64000|gpu:8
"""


def site(sinfo: str, enforce: str = "none", preempt: str = "preempt/partition_prio") -> Site:
    def ask(command: Sequence[str]) -> str:
        return sinfo if command[0] == "sinfo" else CONFIG.format(enforce=enforce, preempt=preempt)

    return read_site(ask)


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", {}),
        ("gpu:2", {"": 2}),
        ("gpu", {"": 1}),
        ("gpu:a100:4(S:0,1),nvme:1", {"a100": 4}),
        ("lscratch:800,gpu:a100:1,gpu:a100_1g.5gb:14", {"a100": 1, "a100_1g.5gb": 14}),
    ],
)
def test_gpus_are_read_by_type(gres: str, gpus: dict[str, int]) -> None:
    assert parse_gpus(gres) == gpus


def test_a_site_is_read_with_its_limits() -> None:
    found = site(CLEAR, "associations,limits")
    assert (found.cluster, found.wants_account, found.scratch) == ("comet", True, "/local/scratch")
    batch, gpu, old = found.partitions
    assert batch == Partition("batch", True, True, 7 * 24 * 60, False, (Nodes(100, 64, 257000 << 20, {}),))
    assert (gpu.gpu_types, len(gpu.nodes)) == (("a100", "v100"), 2)
    assert (old.is_up, old.walltime_min) == (False, None)


def test_what_preempts_is_told_by_the_cluster_and_the_partition() -> None:
    assert [found.preempts for found in site(SEVERAL).partitions] == [False, False, True, False, False]
    assert not any(found.preempts for found in site(SEVERAL, preempt="preempt/none").partitions)


def test_where_the_choice_is_clear_the_draft_is_a_profile() -> None:
    draft = draft_profile(site(CLEAR))
    assert draft.missing == ()
    profile = SlurmProfile.model_validate(tomllib.loads(draft.text))
    assert (profile.controller.partition, profile.controller.walltime_min) == ("batch", 7 * 24 * 60)
    assert (profile.cpu.partition, profile.cpu.cores, profile.cpu.memory_bytes) == ("batch", 4, 15 << 30)
    assert profile.gpu is not None
    assert (profile.gpu.partition, profile.gpu.gpu_request) == ("gpu", "--gres=gpu:1")
    assert (profile.gpu.cores, profile.gpu.memory_bytes, profile.gpu.walltime_min) == (8, 32 << 30, 240)
    assert (profile.scratch, profile.prologue) == ("/local/scratch", ())
    assert "--gres=gpu:a100:1, --gres=gpu:v100:1" in draft.text
    assert "#   old: no limit, not up, 3 nodes of 16 cores + 62G + 4 GPUs" in draft.text


def test_a_site_without_gpus_has_no_gpu_workers() -> None:
    draft = draft_profile(site(CLEAR.splitlines()[0]))
    assert draft.missing == ()
    assert SlurmProfile.model_validate(tomllib.loads(draft.text)).gpu is None


def test_what_cannot_be_known_is_marked_and_the_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = draft_profile(site(SEVERAL, enforce="associations"))
    account = "account: expected yours; sacctmgr show associations user=$USER lists them"
    assert draft.missing == (
        "partition: expected one that is never preempted; choose from: short, long",
        account,
        "partition: expected one for work without GPUs; choose from: short, long, spare",
        account,
        "partition: expected one with GPUs; choose from: gpu-a, gpu-b",
        account,
    )
    monkeypatch.setenv("HPCENC_PROFILES", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    (tmp_path / "x.toml").write_text(draft.text)
    with pytest.raises(ProfileError) as refused:
        find_profile("x")
    assert len(refused.value.problems) == 6
    for role in ("controller", "cpu", "gpu"):
        assert f"{tmp_path}/x.toml: {role}.partition: required, but absent" in refused.value.problems
    tables = tomllib.loads(draft.text)  # limits hold wherever the choice falls
    assert (tables["controller"]["walltime"], tables["gpu"]["walltime"]) == ("04:00:00", "01:00:00")
    assert (tables["gpu"]["cores"], tables["gpu"]["memory"]) == (2, "7G")


def test_a_cluster_with_nothing_up_still_has_a_draft() -> None:
    draft = draft_profile(site(""))
    assert len(draft.missing) == 2
    assert "none that is up was found" in draft.missing[0]
