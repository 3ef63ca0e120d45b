"""The commands that plan a study and have it computed: here, or by the jobs of a SLURM site."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from hpcenc.cli import runs
from hpcenc.cli.arguments import STUDY_NAME, JsonOption, LayersOption, ModelsOption, StudyFile, SubjectsOption
from hpcenc.cli.refusal import clear_errors, notes_of, refuse, say

if TYPE_CHECKING:
    from hpcenc.cluster.batch import Submitted, Way
    from hpcenc.cluster.submit import Prepared, Result

ProfileOption = Annotated[
    str | None,
    typer.Option(
        "--profile",
        help="local (worker processes here), serial (this process only) or one of `hpcenc profile list`.",
    ),
]


def check(
    study: StudyFile = STUDY_NAME,
    models: ModelsOption = "all",
    layers: LayersOption = "default",
    subjects: SubjectsOption = "all",
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at everything a study names, and say what a submit would do. Writes no results."""
    from hpcenc.cluster.submit import prepare

    with clear_errors():
        _print_plan(prepare(study, models, layers, subjects, profile), as_json)


def submit(
    study: StudyFile = STUDY_NAME,
    models: ModelsOption = "all",
    layers: LayersOption = "default",
    subjects: SubjectsOption = "all",
    profile: ProfileOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    controller: Annotated[
        str,
        typer.Option(
            "--controller", help="On SLURM: job, or here (this process; where nodes may not submit jobs)."
        ),
    ] = "job",
    array: Annotated[
        bool,
        typer.Option(
            "--array", help="On SLURM: job arrays in place of a controller, for nodes that cannot talk."
        ),
    ] = False,
    print_script: Annotated[
        bool, typer.Option("--print-script", help="On SLURM: only print the job scripts and their requests.")
    ] = False,
    sbatch_arg: Annotated[
        list[str] | None,
        typer.Option(
            "--sbatch-arg", help="One more option of sbatch for the controller's job, such as --begin=20:00."
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="On SLURM: return when the run has ended.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compute what is not done yet, and write the report. Again the same command resumes.

    With the profile of a SLURM site a job does it, and this returns at once. Exit status: 0 done (or
    submitted), 1 something failed or was set aside, 2 wrong usage or input, 3 interrupted and resumable.
    """
    if controller not in ("job", "here"):
        refuse(f"--controller: expected job or here, found {controller!r}")
    if array and controller == "here":
        refuse("--array: a chain of job arrays has no controller; leave out --controller here")
    from hpcenc.cluster.submit import prepare
    from hpcenc.slurm.profiles import HERE
    from hpcenc.slurm.values import check_directive

    for argument in sbatch_arg or ():
        try:
            check_directive(argument, allowed=("begin",))
        except ValueError as error:
            refuse(f"--sbatch-arg {argument}: {error}")

    way: Way = "array" if array else "here" if controller == "here" else "job"
    for_slurm = {
        "--array": array,
        "--controller": controller != "job",
        "--print-script": print_script,
        "--sbatch-arg": bool(sbatch_arg),
        "--wait": wait,
    }
    with clear_errors(), _interruptible():
        prepared = prepare(study, models, layers, subjects, profile)
        if prepared.profile in HERE and any(for_slurm.values()):
            given = ", ".join(name for name, is_given in for_slurm.items() if is_given)
            refuse(f"{given}: for a SLURM site only, and the profile is {prepared.profile!r}")
        if not (dry_run or as_json):  # which tell it on stdout
            for line in prepared.idle_sweeps:
                say(f"note: {line}")
        if dry_run:
            _print_plan(prepared, as_json)
        elif print_script:
            from hpcenc.cluster.batch import job_texts

            print("\n".join(job_texts(prepared, sbatch_arg or (), way)))
        elif prepared.profile in HERE:
            _finish(prepared, _run_here(prepared, as_json), as_json)
        else:
            from hpcenc.cluster.batch import submit_batch

            submitted = submit_batch(prepared, sys.argv[1:], sbatch_arg or (), way)
            if not submitted.job_id:
                _finish(prepared, _control_here(submitted, as_json), as_json)
            runs.tell_submitted(submitted, study, as_json, prepared.idle_sweeps)
            if wait:
                runs.await_end(study, say if as_json else print)


def _print_plan(prepared: Prepared, as_json: bool) -> None:
    from hpcenc.cli.wording import plan_lines
    from hpcenc.cluster.submit import price

    priced = price(prepared)
    print(json.dumps(priced, indent=2) if as_json else "\n".join(plan_lines(priced)))


def _run_here(prepared: Prepared, quiet: bool) -> Result:
    from hpcenc.cli.progress import listener
    from hpcenc.cluster.submit import submit as run_here

    with listener(quiet) as listen:
        return run_here(prepared, command=sys.argv[1:], listen=listen)


def _control_here(submitted: Submitted, quiet: bool) -> Result:
    from hpcenc.cli.progress import listener
    from hpcenc.cluster.control import control

    with listener(quiet) as listen:
        return control(submitted.folder, listen, submitted.digest)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Say what Ctrl-C did, where it is not the run itself that takes it."""
    from hpcenc.cluster.submit import EXIT_INTERRUPTED

    try:
        yield
    except KeyboardInterrupt as error:
        _say_interrupted()
        for note in notes_of(error):
            say(note)
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _finish(prepared: Prepared, result: Result, as_json: bool) -> None:
    """Say how a run ended, and end with its exit status."""
    from hpcenc.cluster.submit import EXIT_INTERRUPTED

    paths = {
        "report": str(result.report) if result.report else None,
        "figures": str(result.report.parent / "figures") if result.report else None,
        "store": str(prepared.study.store_path),
        "run": str(result.run_folder),
    }
    if as_json:
        facts = {
            **paths,
            "exit_status": result.exit_status,
            "units_done": result.units_done,
            "set_aside": result.set_aside,
            "idle_sweeps": prepared.idle_sweeps,
        }
        print(json.dumps(facts, indent=2))
    else:
        for reason in result.set_aside:
            say(f"set aside: {reason}")
        if result.exit_status == EXIT_INTERRUPTED:
            _say_interrupted()
        for name, path in paths.items():
            if path is not None:
                print(f"{name:8} {path}")
    raise typer.Exit(result.exit_status)


def _say_interrupted() -> None:
    say("interrupted; nothing that was marked as done is lost. The same command resumes.")
