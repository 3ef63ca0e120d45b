from __future__ import annotations

import tomllib
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis, Cifti2Header, SeriesAxis

from hpcenc.storage.bold import find_bold
from hpcenc.storage.departures import MEANINGS, departures, settings_of
from hpcenc.storage.draft import StudyDraft, parse_choices
from hpcenc.storage.errors import StudyError
from hpcenc.storage.hcp7t import runs
from hpcenc.storage.initialise import hcp7t_study, other_study
from hpcenc.storage.study import Average, Fit, Models, Study, parse_study
from hpcenc.tasks.selection import idle_sweeps, select_feature_sets

HCP_RUNS = {"MOVIE1": "AP", "MOVIE2": "PA", "MOVIE3": "PA", "MOVIE4": "AP"}
HCP_MOVIES = ("7T_MOVIE1_CC1", "7T_MOVIE2_HO1", "7T_MOVIE3_CC2", "7T_MOVIE4_HO2")


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def parse(draft: StudyDraft, folder: Path) -> Study:
    return parse_study(tomllib.loads(draft.text), folder)


@pytest.fixture(params=["plain", 'od"d \\ [x] name é'])
def hcp(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """HCP's folders: three subjects, one without MOVIE3; 1.6 mm copies; movies of the second version."""
    folder = tmp_path / request.param
    for subject, (run, direction) in product(("100610", "102311", "102816"), HCP_RUNS.items()):
        if (subject, run) != ("102816", "MOVIE3"):
            scan = f"tfMRI_{run}_7T_{direction}"
            results = folder / "bold" / subject / "MNINonLinear" / "Results" / scan
            for kind in ("Atlas_MSMAll", "Atlas_1.6mm_MSMAll", "Atlas"):
                touch(results / f"{scan}_{kind}_hp2000_clean.dtseries.nii")
    touch(folder / "bold" / "999999" / "T1w.nii.gz")
    for movie in HCP_MOVIES:
        touch(folder / "movies" / "unpacked" / "Post_20140821_version" / f"{movie}_v2.mp4")
    return folder


def test_the_cleaning_that_most_subjects_have_is_taken_and_the_others_are_named(hcp: Path) -> None:
    for subject in ("100610", "102311", "102816", "103414"):
        for run, direction in HCP_RUNS.items():
            scan = f"tfMRI_{run}_7T_{direction}"
            results = hcp / "bold" / subject / "MNINonLinear" / "Results" / scan
            touch(results / f"{scan}_Atlas_MSMAll_hp2000_clean_rclean_tclean.dtseries.nii")
    touch(hcp / "bold" / "104416" / "104416_tfMRI_MOVIE1_7T_AP_Atlas_hp2000_clean.dtseries.nii")
    draft = hcp7t_study(hcp / "bold", hcp / "movies", v1_subjects=())
    assert parse(draft, hcp).subjects.ids == ("100610", "102311", "102816", "103414")
    assert "tclean" in parse(draft, hcp).bold.path
    (left_out,) = (line for line in draft.missing if "left out" in line)
    assert "1 more of other files" in left_out
    assert "such as subject 104416" in left_out


def test_hcp_is_found_whole(hcp: Path) -> None:
    draft = hcp7t_study(hcp / "bold", hcp / "movies", v1_subjects=())
    assert draft.missing == ()
    study = parse(draft, hcp)
    assert study.subjects.ids == ("100610", "102311", "102816")
    assert study.subjects.runs_of == {"102816": ("MOVIE1", "MOVIE2", "MOVIE4")}
    assert [run.segments for run in study.runs] == [run.segments for run in runs()]
    for subject in study.subjects.ids:
        assert study.stimulus_of(subject) == "v2"
        for run in study.runs_of(subject):
            bold = find_bold(study.bold.path, study.folder, subject, run.name)
            assert (
                bold.name
                == f"tfMRI_{run.name}_7T_{HCP_RUNS[run.name]}_Atlas_MSMAll_hp2000_clean.dtseries.nii"
            )
            assert study.resolve(run.movies()["v2"]).is_file()
    assert "147 subjects scanned before 2014-08-22" in draft.text


def test_the_first_version_is_asked_for_only_where_someone_saw_it(hcp: Path) -> None:
    draft = hcp7t_study(hcp / "bold", hcp / "movies", v1_subjects=("102311", "555555"))
    assert len(draft.missing) == 4
    assert "no 7T_MOVIE1_CC1.mp4 below" in draft.missing[0]
    for movie in HCP_MOVIES:
        touch(hcp / "movies" / "Pre_20140821_version" / f"{movie}.mp4")
    draft = hcp7t_study(hcp / "bold", hcp / "movies", v1_subjects=("102311", "555555"))
    assert draft.missing == ()
    study = parse(draft, hcp)
    assert study.subjects.stimulus_of == {"102311": "v1"}
    assert all(study.resolve(run.movies()["v1"]).is_file() for run in study.runs)


def test_who_saw_the_first_version_is_asked_for_in_a_study_that_is_whole(hcp: Path) -> None:
    draft = hcp7t_study(hcp / "bold", hcp / "movies")
    (missing,) = draft.missing
    assert "147 subjects scanned before 2014-08-22 saw v1" in missing
    assert 'stimulus_of."ID" = "v1"' in missing
    assert {parse(draft, hcp).stimulus_of(subject) for subject in ("100610", "102311")} == {"v2"}
    by_hand = draft.text.replace("# FIX: " + missing, 'stimulus_of."102311" = "v1"')
    with pytest.raises(StudyError, match="no run has a movie of version 'v1'"):
        parse(StudyDraft(by_hand), hcp)
    for movie in HCP_MOVIES:
        touch(hcp / "movies" / "Pre_20140821_version" / f"{movie}.mp4")
    text = hcp7t_study(hcp / "bold", hcp / "movies").text
    by_hand = text.replace("# FIX: " + missing, 'stimulus_of."102311" = "v1"')
    assert parse(StudyDraft(by_hand), hcp).stimulus_of("102311") == "v1"


def test_what_is_wrong_beside_the_versions_is_still_marked(hcp: Path, tmp_path: Path) -> None:
    lines = []
    for number, movie in enumerate(HCP_MOVIES, start=1):
        lines += [f"{movie}_v2,,,", "0,0,25,25", f"{number}.1,20,264,244", f"{number}.2,800,883,83"]
    (tmp_path / "timing.csv").write_text("\r".join(lines), newline="")
    missing = hcp7t_study(hcp / "bold", hcp / "movies", tmp_path / "timing.csv").missing
    assert any("segments overlap: 0 to 25 s and 20 to 264 s" in line for line in missing)


def test_flat_copies_of_hcp_are_found(tmp_path: Path) -> None:
    for subject, (run, direction) in product(("100610", "102311"), HCP_RUNS.items()):
        name = f"{subject}_tfMRI_{run}_7T_{direction}_Atlas_1.6mm_MSMAll_hp2000_clean.dtseries.nii"
        touch(tmp_path / name)
    study_text = hcp7t_study(tmp_path, tmp_path).text
    assert '"100610", "102311"' in study_text
    assert "/{subject}_tfMRI_{run}_7T_??_Atlas_1.6mm_MSMAll_hp2000_clean.dtseries.nii" in study_text


def test_hcp_marks_what_is_not_there(hcp: Path) -> None:
    (hcp / "movies/unpacked/Post_20140821_version/7T_MOVIE2_HO1_v2.mp4").unlink()
    (missing,) = hcp7t_study(hcp / "bold", hcp / "movies", v1_subjects=()).missing
    assert missing.startswith("no 7T_MOVIE2_HO1_v2.mp4 below")
    nothing = hcp7t_study(hcp / "movies", hcp / "movies")
    assert any("no subject was found" in line for line in nothing.missing)
    assert any("no movie run of HCP's names below" in line for line in nothing.missing)
    with pytest.raises(StudyError, match="ids"):
        parse(nothing, hcp)


def test_two_files_of_one_run_are_marked(hcp: Path) -> None:
    results = hcp / "bold/100610/MNINonLinear/Results"
    touch(results / "tfMRI_MOVIE1_7T_PA" / "tfMRI_MOVIE1_7T_PA_Atlas_MSMAll_hp2000_clean.dtseries.nii")
    (missing,) = hcp7t_study(hcp / "bold", hcp / "movies", v1_subjects=()).missing
    assert missing.startswith("several files of MOVIE1 in 100610")


def test_official_times_keep_their_fractions(hcp: Path, tmp_path: Path) -> None:
    lines = []
    for number, movie in enumerate(HCP_MOVIES, start=1):
        lines += [
            f"{movie}_v2,,,",
            "0,0,20,20",
            f"{number}.1,20,264.041667,244.041667",
            f"{number}.2,800.5,883.5,83",
        ]
    (tmp_path / "timing.csv").write_text("\r".join(lines), newline="")
    study = parse(hcp7t_study(hcp / "bold", hcp / "movies", tmp_path / "timing.csv"), hcp)
    assert [segment.end_s for segment in study.runs[0].segments] == [20, 264.041667, 883.5]
    assert study.runs[3].segments[2].group == "validation"


def write_dtseries(path: Path, n_trs: int, tr_s: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cortex = BrainModelAxis.from_surface(np.arange(4), 8, name="CortexLeft")
    header = Cifti2Header.from_axes((SeriesAxis(0, tr_s, n_trs), cortex))
    nibabel.Cifti2Image(np.zeros((n_trs, 4), np.float32), header).to_filename(path)


BIDS = "derivatives/sub-{0}/func/sub-{0}_task-film_run-{1}_space-fsLR_den-91k_bold.dtseries.nii"


@pytest.fixture
def bids(tmp_path: Path) -> Path:
    """fMRIPrep's folders of two subjects and three runs; the second subject lacks one."""
    folder = tmp_path / "my study"
    for subject, run, n_trs in (
        ("01", "1", 40),
        ("01", "2", 50),
        ("02", "2", 50),
        ("01", "3", 60),
        ("02", "3", 60),
    ):
        write_dtseries(folder / BIDS.format(subject, run), n_trs, 1.49)
    for run in (1, 2, 3):
        touch(folder / "stimuli" / f"film_part{run}.mkv")
    return folder


def test_fmriprep_is_found_whole(bids: Path) -> None:
    draft = other_study(bids)
    assert draft.missing == ()
    study = parse(draft, bids)
    assert (study.name, study.tr_s) == ("my study", 1.49)
    assert [(run.name, run.n_trs) for run in study.runs] == [("1", 40), ("2", 50), ("3", 60)]
    assert [Path(str(run.movie)).name for run in study.runs] == [f"film_part{run}.mkv" for run in (1, 2, 3)]
    assert study.subjects.runs_of == {"02": ("2", "3")}
    assert find_bold(study.bold.path, study.folder, "02", "2") == bids / BIDS.format("02", "2")


def test_movies_may_lie_in_a_folder_of_their_own(bids: Path, tmp_path: Path) -> None:
    (bids / "stimuli").rename(tmp_path / "elsewhere")
    assert any("no movie's name fits" in line for line in other_study(bids).missing)
    draft = other_study(bids, tmp_path / "elsewhere")
    assert draft.missing == ()
    movies = [Path(str(run.movie)) for run in parse(draft, bids).runs]
    assert movies == [tmp_path / "elsewhere" / f"film_part{run}.mkv" for run in (1, 2, 3)]


def test_too_few_runs_are_marked(bids: Path) -> None:
    for subject in ("01", "02"):
        (bids / BIDS.format(subject, "3")).unlink()
    for choices in (parse_choices("default", None), parse_choices("paper", None)):
        draft = other_study(bids, choices=choices)
        assert draft.missing == ("runs: 3 at least, one to test and two to choose alpha; found 2",)


def test_lengths_that_differ_between_subjects_are_marked(bids: Path) -> None:
    write_dtseries(bids / BIDS.format("02", "2"), 48, 1.49)
    (missing,) = other_study(bids).missing
    assert missing == "n_trs: expected one number of volumes for all subjects, found 48 in 02; 50 in 01"
    with pytest.raises(StudyError, match=r"runs\.2\.n_trs: required, but absent"):
        parse(other_study(bids), bids)


def test_trs_that_differ_between_runs_are_marked(bids: Path) -> None:
    write_dtseries(bids / BIDS.format("01", "1"), 40, 2.0)
    (missing,) = other_study(bids).missing
    assert missing == "tr_s: the repetition time in seconds; found 1.49 in 2, 3; 2 in 1"


def test_milliseconds_are_not_taken_for_seconds(tmp_path: Path) -> None:
    write_dtseries(tmp_path / "S1" / "a.dtseries.nii", 20, 1490.0)
    assert any(line.startswith("tr_s: ") and "1490 in a" in line for line in other_study(tmp_path).missing)


def test_broken_files_and_movies_in_doubt_are_marked(bids: Path) -> None:
    (bids / BIDS.format("01", "1")).write_text("<html>")
    touch(bids / "stimuli" / "film_part2.mp4")
    missing = other_study(bids).missing
    assert any("expected a CIFTI-2 file, found a web page" in line for line in missing)
    assert any("choose from: stimuli/film_part2.mkv, stimuli/film_part2.mp4" in line for line in missing)


def test_files_that_do_not_fit_are_marked(bids: Path) -> None:
    write_dtseries(bids / BIDS.format("01", "1").replace("91k", "170k"), 40, 1.49)
    (missing,) = other_study(bids).missing
    assert missing.startswith("1 files do not fit this path")


def test_what_the_study_schema_refuses_is_marked(bids: Path) -> None:
    for subject in ("01", "02"):
        write_dtseries(bids / BIDS.format(subject, "2"), 8, 1.49)
    (missing,) = other_study(bids).missing
    assert "8 TRs are fewer than the longest delay, 10 TRs, needs" in missing


def test_plain_arrays_need_their_tr_said(tmp_path: Path) -> None:
    for subject, run in product(("S1", "S2"), "abc"):
        np.save(tmp_path / f"{subject}_{run}.npy", np.zeros((30, 5), np.float32))
    for run in "abc":
        touch(tmp_path / f"{run}.mp4")
    draft = other_study(tmp_path)
    assert draft.missing == ("tr_s: the repetition time in seconds; found no file that says it",)
    (mark,) = (line for line in draft.text.splitlines() if line.startswith("# tr_s"))
    study = parse(StudyDraft(draft.text.replace(mark, "tr_s = 2.0")), tmp_path)
    assert [run.name for run in study.runs] == ["a", "b", "c"]


def test_an_empty_folder_gives_marks_for_everything(tmp_path: Path) -> None:
    draft = other_study(tmp_path)
    assert [line.split(":")[0].split(" ")[0] for line in draft.missing] == ["tr_s", "ids", "no", "runs"]
    tomllib.loads(draft.text)
    with pytest.raises(StudyError, match="runs: required"):
        parse(draft, tmp_path)


def test_movies_alone_become_runs_without_length(tmp_path: Path) -> None:
    touch(tmp_path / "b\n\x7f# FIX: no.mp4")
    touch(tmp_path / "a.mp4")
    draft = other_study(tmp_path)
    data = tomllib.loads(draft.text)
    assert [Path(run["movie"]).name for run in data["runs"]] == ["a.mp4", "b\n\x7f# FIX: no.mp4"]
    assert sum("found no BOLD" in line for line in draft.missing) == 2


def test_the_paper_preset_is_the_reference_study_as_published(hcp: Path) -> None:
    draft = hcp7t_study(hcp / "bold", hcp / "movies", v1_subjects=(), choices=parse_choices("paper", None))
    assert draft.missing == ()
    study = parse(draft, hcp)
    fit = study.fit
    assert (study.preset, fit.delays) == ("paper", tuple(range(4, 14)))
    assert (fit.split_s, sum(run.n_trs for run in study.runs) - fit.split_s) == (2924, 731)
    assert (fit.alpha, fit.zscore_bold, fit.zscore_features) == ("shared", "movie", "movie")
    assert (fit.rest, fit.repeat_train, fit.repeat_test) == ("keep", "keep", "keep")
    assert study.average is not None
    assert study.average.bold == "raw"
    assert study.models.beats.checkpoint == "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt"
    assert (study.sweeps.delays, study.sweeps.layers, study.sweeps.bands) == (tuple(range(10)), True, True)
    assert idle_sweeps(study, select_feature_sets(study)) == ()
    assert {"cavmae-audio", "cavmae-visual", "cavmae-concat", "beats-tags"} < set(study.models.sets)


def test_the_paper_preset_says_that_rests_and_repeats_are_kept(hcp: Path) -> None:
    kept, fitted = "Both are kept here, in training and test", "`rest` is not fitted"
    for preset, said, unsaid in (("paper", kept, fitted), ("default", fitted, kept)):
        text = hcp7t_study(hcp, hcp, v1_subjects=(), choices=parse_choices(preset, None)).text
        assert said in text
        assert unsaid not in text


SPLIT = "split_s: the seconds that train, four fifths of all runs; needs tr_s and every n_trs"


def test_the_cut_of_the_paper_preset_is_marked_where_its_place_is_unknown(tmp_path: Path) -> None:
    paper = parse_choices("paper", None)
    assert SPLIT in other_study(tmp_path, choices=paper).missing  # neither runs nor a TR
    for subject, run in product(("S1", "S2"), ("a", "b")):
        np.save(tmp_path / f"{subject}_{run}.npy", np.zeros((30, 5), np.float32))
    draft = other_study(tmp_path, choices=paper)  # no TR
    assert SPLIT in draft.missing
    assert "split_s" not in tomllib.loads(draft.text)["fit"]


def test_the_cut_of_the_paper_preset_needs_the_length_of_every_run(bids: Path) -> None:
    paper = parse_choices("paper", None)
    assert tomllib.loads(other_study(bids, choices=paper).text)["fit"]["split_s"] == pytest.approx(120 * 1.49)
    write_dtseries(bids / BIDS.format("02", "2"), 48, 1.49)
    draft = other_study(bids, choices=paper)
    assert SPLIT in draft.missing
    assert "split_s" not in tomllib.loads(draft.text)["fit"]


def test_each_departure_of_the_paper_preset_is_named_with_what_it_means(hcp: Path) -> None:
    paper = hcp7t_study(hcp / "bold", hcp / "movies", v1_subjects=(), choices=parse_choices("paper", None))
    found = {departure.key: departure for departure in departures(settings_of(parse(paper, hcp)))}
    assert list(found) == [
        "fit.delays",
        "fit.rest",
        "fit.repeat_train",
        "fit.split_s",
        "fit.min_fold_trs",
        "fit.zscore_bold",
        "fit.zscore_features",
        "fit.alpha",
        "models.beats",
        "average.bold",
    ]
    assert found["models.beats"].found == "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2.pt"
    of_clip = departures(settings_of(parse(paper, hcp), models=["clip"]))
    assert "models.beats" not in [departure.key for departure in of_clip]
    assert (found["fit.split_s"].default, found["fit.split_s"].found) == ("none", "2924.0")
    assert "on both sides" in found["fit.repeat_train"].meaning
    default = hcp7t_study(hcp / "bold", hcp / "movies", v1_subjects=())
    assert list(departures(settings_of(parse(default, hcp)))) == []


@pytest.mark.parametrize(("preset", "window", "delays"), [
    ("paper", "0-9", tuple(range(10))),
    ("default", "4-13", tuple(range(4, 14))),
    ("default", "3-3", (3,)),
])  # fmt: skip
def test_the_window_is_chosen_beside_the_preset(
    preset: str, window: str, delays: tuple[int, ...], hcp: Path
) -> None:
    choices = parse_choices(preset, window)
    draft = hcp7t_study(hcp / "bold", hcp / "movies", v1_subjects=(), choices=choices)
    assert parse(draft, hcp).fit.delays == delays


@pytest.mark.parametrize(("preset", "window"), [("papper", None), ("paper", "9-0"), ("default", "0,9")])
def test_unknown_presets_and_windows_are_refused(preset: str, window: str | None) -> None:
    with pytest.raises(StudyError, match=r"--preset: expected|--window: expected"):
        parse_choices(preset, window)


def test_every_meaning_is_of_a_setting_that_there_is() -> None:
    tables = {"fit": Fit, "models": Models, "average": Average}
    for table, key in MEANINGS:
        assert key in tables[table].model_fields
