"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

STUDY_NAME = Path("study.toml")
StudyFile = Annotated[Path, typer.Argument(metavar="[STUDY]", help="Study file; ./study.toml if left out.")]
