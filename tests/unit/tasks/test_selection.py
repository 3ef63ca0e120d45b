from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hpcenc.storage.errors import StudyError
from hpcenc.storage.study import Study, parse_study
from hpcenc.storage.study_checks import MODEL_SETS
from hpcenc.tasks.models import catalogue
from hpcenc.tasks.selection import BAND_RATIOS, FeatureSet, idle_sweeps, select_feature_sets


def study(movie: str | None = "movie.mp4", **tables: Any) -> Study:
    runs = [{"name": name, "n_trs": 40, **({"movie": movie} if movie else {})} for name in "ABC"]
    data = {
        "name": "x",
        "tr_s": 1.0,
        "runs": runs,
        "subjects": {"ids": ["s1"]},
        "bold": {"path": "{subject}/{run}.npy"},
        "feature_files": {"mylab": {"path": "{run}.npy"}},
        **tables,
    }
    return parse_study(data, Path())


def layers(chosen: tuple[FeatureSet, ...]) -> dict[str, list[str]]:
    return {each.name: [str(variant) for variant in each.variants] for each in chosen}


def test_all_are_the_four_of_the_reference_study_at_one_layer_each_and_the_files() -> None:
    assert layers(select_feature_sets(study())) == {
        "beats": ["beats/12"],
        "clip": ["clip/embedding"],
        "cavmae": ["cavmae/mean"],
        "beats+clip": ["beats/12+clip/embedding"],
        "mylab": ["mylab/values"],
    }


def test_all_of_a_study_without_movies_are_its_files() -> None:
    assert layers(select_feature_sets(study(movie=None))) == {"mylab": ["mylab/values"]}


def test_all_are_the_models_where_any_run_has_a_movie() -> None:
    """The run without one is told when its movie is looked for."""
    runs = [{"name": name, "n_trs": 40, **({"movie": "m.mp4"} if name != "A" else {})} for name in "ABC"]
    assert "clip" in layers(select_feature_sets(study(runs=runs)))
    with pytest.raises(StudyError, match="--models all: no run names a movie, and there are no"):
        select_feature_sets(study(movie=None, feature_files={}))


def test_models_go_by_name_and_in_that_order() -> None:
    assert list(layers(select_feature_sets(study(), "mylab, clip"))) == ["mylab", "clip"]


def test_all_layers_are_variants_and_sums_pair_equal_depths() -> None:
    shallow = study(models={"weights": "untrained", "n_layers": 2})
    assert layers(select_feature_sets(shallow, "beats,cavmae,beats+clip,beats+mylab", "all")) == {
        "beats": ["beats/1", "beats/2"],
        "cavmae": ["cavmae/mean-1", "cavmae/mean"],
        "beats+clip": ["beats/1+clip/1", "beats/2+clip/embedding"],
        "beats+mylab": ["beats/1+mylab/values", "beats/2+mylab/values"],
    }


def test_branches_of_cav_mae_and_tags_are_feature_sets() -> None:
    names = "beats-tags,cavmae-audio,cavmae-visual,cavmae,cavmae-concat,cavmae-tags,cavmae-audio+clip"
    assert layers(select_feature_sets(study(), names)) == {
        "beats-tags": ["beats/tags"],
        "cavmae-audio": ["cavmae/audio"],
        "cavmae-visual": ["cavmae/visual"],
        "cavmae": ["cavmae/mean"],
        "cavmae-concat": ["cavmae/concat"],
        "cavmae-tags": ["cavmae/tags"],
        "cavmae-audio+clip": ["cavmae/audio+clip/embedding"],
    }


def test_all_layers_of_a_branch_are_its_own_depths_and_tags_go_with_each() -> None:
    shallow = study(models={"weights": "untrained", "n_layers": 2})
    assert layers(select_feature_sets(shallow, "cavmae-audio,cavmae-concat+clip,beats-tags+clip", "all")) == {
        "cavmae-audio": ["cavmae/audio-1", "cavmae/audio"],
        "cavmae-concat+clip": ["cavmae/concat-1+clip/1", "cavmae/concat+clip/embedding"],
        "beats-tags+clip": ["beats/tags+clip/1", "beats/tags+clip/embedding"],
    }
    (chosen,) = select_feature_sets(study(), "cavmae-visual", "all")
    assert len(chosen.variants) == 12


def test_a_named_layer_goes_to_the_feature_set_of_its_branch_else_to_the_models_own() -> None:
    names = "cavmae/audio-3,cavmae/mean-2"
    assert layers(select_feature_sets(study(), "cavmae,cavmae-audio", names)) == {
        "cavmae": ["cavmae/mean-2"],
        "cavmae-audio": ["cavmae/audio-3"],
    }
    assert layers(select_feature_sets(study(), "cavmae,beats", "cavmae/audio-3,beats/tags")) == {
        "cavmae": ["cavmae/audio-3"],
        "beats": ["beats/tags"],
    }


