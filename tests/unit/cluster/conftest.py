"""Runs of a site, as a submit leaves them for their first job."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hpcenc.cluster.run_folder import RunFolder
from hpcenc.cluster.submit import Prepared, run_settings
from hpcenc.storage.study import Study, parse_study


@pytest.fixture
def begin_run() -> Any:
    """``begin_run(prepared, tables)``: the folder of run ``abcdefgh`` with the tables of a site's profile."""

    def begin(prepared: Prepared, site: Mapping[str, Any]) -> RunFolder:
        settings = {
            **run_settings(prepared, "serial", []),
            "site": site,
            "study_folder": str(prepared.study.folder),
            "models": prepared.models,
            "layers": prepared.layers,
        }
        return RunFolder.create(prepared.study.store_path, "abcdefgh", prepared.plan, settings)

    return begin


@pytest.fixture
def study(tmp_path: Path) -> Study:
    data = {
        "name": "x",
        "tr_s": 1.0,
        "runs": [{"name": run, "n_trs": 40} for run in "ABC"],
        "subjects": {"ids": ["s1"]},
        "bold": {"path": "{subject}/{run}.npy"},
        "feature_files": {"mylab": {"path": "{run}.npy"}},
    }
    return parse_study(data, tmp_path)


SLURM = """\
import json, sys
from pathlib import Path
verb, options = Path(sys.argv[0]).name, dict(part.partition("=")[::2] for part in sys.argv[1:])
path = Path(sys.argv[0]).parent / "jobs.json"
jobs = json.loads(path.read_text())
with (path.parent / "calls").open("a") as calls:
    print(verb, *sys.argv[1:], file=calls)
away = path.parent / "away"
if n_times := int(away.read_text() if away.exists() else 0):
    away.write_text(str(n_times - 1))
    sys.exit("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
if verb == "squeue":
    ids = sys.argv[sys.argv.index("--jobs") + 1].split(",") if "--jobs" in options else []
    found = [job for job in jobs if options.get("--name") == job["name"] or job["id"] in ids]
    if "--format=%T" in sys.argv:
        print(*(job["state"] for job in found if job["state"] != "CANCELLED"), sep="\\n")
    elif "--format" in options:
        for job in found:
            print(job["id"], job["name"], job["state"], "None|n1|1795000000|1795000010|1795003610|", sep="|")
    else:
        print(*(f"{job['state']} 0" for job in found))
elif verb == "scancel":
    for job in jobs:
        if options.get("--name") == job["name"] and job["user"] == "me":
            job["state"] = "CANCELLED"
    path.write_text(json.dumps(jobs))
"""


class Queue:
    """Jobs that stand-ins of SLURM's commands know: scancel ends those of this user at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "jobs.json").write_text("[]")
        for verb in ("squeue", "scancel", "scontrol"):
            (folder / verb).write_text(f"#!{sys.executable}\n{SLURM}")
            (folder / verb).chmod(0o755)

    def add(self, job_id: str, name: str, state: str = "RUNNING", user: str = "me") -> None:
        jobs = [*self._jobs(), {"id": job_id, "name": name, "state": state, "user": user}]
        (self._folder / "jobs.json").write_text(json.dumps(jobs))

    def goes_away(self, times: int) -> None:
        """Let the next calls fail."""
        (self._folder / "away").write_text(str(times))

    def states(self) -> dict[str, str]:
        return {job["id"]: job["state"] for job in self._jobs()}

    def calls(self, verb: str) -> list[str]:
        """Arguments of the calls of a command so far."""
        path = self._folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.partition(" ")[2] for line in lines if line.split()[0] == verb]

    def _jobs(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = json.loads((self._folder / "jobs.json").read_text())
        return found


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Queue:
    folder = tmp_path / "slurm"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return Queue(folder)
