"""The ``hpcenc profile`` commands: write, list and show the profiles of SLURM sites."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hpcenc.cli.refusal import clear_errors, refuse

app = typer.Typer(help="Profiles of SLURM sites: what jobs must ask for there.", no_args_is_help=True)

ProfileName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the profile.")]


@app.command()
def init(
    name: Annotated[
        str, typer.Argument(metavar="[NAME]", help="Name of the profile; slurm if left out.")
    ] = "slurm",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; in your own folder if left out.")
    ] = None,
) -> None:
    """Write a first profile of this cluster, from what sinfo says. To run on a login node."""
    from hpcenc.slurm.commands import run_command
    from hpcenc.slurm.profiles import profile_path
    from hpcenc.slurm.site import draft_profile, read_site
    from hpcenc.storage.files import write_text

    with clear_errors():
        path = output or profile_path(name)
        if path.exists():
            refuse(f"{path} exists already; remove it, or give another NAME or --output")
        draft = draft_profile(read_site(lambda command: run_command(command, patience_s=0)))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, draft.text)
    print(f"wrote {path}")
    for missing in draft.missing:
        print(f"to fix by hand: {missing}")
    if output is None:
        print(f"next: hpcenc profile show {name}, then hpcenc profile test {name}")


@app.command("list")
def list_() -> None:
    """Names and files of all profiles; a file lies upon those to its right."""
    from hpcenc.slurm.profiles import HERE, list_profiles, profile_folders

    for name in HERE:
        print(f"{name:16} this machine")
    profiles = list_profiles()
    for name, files in profiles.items():
        print(f"{name:16} {', '.join(map(str, files))}")
    if not profiles:
        folders = ", ".join(str(folder) for folder in profile_folders())
        print(f"no profile of a SLURM site in {folders}; write one with `hpcenc profile init`")


@app.command()
def show(name: ProfileName) -> None:
    """All values of a profile, and the file that each comes from; what is wrong goes to stderr."""
    from hpcenc.slurm.profiles import read_profile

    with clear_errors():
        profile = read_profile(name)
        for key, value, source in profile.settings():
            print(f"{key} = {json.dumps(value, default=str)}  # {source}")
        profile.checked()


@app.command("test")
def try_out(
    name: ProfileName,
    folder: Annotated[
        Path, typer.Option("--folder", help="Folder on the file system of your stores; this one if left out.")
    ] = Path(),
    wait: Annotated[float, typer.Option("--wait", min=0.1, help="Minutes to wait for the jobs.")] = 10,
) -> None:
    """Run one short job for each role, and say what works there and what does not.

    Looks at the jobs themselves, hpcenc's version, the file system, the network between nodes, sbatch from a
    node, and the GPU. Exit status: 0 nothing failed, 1 something did, or a job did not come to run.
    """
    from hpcenc.cli.wording import check_line
    from hpcenc.cluster.profile_check import check_profile
    from hpcenc.slurm.profiles import read_profile

    reports = []
    with clear_errors():
        if not folder.is_dir():
            refuse(f"{folder} is not a folder")
        for report in check_profile(read_profile(name), folder, wait):
            found = report.finding
            print(check_line(f"{report.role} {found.name}", found.passed, found.said), flush=True)
            reports.append(report)
    unknown = [report.finding for report in reports if report.finding.name == "job"]
    raise typer.Exit(1 if unknown or any(report.finding.passed is False for report in reports) else 0)


@app.command(hidden=True)
def probe(
    folder: Annotated[Path, typer.Argument(help="Folder of a test.")],
    role: Annotated[str, typer.Argument(help="controller, cpu or gpu.")],
) -> None:
    """Look around in a job: what the jobs of a test call."""
    from typing import cast

    from hpcenc.cluster.probe import Role
    from hpcenc.cluster.probe import probe as look

    with clear_errors():
        look(folder, cast(Role, role))
