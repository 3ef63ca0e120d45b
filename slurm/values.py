"""Values of a site profile: SLURM's own forms of times and sizes, and texts that may stand in a job."""

from __future__ import annotations

import re
from collections.abc import Callable, Container

_NAME = r"[A-Za-z0-9_][A-Za-z0-9_.+@-]*"
_VALUE = r"[A-Za-z0-9_.,:/+=@*\[\]-]+"
_UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}

_TIME_FORMS = (
    r"(?P<minutes>\d+)(:(?P<seconds>\d+))?",
    r"(?P<hours>\d+):(?P<minutes>\d+):(?P<seconds>\d+)",
    r"(?P<days>\d+)-(?P<hours>\d+)(:(?P<minutes>\d+)(:(?P<seconds>\d+))?)?",
)
_SECONDS_OF = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}

_VARIABLE = re.compile(r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\})")

_KEY_OF = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "time": "walltime",
    "cpus-per-task": "cores",
    "mem": "memory",
    "mem-per-cpu": "memory",
    "mem-per-gpu": "memory",
    "constraint": "constraint",
    "exclude": "exclude",
    "gpus": "gpu_request",
    "gpus-per-node": "gpu_request",
    "gpus-per-task": "gpu_request",
}
"""Options of sbatch that have a key of their own."""

_OURS = (
    "array", "bcast", "begin", "chdir", "clusters", "container", "container-image", "dependency", "error",
    "export", "export-file", "get-user-env", "hold", "input", "job-name", "kill-on-invalid-dep", "nodes",
    "no-requeue", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable", "quiet", "requeue",
    "signal", "test-only", "time-min", "wait", "wrap",
)  # fmt: skip
"""Options that hpcenc sets itself, or that would change which code a job runs, or where it is looked for."""


def parse_walltime(value: object) -> int:
    """Minutes of a walltime, rounded up as SLURM does.

    Parameters
    ----------
    value : int or str
        Minutes, or one of SLURM's forms: ``mm``, ``mm:ss``, ``hh:mm:ss``, ``d-hh``, ``d-hh:mm``,
        ``d-hh:mm:ss``.

    Raises
    ------
    ValueError
        For anything else, none and unlimited time among them: the plan needs a limit.
    """
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    for form in _TIME_FORMS:
        if found := re.fullmatch(form, text, re.ASCII):
            seconds = sum(_SECONDS_OF[unit] * int(n) for unit, n in found.groupdict().items() if n)
            if seconds:
                return -(-seconds // 60)
    raise ValueError("expected minutes, or a time such as '04:00:00' or '1-12:00:00'")


def walltime_text(minutes: int) -> str:
    """Minutes as SLURM writes them."""
    days, left = divmod(minutes, 24 * 60)
    clock = f"{left // 60:02}:{left % 60:02}:00"
    return f"{days}-{clock}" if days else clock


def parse_memory(value: object) -> int:
    """Bytes of a size such as ``"16G"``; units are SLURM's, in powers of 1024.

    Raises
    ------
    ValueError
        For anything else: a number without a unit, and 0, which is a whole node to SLURM.
    """
    found = re.fullmatch(r"(\d+)([KMGT])B?", value, re.ASCII) if isinstance(value, str) else None
    if not found or not int(found[1]):
        raise ValueError("expected a size with its unit, such as '16G' or '500M'")
    return int(found[1]) * _UNITS[found[2]]


def memory_text(n_bytes: int) -> str:
    """Bytes in whole gigabytes, or megabytes where they are few; rounded down."""
    return f"{n_bytes >> 30}G" if n_bytes >> 30 else f"{n_bytes >> 20}M"


def parse_umask(value: object) -> int:
    """A umask of octal digits such as ``"027"``."""
    if not isinstance(value, str) or not re.fullmatch(r"0?[0-7]{3}", value, re.ASCII):
        raise ValueError("expected a text of octal digits, such as '027'")
    return int(value, 8)


def parse_ports(value: object) -> tuple[int, int]:
    """First and last port of a range such as ``"40000-40100"``."""
    found = re.fullmatch(r"(\d+)-(\d+)", value, re.ASCII) if isinstance(value, str) else None
    if not found or not 1024 <= int(found[1]) <= int(found[2]) <= 65535:
        raise ValueError("expected a range of ports from 1024 to 65535, such as '40000-40100'")
    return int(found[1]), int(found[2])


def _text(pattern: str, expected: str) -> Callable[[str], str]:
    """Check that a text is of a form; the message says which one was expected."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"expected {expected}")
        return text

    return check


check_name = _text(_NAME, "a name that SLURM knows: letters, digits and _ . + @ -")
check_partitions = _text(
    rf"{_NAME}(,{_NAME})*", "a partition, or several joined by commas: letters, digits and _ . + @ -"
)
check_constraint = _text(
    r"[A-Za-z0-9_.,:=*&|()\[\]@+-]+", "features of nodes, such as 'a100' or 'a100|h100', without blanks"
)
check_nodes = _text(r"[A-Za-z0-9_][A-Za-z0-9_.,\[\]-]*", "a list of nodes, such as 'n01,gpu[3-5]'")
check_gpu_request = _text(
    rf"--(gres|gpus|(gpus|tres)-per-[a-z]+)={_VALUE}",
    "one option of sbatch for one GPU, such as '--gres=gpu:1' or '--gpus=1'",
)
check_interface = _text(r"[A-Za-z0-9][A-Za-z0-9_.:@-]*", "a network interface, such as 'ib0'")
check_line = _text(r"[^\x00-\x08\x0a-\x1f\x7f]*\S[^\x00-\x08\x0a-\x1f\x7f]*", "one line of shell")


def check_directive(text: str, allowed: Container[str] = ()) -> str:
    """An option of sbatch that has no key of its own and that hpcenc leaves alone, or that is allowed."""
    if not (found := re.fullmatch(rf"--([a-z][a-z-]*)(={_VALUE})?", text)):
        raise ValueError("expected an option of sbatch, such as '--mail-type=FAIL', without blanks or quotes")
    for option in (*_KEY_OF, *_OURS):
        if (
            option.startswith(found[1]) and found[1] not in allowed
        ):  # sbatch takes the beginning of an option for the whole
            whose = f"it is the key {_KEY_OF[option]!r}" if option in _KEY_OF else "hpcenc sets it itself"
            raise ValueError(f"expected no --{option} here: {whose}")
    return text


def check_folder(text: str) -> str:
    """An absolute folder, in which variables may stand, as in ``/scratch/$USER/$SLURM_JOB_ID``."""
    # A variable stands for an absolute path, or for a name in one.
    plain = _VARIABLE.sub(lambda found: "x" if found.start() else "/x", text)
    if not re.fullmatch(r"/[A-Za-z0-9_.,:+@/ -]*", plain) or ".." in text.split("/"):
        raise ValueError("expected an absolute folder, in which only variables such as $TMPDIR are expanded")
    return text