def test_the_sources_of_a_set_are_its_models_and_files() -> None:
    (chosen,) = select_feature_sets(study(), "beats-tags+beats+cavmae-audio+mylab")
    assert chosen.sources == ("beats", "cavmae", "mylab")


def test_the_names_that_feature_files_may_not_have_are_those_of_the_models_sets() -> None:
    assert set(MODEL_SETS) == set(catalogue.FEATURE_SETS)


def test_named_layers_are_taken_and_other_models_keep_their_default() -> None:
    chosen = layers(select_feature_sets(study(), "beats,clip", "beats/3,beats/6"))
    assert chosen == {"beats": ["beats/3", "beats/6"], "clip": ["clip/embedding"]}


def test_a_model_in_a_sum_is_one_whose_layers_can_be_named() -> None:
    chosen = layers(select_feature_sets(study(), "beats+mylab", "beats/3"))
    assert chosen == {"beats+mylab": ["beats/3+mylab/values"]}


def test_untrained_models_are_named_so_and_files_are_not() -> None:
    untrained = study(models={"weights": "untrained", "seed": 3})
    labels = [chosen.label for chosen in select_feature_sets(untrained)]
    assert labels == [
        "beats[untrained, seed 3]",
        "clip[untrained, seed 3]",
        "cavmae[untrained, seed 3]",
        "beats+clip[untrained, seed 3]",
        "mylab",
    ]


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("beats", "audio"),
        ("clip", "vision"),
        ("cavmae", "audio-visual"),
        ("beats+clip", "audio-visual"),
        ("mylab", "given"),
        ("clip+mylab", "mixed"),
        ("beats-tags", "audio"),
        ("cavmae-audio", "audio"),
        ("cavmae-visual", "vision"),
        ("cavmae-concat", "audio-visual"),
        ("cavmae-tags", "audio"),
        ("cavmae-audio+beats", "audio"),
        ("cavmae-audio+clip", "audio-visual"),
    ],
)
def test_modality_follows_the_sources(name: str, modality: str) -> None:
    (chosen,) = select_feature_sets(study(), name)
    assert chosen.modality == modality


def test_a_study_may_say_what_all_of_it_is() -> None:
    own = study(models={"weights": "untrained", "sets": ["clip", "beats-tags", "mylab+clip"]})
    assert [each.name for each in select_feature_sets(own)] == ["clip", "beats-tags", "mylab+clip"]
    assert [each.name for each in select_feature_sets(own, "beats")] == ["beats"]
    with pytest.raises(StudyError, match=r"models\.sets: no feature set 'nosuch'"):
        select_feature_sets(study(models={"weights": "untrained", "sets": ["nosuch"]}))


@pytest.mark.parametrize(
    ("models", "layers", "said"),
    [
        ("nosuch", "default", "'nosuch'.*beats, beats-tags, clip, cavmae, cavmae-audio, .*, mylab, and sums"),
        ("clip-tags", "default", "no feature set 'clip-tags'"),
        ("all,clip", "default", "--models: `all` goes alone"),
        ("clip", "clip/tags", "clip has no layer 'tags'"),
        ("cavmae-audio", "cavmae/visual-3", "'cavmae/visual-3' is .* layers of cavmae-audio. Add cavmae"),
        ("beats-tags", "beats/3", "expected layers of beats-tags. Add beats"),
        ("clip,beats+nosuch", "default", "nosuch"),
        ("clip,clip", "default", "'clip' is named twice"),
        ("beats+clip,clip+beats", "default", r"'clip\+beats' is named twice"),
        ("beats", "beats/3,beats/2,beats/3", "--layers: 'beats/3' is named twice"),
        ("mylab+mylab", "default", r"'mylab\+mylab' is a sum of a set with itself, .*; give 'mylab' once"),
        ("beats+clip+beats", "default", "sum of a set with itself, .*; give 'beats' once"),
        (" , ", "default", "empty"),
        ("clip", "nosuch/1", "nosuch/1"),
        ("clip", "clip/99", "no layer '99'; it has 1, 2, 3"),
        ("clip,mylab", "clip/3,beats/3", "'beats/3' .* no chosen feature set uses; expected layers of clip"),
        ("beats+clip", "beats/3,beats/6,clip/1,clip/2,clip/3", "equally many layers"),
    ],
)
def test_wrong_names_are_refused(models: str, layers: str, said: str) -> None:
    with pytest.raises(StudyError, match=said):
        select_feature_sets(study(), models, layers)


