"""Job scripts: requests as arguments of sbatch, and a script in which everything is quoted.

sbatch reads its options from the command line, never from ``#SBATCH`` lines, which take blanks and ``;`` for
something else than a part of a name.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

RUN_ID = re.compile(r"[a-z0-9]{8}")
LOG_NAME = "logs/%x-%j.log"
"""Of a job's output, in its run folder: name and id of the job."""
MEMBER_LOG_NAME = "logs/%x-%A_%a.log"
"""Of that of a member of a job array: its id as SLURM shows it."""


class RequestError(ValueError):
    """A job cannot be asked for like this."""


CACHES = {
    "CUDA_CACHE_PATH": "cuda",
    "CUPY_CACHE_DIR": "cupy",
    "MPLCONFIGDIR": "matplotlib",
    "NUMBA_CACHE_DIR": "numba",
    "PYTORCH_KERNEL_CACHE_PATH": "torch-kernels",
    "TORCHINDUCTOR_CACHE_DIR": "torch",
    "TRITON_CACHE_DIR": "triton",
    "XDG_CACHE_HOME": "other",
}
"""Folders that libraries fill as they run. Homes are small and shared, and slow for many workers at once."""

OWN_SCRATCH = """\
mkdir -p "$node_scratch"/
mkdir -m 700 "$scratch" 2> /dev/null || :  # a job that starts again may find that of its last time
found="$(stat -c '%u %A' "$scratch" 2> /dev/null)" || found="no folder"
if [[ "$found" != "$(id -u) drwx--"[-S]"---" ]]; then
    echo "hpcenc: $scratch: expected a folder of user $(id -u) alone (drwx------), found $found." \
        "Remove it, or set another scratch in the profile." >&2
    exit 1
fi
trap 'rm -rf "$scratch"' EXIT"""
"""Makes the folder of this job, which nobody else may have made before: code is read from it."""

WAIT_FOR_COMMAND = """\
child=$!
trap 'was_told=1; kill -USR1 "$child" 2> /dev/null || :' USR1
trap 'was_told=1; (sleep 3; rm -rf "$scratch") &' TERM
while
    was_told= status=0
    wait "$child" || status=$?
    [ "$was_told" ]
do :; done
exit "$status\""""
"""Waits for the command, to clean up after it. SLURM sends USR1 to the script alone, TERM to all processes of
the job: the script only outlives it, for with the script's end SLURM would kill the command. One that is busy
does not end by TERM, and SLURM kills them both some seconds later: the folder goes before."""


@dataclass(frozen=True)
class JobRequest:
    """What a job asks SLURM for.

    Attributes
    ----------
    name : str
        ``[A-Za-z0-9._-]+``: it is a part of log names, and jobs are found by it.
    folder : Path
        The run folder, in which the job starts; its ``logs`` must exist.
    walltime_min : int
    cores : int
    memory_mb : int
    requeue : bool
        Whether SLURM starts it again after its node failed or a job of higher priority took its place.
    signal_s : int, optional
        The job's script gets USR1 so many seconds before its walltime, or when it is preempted.
    partition, account, qos, constraint, exclude : str
        None is asked for if empty.
    gpu_request : str
        As the site wants it: ``--gres=gpu:1``, ``--gpus=a100:1`` and their like.
    extra : tuple of str
        Further options, each one argument of sbatch.
    n_members : int
        Jobs of an array; 0 for a single job.
    after : str
        What must have ended before it starts, such as ``afterok:12``; it is cancelled if that cannot be.
    """

    name: str
    folder: Path
    walltime_min: int
    cores: int
    memory_mb: int
    requeue: bool = False
    signal_s: int | None = None
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    exclude: str = ""
    gpu_request: str = ""
    extra: tuple[str, ...] = ()
    n_members: int = 0
    after: str = ""


def controller_name(run_id: str) -> str:
    """Name of a run's controller job."""
    return f"hpcenc-{_checked_id(run_id)}"


def worker_name(run_id: str) -> str:
    """Name of all worker jobs of a run."""
    return f"hpcenc-w-{_checked_id(run_id)}"


def job_names(run_id: str) -> tuple[str, str]:
    """Names of all jobs of a run, the controller's first."""
    return controller_name(run_id), worker_name(run_id)


