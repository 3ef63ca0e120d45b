"""What a report says of the checkpoints behind its fits, on a study whose features are written in the place
of a network's: the file on the disk, its digest and all that is fitted are real."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_here import NOT_DECODED, run_plan

from hpcenc.storage.results import require_scores
from hpcenc.storage.store import Store
from hpcenc.storage.study import Study, parse_study
from hpcenc.tasks.extraction import ExtractChunk
from hpcenc.tasks.movie_writer import write_movie
from hpcenc.tasks.report.build import build_report
from hpcenc.tasks.report.methods_section import methods_section
from hpcenc.tasks.report.provenance import feature_lines, read_origins

N_TRS = {"A": 40, "B": 36, "C": 38}
CHECKPOINT = "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt"


def draw_features(store: Store, task: ExtractChunk) -> None:
    """Features by chance in the place of those that a network would have made of a movie."""
    group, rng = task.unit.group, np.random.default_rng(0)
    for folder in sorted(path for path in (store.path / group).iterdir() if path.is_dir()):
        name = f"{group}/{folder.name}"
        if len(shape := store.array(name).shape) == 2:
            store.write(name, (slice(None), slice(None)), rng.random(shape, np.float32))
    store.mark(group, task.unit.index, task.unit.digest)


@dataclass
class Lab:
    """A folder of movies, BOLD of two subjects and BEATs' checkpoint, and the store that fits go to."""

    folder: Path

    @property
    def store(self) -> Store:
        return Store(self.folder / "study.zarr")

    @property
    def digest(self) -> str:
        """Of the checkpoint that is there, by another way than hpcenc's."""
        return hashlib.sha256((self.folder / CHECKPOINT).read_bytes()).hexdigest()

    def write_checkpoint(self, seed: int) -> None:
        """The head of an official file: all that is looked at where no network is built."""
        weights = torch.full((3, 4), float(seed))
        model = {"patch_embedding.weight": torch.zeros(2, 2), "predictor.weight": weights}
        labels = {place: f"/m/{place}" for place in range(3)}
        contents = {"cfg": {"encoder_layers": 12}, "model": model, "label_dict": labels}
        torch.save(contents, self.folder / CHECKPOINT)

    def study(self, subjects: Sequence[str] = ("s1", "s2"), **models: Any) -> Study:
        data = {
            "name": "checkpoints",
            "tr_s": 1.0,
            "store": "study.zarr",
            "runs": [{"name": run, "n_trs": n_trs, "movie": f"{run}.mp4"} for run, n_trs in N_TRS.items()],
            "subjects": {"ids": list(subjects)},
            "bold": {"path": "{subject}_{run}.npy"},
            "models": {"weights_dir": ".", **models},
            "feature_files": {"lab": {"path": "lab_{run}.npy"}},
            "fit": {"delays": [1, 2], "n_alphas": 4, "block": 2500, "backend": "numpy", "weights": "none"},
        }
        return parse_study(data, self.folder)

    def fit(self, models: str, *args: Any, **settings: Any) -> Study:
        """Plan a study and run what is left of it, features drawn by chance."""
        study = self.study(*args, **settings)
        run_plan(study, models, {**NOT_DECODED, ExtractChunk: draw_features})
        return study

    def features(self) -> list[tuple[str, str]]:
        return feature_lines(read_origins(self.store, require_scores(self.store)))

    def methods(self, study: Study) -> str:
        found = require_scores(self.store)
        return methods_section(self.store, study, found, {}, self.features()).paragraphs[0]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    rng = np.random.default_rng(0)
    for run, n_trs in N_TRS.items():
        frames = np.zeros((n_trs, 16, 16, 3), np.uint8)
        write_movie(tmp_path / f"{run}.mp4", frames, 1, np.zeros(n_trs * 16_000, np.float32), 16_000)
        np.save(tmp_path / f"lab_{run}.npy", rng.standard_normal((n_trs, 2)).astype(np.float32))
        for subject in ("s1", "s2"):
            np.save(tmp_path / f"{subject}_{run}.npy", rng.standard_normal((n_trs, 12)).astype(np.float32))
    made = Lab(tmp_path)
    made.write_checkpoint(1)
    return made


def test_two_sets_of_a_model_name_its_file_with_the_digest_that_the_file_has(lab: Lab) -> None:
    study = lab.fit("beats,beats-tags,lab")
    window = "12 layers; audio window 10 s, causal, pooled over the TR"
    assert lab.features() == [
        ("beats", f"file {CHECKPOINT}, sha256 {lab.digest}; {window}"),
        ("lab", "from files on the TR grid"),
    ]
    said = lab.methods(study)
    assert said.count(lab.digest) == 1
    assert f"Features of beats: file {CHECKPOINT}, sha256 {lab.digest}; " in said
    page = build_report(study, {}, [], []).files.html.read_text("utf-8")
    assert said.replace("'", "&#39;") in page


def test_a_checkpoint_that_some_fits_were_made_with_is_named_beside_the_present_one(lab: Lab) -> None:
    study = lab.fit("beats")
    first = lab.digest
    lab.write_checkpoint(2)
    lab.fit("beats", ["s2"])
    assert lab.digest != first
    texts = [text for _, text in lab.features()]
    assert len(texts) == 2
    assert first in texts[0]
    assert texts[0].endswith(" — beats of s1")
    assert lab.digest in texts[1]
    assert texts[1].endswith(" — beats of s2")
    lab.fit("beats")
    assert first not in lab.methods(study)


def test_a_checkpoint_that_no_fit_was_made_with_is_not_named(lab: Lab) -> None:
    study = lab.fit("beats")
    lab.fit("lab")
    for fit in (lab.store.path / "fits").glob("beats/*"):
        fit.rename(lab.folder / fit.name)
    assert lab.methods(study).count("Features of") == 1
    assert lab.digest not in lab.methods(study)


def test_untrained_weights_are_named_by_their_seed(lab: Lab) -> None:
    study = lab.fit("beats", weights="untrained", seed=5, n_layers=2)
    said = "Features of beats[untrained, seed 5]: weights untrained, seed 5; 2 layers; audio window"
    assert said in lab.methods(study)
    assert "sha256" not in lab.methods(study)