def test_all_wrong_names_are_told_at_once() -> None:
    with pytest.raises(StudyError) as refused:
        select_feature_sets(study(), "one,two", "three/4")
    assert len(refused.value.problems) == 3


def sweeps_of(chosen: tuple[FeatureSet, ...]) -> dict[tuple[str, str], list[str]]:
    return {
        (each.name, each.kind): [variant.label(each.kind) for variant in each.variants] for each in chosen
    }


def test_sweeps_follow_their_feature_set() -> None:
    shallow = {"weights": "untrained", "n_layers": 2}
    chosen = select_feature_sets(
        study(models=shallow, sweeps={"delays": [0, 3], "layers": True, "bands": True}),
        "clip,beats+clip,mylab",
    )
    found = sweeps_of(chosen)
    assert [(each.name, each.kind) for each in chosen] == [
        ("clip", "fits"),
        ("clip", "delays"),
        ("clip", "layers"),
        ("beats+clip", "fits"),
        ("beats+clip", "delays"),
        ("beats+clip", "layers"),
        ("beats+clip", "bands"),
        ("mylab", "fits"),
        ("mylab", "delays"),
    ]
    assert found["clip", "delays"] == ["clip/embedding delay 0", "clip/embedding delay 3"]
    assert found["clip", "layers"] == ["clip/1", "clip/embedding"]
    assert found["beats+clip", "layers"] == ["beats/1+clip/1", "beats/2+clip/embedding"]
    ratios = [label.rpartition(" ")[2] for label in found["beats+clip", "bands"]]
    assert ratios == ["10000:1", "1000:1", "100:1", "10:1", "1:1", "1:10", "1:100", "1:1000", "1:10000"]


def test_a_grid_of_five_by_five_scalings_has_these_ratios() -> None:
    grid = [10.0**power for power in (-2, -1, 0, 1, 2)]
    ratios = {round(math.log10(first / second)) for first in grid for second in grid}
    assert ratios == {round(math.log10(ratio)) for ratio in BAND_RATIOS}


def test_a_fit_in_bands_takes_two_spaces() -> None:
    with pytest.raises(StudyError, match=r"sweeps.bands: 'beats\+clip\+mylab' is a sum of 3"):
        select_feature_sets(study(sweeps={"bands": True}), "beats+clip+mylab")
    found = sweeps_of(select_feature_sets(study(sweeps={"bands": True}), "beats,cavmae-audio+clip"))
    assert list(found) == [("beats", "fits"), ("cavmae-audio+clip", "fits"), ("cavmae-audio+clip", "bands")]


def idle(models: str, layers_option: str = "default", **sweeps: Any) -> list[str]:
    """Keys of the sweeps that have nothing to do."""
    asked = study(sweeps=sweeps)
    lines = idle_sweeps(asked, select_feature_sets(asked, models, layers_option))
    return [line.partition(":")[0] for line in lines]


@pytest.mark.parametrize(
    ("models", "layers", "idle_keys"),
    [
        ("all", "default", ["sweeps.tags"]),
        ("clip", "default", ["sweeps.tags", "sweeps.bands"]),
        ("mylab", "default", ["sweeps.tags", "sweeps.layers", "sweeps.bands"]),
        ("beats-tags", "default", ["sweeps.layers", "sweeps.bands"]),
        ("beats-tags+clip", "default", ["sweeps.tags"]),
        ("beats,clip+mylab", "beats/tags", []),
        ("beats+clip,cavmae-tags", "default", []),
    ],
)
def test_sweeps_that_the_chosen_sets_leave_idle_are_named(
    models: str, layers: str, idle_keys: list[str]
) -> None:
    assert idle(models, layers, delays=[1], tags=5, layers=True, bands=True) == idle_keys


def test_sweeps_that_are_not_asked_for_are_not_idle() -> None:
    assert idle("clip") == []
    assert idle("clip", delays=[1, 2]) == []


def test_an_idle_sweep_says_what_to_add() -> None:
    asked = study(sweeps={"tags": 0})
    (line,) = idle_sweeps(asked, select_feature_sets(asked))
    assert "add beats-tags or cavmae-tags to --models (`all` has neither)" in line


def test_sweeps_of_subjects_who_are_left_out_of_a_run_are_idle() -> None:
    asked = study(subjects={"ids": ["s1", "s2"]}, sweeps={"delays": [1], "subjects": ["s2"]})
    chosen = select_feature_sets(asked, "clip")
    assert idle_sweeps(asked, chosen) == ()
    part = asked.model_copy(update={"subjects": asked.subjects.model_copy(update={"only": ("s1",)})})
    (line,) = idle_sweeps(part, chosen)
    assert line.startswith("sweeps.subjects: none of s2 is fitted, so nothing is swept; fitted: s1.")