def sbatch_options(request: JobRequest) -> list[str]:
    """Arguments of sbatch.

    Raises
    ------
    RequestError
        If a text holds what SLURM cannot take: names the field.
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]+", request.name):
        raise RequestError(f"job name {request.name!r}: expected letters, digits, '.', '_' and '-'")
    log_name = MEMBER_LOG_NAME if request.n_members else LOG_NAME
    options = [
        f"--job-name={request.name}",
        f"--chdir={checked_folder(request.folder)}",
        # Relative to the folder it would be the same, but a `%j` in the folder's own name would be replaced.
        f"--output={str(request.folder).replace('%', '%%')}/{log_name}",
        "--open-mode=append",  # a requeued job goes on in its log
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={request.cores}",
        f"--mem={request.memory_mb}M",
        f"--time={request.walltime_min}",
        "--requeue" if request.requeue else "--no-requeue",
        "--export=ALL",
    ]
    if request.n_members:
        options.append(f"--array=0-{request.n_members - 1}")
    if request.after:
        options += [f"--dependency={one_line_text('after', request.after)}", "--kill-on-invalid-dep=yes"]
    if request.signal_s is not None:
        options.append(f"--signal=B:USR1@{request.signal_s}")
    for field in ("partition", "account", "qos", "constraint", "exclude"):
        if text := getattr(request, field):
            options.append(f"--{field}={one_line_text(field, text)}")
    further = [request.gpu_request] if request.gpu_request else []
    for text in [*further, *request.extra]:
        if not text.startswith("-"):
            raise RequestError(f"{text!r}: expected an option of sbatch, such as --gres=gpu:1")
        options.append(one_line_text("option", text))
    return options


def render_script(
    command: Sequence[str],
    *,
    walltime_min: int,
    prologue: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    scratch: str = "/tmp",
    cache: str | None = None,
    umask: int | None = None,
) -> str:
    """A job script that runs a command, hands SLURM's signals on to it, and ends as it does.

    Parameters
    ----------
    command : sequence of str
        Quoted, whatever it holds.
    walltime_min : int
        Of the job: older versions of SLURM do not tell it when it will end.
    prologue : sequence of str
        The site's own lines of shell, such as ``module load cuda``: the only code here that is not hpcenc's.
    variables : mapping of str to str
        Set for the command, as they are.
    scratch : str
        Folder of the node for temporary files, and for caches if they have no other; variables are expanded
        by the node's shell, all else is quoted. The job has a folder of its own there, which goes with it.
    cache : str, optional
        Folder for caches that later jobs use again.
    umask : int, optional
        Of all files that the command makes.

    Raises
    ------
    RequestError
        For a text with a NUL, or that is no UTF-8, or a variable that is none.
    """
    for name in variables or {}:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise RequestError(f"{name!r} is no name of a variable")
    settings = {"PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1", **(variables or {})}
    texts = [*command, *settings.values()]
    for text in texts:
        if "\0" in text or not _is_utf8(text):
            raise RequestError(f"{text!r}: a job's script cannot hold a NUL, nor a name that is not UTF-8")
    kept = '"$scratch"' if cache is None else _expanded("cache", cache)
    lines = [
        "#!/bin/bash",
        f': "${{SLURM_JOB_END_TIME:=$(($(date +%s) + {60 * walltime_min}))}}"',
        "export SLURM_JOB_END_TIME",
        *prologue,
        "set -eu",  # from here on: a prologue may have unset variables
        f"node_scratch={_expanded('scratch', scratch)}",
        'scratch="$node_scratch/hpcenc-$(id -u)-$SLURM_JOB_ID"',
        OWN_SCRATCH,
        *([] if umask is None else [f"umask {umask:03o}"]),
        *(f"export {name}={kept}/{folder}" for name, folder in CACHES.items()),
        " ".join(["mkdir -p", *(f'"${name}"' for name in CACHES), "|| :  # who finds none does without"]),
        'export DASK_TEMPORARY_DIRECTORY="$scratch"/dask',
        # Of the places that Dask reads settings from, the one where dask-jobqueue puts a copy of its own.
        'export DASK_CONFIG="$scratch"/dask-settings',
        *(f"export {name}={shlex.quote(value)}" for name, value in settings.items()),
        f"{shlex.join(command)} &",
        WAIT_FOR_COMMAND,
    ]
    return "\n".join([*lines, ""])


def one_line_text(what: str, text: str) -> str:
    """A text that SLURM can take as a part of one argument.

    Raises
    ------
    RequestError
        If it holds a control character.
    """
    if any(ord(character) < 32 or ord(character) == 127 for character in text):
        raise RequestError(
            f"{what} {text!r}: line breaks and other control characters cannot be given to SLURM"
        )
    return text


def checked_folder(folder: Path) -> str:
    """A folder that jobs can start in and keep their logs in.

    Raises
    ------
    RequestError
        If its name holds a line break, a backslash or the like, or is no UTF-8.
    """
    if "\\" in str(folder):  # it would end all replacements in the log's name
        raise RequestError(
            f"run folder {str(folder)!r}: SLURM cannot keep logs in a folder with a backslash; rename it"
        )
    if not _is_utf8(str(folder)):
        raise RequestError(f"run folder {str(folder)!r}: its name is not UTF-8, which jobs need; rename it")
    return one_line_text("run folder", str(folder))


def _is_utf8(text: str) -> bool:
    """Whether a text, which may be a file's name, can be written as UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _expanded(what: str, text: str) -> str:
    """A text in double quotes, in which only variables are expanded."""
    one_line_text(what, text)
    if "$(" in text or "`" in text:
        raise RequestError(
            f"{what} {text!r}: expected a folder; variables such as $TMPDIR may be in it, no commands"
        )
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _checked_id(run_id: str) -> str:
    if not RUN_ID.fullmatch(run_id):
        raise ValueError(f"run id {run_id!r}: expected eight of a-z and 0-9")
    return run_id
