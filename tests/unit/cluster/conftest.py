"""Runs of a site, as a submit leaves them for their first job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from hpcenc.cluster.run_folder import RunFolder
from hpcenc.cluster.submit import Prepared, run_settings


@pytest.fixture
def begin_run() -> Any:
    """``begin_run(prepared, tables)``: the folder of run ``abcdefgh`` with the tables of a site's profile."""

    def begin(prepared: Prepared, site: Mapping[str, Any]) -> RunFolder:
        settings = {
            **run_settings(prepared, "serial", []),
            "site": site,
            "study_folder": str(prepared.study.folder),
            "models": prepared.models,
            "layers": prepared.layers,
        }
        return RunFolder.create(prepared.study.store_path, "abcdefgh", prepared.plan, settings)

    return begin
