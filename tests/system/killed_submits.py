"""A program that submits studies in forked children, each killed at a moment that the caller chooses.

It imports everything once, torch too, which takes seconds. That is safe as long as no thread runs when it
forks (a child would wait for ever for what a thread held), so that only children build models and compute.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import hpcenc.storage.weights
import hpcenc.tasks.gram
import hpcenc.tasks.models.loading
import hpcenc.tasks.movies
import hpcenc.tasks.operators
import hpcenc.tasks.ridge  # noqa: F401  (loaded once, for all children)
from hpcenc.cluster.submit import prepare, submit


def _serve() -> None:
    """Run every job of the input in a forked child, and print how each ended."""
    assert len(os.listdir("/proc/self/task")) == 1, "a library has started a thread"
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                _run(json.loads(line))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)  # it should have been killed
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _run(job: dict[str, Any]) -> None:
    """Submit a study; killed where the job says, or else where the report begins."""
    touches = touches_to_mark = 0
    prepared = prepare(Path(job["study"]), job["models"])
    results = str(prepared.study.store_path.parent)

    def touch(event: str, args: tuple[Any, ...]) -> None:
        nonlocal touches, touches_to_mark
        if event not in ("open", "os.rename", "os.mkdir", "os.link", "os.remove"):
            return
        path = args[0] if isinstance(args[0], str | os.PathLike) else ""
        if not str(path).startswith(results):
            return
        is_like = re.search(job.get("pattern", ""), str(path)) is not None
        touches += is_like
        if event == "os.rename" and re.search(r"/done/\d+$", str(args[1])):
            touches_to_mark = touches
        if not is_like:
            return
        if touches != job.get("nth"):
            return
        if job["how"] == "half":
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    def end_before_report(event: dict[str, Any]) -> None:
        if event.get("stage") == "report":
            if "count" in job:
                Path(job["count"]).write_text(str(touches_to_mark))
            os.kill(os.getpid(), signal.SIGKILL)

    # The kernel ends a process that writes more than it may, in the middle of the file.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    sys.addaudithook(touch)
    submit(prepared, "serial", (), end_before_report)


if __name__ == "__main__":
    _serve()
