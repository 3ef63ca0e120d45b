"""The swept study on disk, and its store when all is fitted."""

from pathlib import Path

import pytest
from run_here import run_plan
from swept_study import study_of, write_files

from hpcenc.storage.store import Store


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the swept study."""
    path = tmp_path_factory.mktemp("swept")
    write_files(path)
    return path


@pytest.fixture(scope="session")
def store(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The swept study fitted with both spaces and their sum, its delays and bands swept."""
    return run_plan(study_of(folder, tmp_path_factory.mktemp("results")), "first,second,first+second")[0]
