"""The ``hpcenc`` command. Heavy packages are imported inside the commands, so that help is instant."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from hpcenc.cli import runs, submitting
from hpcenc.cli.arguments import STUDY_NAME, JsonOption, StudyFile
from hpcenc.cli.profile import app as profile_app
from hpcenc.cli.refusal import clear_errors, refuse

app = typer.Typer(
    help="Voxel-wise encoding models of the brain: from movies and BOLD to maps, one command.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(profile_app, name="profile")

BENCHMARKS = ("fit", "accuracy", "subject", "sweeps", "extraction", "scale")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder that holds the BOLD files (and the movies).")],
    dataset: Annotated[
        str, typer.Option("--dataset", help="hcp7t, or other: any layout; what can't be found is marked.")
    ] = "other",
    movies: Annotated[Path | None, typer.Option("--movies", help="Folder of the movies, if another.")] = None,
    timing: Annotated[
        Path | None,
        typer.Option("--timing", help="HCP_7T_Movie_Clip_Timing.csv, for the built-in table (hcp7t)."),
    ] = None,
    v1_subjects: Annotated[
        Path | None,
        typer.Option("--v1-subjects", help="File of who saw the movies' version v1, one id a line (hcp7t)."),
    ] = None,
    preset: Annotated[
        str, typer.Option("--preset", help="default, or paper: the reference study as published.")
    ] = "default",
    window: Annotated[
        str | None,
        typer.Option("--window", help="First and last delay of the FIR window in TRs, such as 0-9."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Study file to write.")] = STUDY_NAME,
) -> None:
    """Write a study file from what lies in a folder."""
    from hpcenc.storage.draft import parse_choices
    from hpcenc.storage.files import write_text
    from hpcenc.storage.hcp7t import read_subjects
    from hpcenc.storage.initialise import hcp7t_study, other_study

    with clear_errors():
        choices = parse_choices(preset, window)
        if dataset not in ("hcp7t", "other"):
            refuse(f"--dataset: expected hcp7t or other, found {dataset!r}")
        if output.exists():
            refuse(f"{output} exists already; remove it, or give another --output")
        if not output.absolute().parent.is_dir():
            refuse(f"{output}: there is no folder {output.parent}; make it, or give another --output")
        for option in (folder, movies):
            if option is not None and not option.is_dir():
                refuse(f"{option} is not a folder")
        for name, given in (("--timing", timing), ("--v1-subjects", v1_subjects)):
            if given is not None and dataset != "hcp7t":
                refuse(f"{name} is for --dataset hcp7t; write clips and versions into the study file")
        if dataset == "hcp7t":
            saw_v1 = None if v1_subjects is None else read_subjects(v1_subjects)
            draft = hcp7t_study(folder, movies or folder, timing, saw_v1, choices)
        else:
            draft = other_study(folder, movies, choices)
        write_text(output, draft.text)
    print(f"wrote {output}")
    for missing in draft.missing:
        print(f"to fix by hand: {missing}")
    print(f"next: hpcenc check {shlex.quote(str(output))}")


app.command()(submitting.check)
app.command()(submitting.submit)
app.command()(runs.status)
app.command()(runs.wait)
app.command()(runs.cancel)
app.command()(runs.logs)
app.command(hidden=True)(runs.control)


@app.command()
def report(
    study: StudyFile = STUDY_NAME,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write; beside the store if left out.")
    ] = None,
) -> None:
    """Write the report of what is in the store, without computing anything."""
    from hpcenc.cluster.run_folder import RunFolder, versions_of_fits
    from hpcenc.cluster.status import read_status
    from hpcenc.storage.study import load_study
    from hpcenc.tasks.report.build import build_report

    with clear_errors():
        loaded = load_study(study)
        found = read_status(loaded)
        events = RunFolder(Path(found.folder)).events()
        run = {**found.run, "fitted_with": versions_of_fits(loaded.store_path)}
        written = build_report(loaded, run, events, list(map(str, found.set_aside)), output)
    print(f"report   {written.files.html}")


@app.command()
def models(as_json: JsonOption = False) -> None:
    """The models: layers, sizes, and which checkpoint files they take."""
    from hpcenc.cli.wording import model_lines, model_table

    print(json.dumps(model_table(), indent=2) if as_json else "\n".join(model_lines()))


@app.command()
def selftest(
    backend: Annotated[
        str, typer.Option("--backend", help="auto, numpy, torch (on the CPU), torch-cuda or cupy.")
    ] = "auto",
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file to write.")] = Path(
        "selftest.json"
    ),
) -> None:
    """Test the backend of the fits on this machine: right, fast, and safe when memory runs out.

    Run it on a GPU node, and send back the JSON file. Exit status: 0 all passed, 1 something did not.
    """
    from hpcenc.cli.wording import check_line
    from hpcenc.tasks.backends import BACKENDS
    from hpcenc.tasks.selftest import run_selftest

    if backend not in ("auto", *BACKENDS):
        refuse(f"--backend: expected auto, {', '.join(BACKENDS)}, found {backend!r}")
    with clear_errors():
        output.touch()  # a file that cannot be written is told before, not after
        found = run_selftest(
            backend, lambda check: print(check_line(check.name, check.passed, check.said), flush=True)
        )
        output.write_text(json.dumps(found, indent=2) + "\n")
    print(f"{'passed' if found['passed'] else 'FAILED'}; wrote {output}")
    raise typer.Exit(0 if found["passed"] else 1)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="New folder for the demo study.")] = Path("demo"),
    subjects: Annotated[int, typer.Option("--subjects", min=1, max=176, help="Subjects.")] = 3,
    runs: Annotated[int, typer.Option("--runs", min=3, max=8, help="Runs.")] = 4,
    trs: Annotated[int, typer.Option("--trs", min=90, max=3655, help="TRs of each run.")] = 180,
    seed: Annotated[int, typer.Option("--seed", help="Seed of movies, mixes and noise.")] = 0,
) -> None:
    """Write a small HCP-like study of SIMULATED BOLD, for trying hpcenc and for its tests."""
    from hpcenc.tasks.demo.settings import DemoSettings
    from hpcenc.tasks.demo.study import is_unfinished_demo, write_demo

    with clear_errors():
        if folder.exists() and any(folder.iterdir()) and not is_unfinished_demo(folder):
            refuse(f"{folder} exists and is not empty; give another folder, or remove it")
        path = write_demo(folder, DemoSettings(n_subjects=subjects, n_runs=runs, n_trs=trs, seed=seed))
    print(f"wrote {path} (simulated BOLD)")
    print(f"next: hpcenc submit {shlex.quote(str(path))} --models all")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="fit, accuracy, subject, sweeps, extraction, scale.")
    ],
) -> None:
    """Measure hpcenc: the fit against its peers, its accuracy, a whole subject, extraction, many subjects.

    For a checkout of the repository, with its extra `bench`. All that follows NAME goes to its script:
    `hpcenc bench fit -- --help` lists what it takes.
    """
    import subprocess

    if name not in BENCHMARKS:
        refuse(f"benchmark {name!r}: expected {', '.join(BENCHMARKS[:-1])} or {BENCHMARKS[-1]}")
    checkout = Path(__file__).resolve().parents[1]
    script = checkout / "benchmarks" / f"{name}.py"
    if not script.exists():
        refuse(
            f"{script}: no such file. The benchmarks are no part of the installed package. Clone hpcenc's "
            "repository, run `pip install -e '.[bench]'` in it, and there `hpcenc bench` again."
        )
    raise typer.Exit(subprocess.run([sys.executable, str(script), *context.args], check=False).returncode)


def main() -> None:
    """Entry point of the ``hpcenc`` command."""
    app()


if __name__ == "__main__":
    main()
