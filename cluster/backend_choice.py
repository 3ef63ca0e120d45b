"""Which backend the fits of a run use: chosen once, since it is part of their digest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

from hpcenc.cluster.executors import workers_and_threads
from hpcenc.cluster.granted import memory_bytes, n_cores
from hpcenc.cluster.run_folder import RunFolder
from hpcenc.cluster.threads import THREAD_VARIABLES
from hpcenc.storage.errors import StudyError
from hpcenc.storage.study import Study
from hpcenc.tasks.backends import ON_DEVICES, BackendChoice, describe_backend

_ASK = (
    "import json, sys; from hpcenc.tasks import backends; "
    "print(json.dumps(getattr(backends, sys.argv[1])(*sys.argv[2:])))"
)


def choose_backend(study: Study) -> BackendChoice:
    """The backend that a study names, or what its ``auto`` stands for.

    ``auto`` keeps to what the store's latest run chose, as long as that works: two libraries that are
    equally fast would else take turns, and each turn would fit everything again. This process imports no
    torch and holds no device; what must be tried is tried in a child.

    Raises
    ------
    StudyError
        If nothing could be measured, or the study asks for TF32 where there is none.
    """
    choice = _choose(study)
    if study.fit.tf32 and choice.name not in ON_DEVICES:
        raise StudyError(_no_tf32(choice))
    return choice


def _no_tf32(choice: BackendChoice) -> str:
    return (
        f"fit.tf32: needs a CUDA device, and the fits are on {choice.name!r} ({choice.how}). "
        f'Leave it out, or set fit.backend to "{ON_DEVICES[0]}".'
    )


def _choose(study: Study) -> BackendChoice:
    if study.fit.backend != "auto":
        return BackendChoice(study.fit.backend, "named in the study")
    recorded = _recorded(study)
    if recorded is not None and _opens(study, recorded.name):
        return recorded
    return BackendChoice(*_ask(study, "fastest_backend"))


def choose_cluster_backend(study: Study, has_gpus: bool) -> BackendChoice:
    """The same where the fits run on other machines than this one: nothing can be tried here.

    What the latest run chose counts only if it is for such workers: fits on CPUs would keep GPUs idle.

    Parameters
    ----------
    study : Study
    has_gpus : bool
        Whether workers have GPUs: each tries the backend before its first task.
    """
    recorded = _recorded(study)
    if study.fit.backend != "auto":
        choice = BackendChoice(study.fit.backend, "named in the study")
    elif recorded is not None and (recorded.name in ON_DEVICES) == has_gpus:
        choice = recorded
    elif has_gpus:
        name = next((name for name in ON_DEVICES if find_spec(name.partition("-")[0])), ON_DEVICES[-1])
        choice = BackendChoice(name, "auto: workers have GPUs")
    else:
        choice = BackendChoice("numpy", "auto: workers have no GPUs")
    if study.fit.tf32 and choice.name not in ON_DEVICES:
        raise StudyError(_no_tf32(choice))
    return choice


def try_backend(study: Study, name: str) -> dict[str, str]:
    """Device, versions and TF32 state of a backend on this machine, which is about to use it.

    Raises
    ------
    StudyError
        If it does not work here.
    """
    if name == "numpy":
        return describe_backend(name)  # not worth a child
    described: dict[str, str] = _ask(study, "describe_backend", name)
    return described


def _recorded(study: Study) -> BackendChoice | None:
    """What the latest run chose, if it had the choice."""
    latest = RunFolder.latest(study.store_path)
    if latest is None:
        return None
    run = latest.read("run")
    if run["study"]["fit"]["backend"] != "auto" or "backend_choice" not in run:
        return None
    return BackendChoice(run["backend"], run["backend_choice"])


def _opens(study: Study, name: str) -> bool:
    if name in ("numpy", "torch"):
        return find_spec(name) is not None  # on a CPU they work where they are installed
    try:
        try_backend(study, name)
    except StudyError:
        return False
    return True


def _ask(study: Study, function: str, *arguments: str) -> Any:
    """What a function of `hpcenc.tasks.backends` returns in a child process, on the threads of a worker."""
    settings = study.cluster
    _, n_threads = workers_and_threads(settings.profile, settings, n_cores(), memory_bytes())
    done = subprocess.run(
        [sys.executable, "-P", "-c", _ASK, function, *arguments],
        env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(n_threads))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        error = done.stderr.strip().rpartition("\n")[2].partition(": ")[2]
        raise StudyError(f"fit.backend: {error or f'a process ended with {done.returncode}'}")
    return json.loads(done.stdout.splitlines()[-1])
