"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

STUDY_NAME = Path("study.toml")
StudyFile = Annotated[Path, typer.Argument(metavar="[STUDY]", help="Study file; ./study.toml if left out.")]

ModelsOption = Annotated[
    str,
    typer.Option(
        "--models",
        help="all (beats, clip, cavmae, beats+clip and your feature files), or names joined by commas: "
        "beats, beats-tags, clip, cavmae, cavmae-audio, cavmae-visual, cavmae-concat, cavmae-tags, feature "
        "files, sums such as beats+clip. `hpcenc models` lists them. `models.sets` of the study file gives "
        "`all` another meaning.",
    ),
]
LayersOption = Annotated[
    str, typer.Option("--layers", help="default, all, or MODEL/LAYER joined by commas, such as beats/6.")
]
SubjectsOption = Annotated[str, typer.Option("--subjects", help="all, or subject ids joined by commas.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
