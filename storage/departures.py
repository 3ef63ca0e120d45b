"""How a study departs from the defaults of hpcenc, and what each departure means for its results."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hpcenc.storage.study import Average, Fit, Models, Study

MODELS = ("beats", "clip", "cavmae")

MEANINGS = {
    ("fit", "delays"): "another FIR window than the default one",
    (
        "fit",
        "rest",
    ): "rest rows are kept: any feature predicts the response to a movie that goes on and off, which "
    "raises r without telling anything of the features",
    (
        "fit",
        "repeat_train",
    ): "a clip that is shown again stands in training: where the test shows it too, the same stimulus is on "
    "both sides, and r is in part that of a stimulus already seen",
    ("fit", "repeat_test"): "the repeated clip is scored in another way than the other rows",
    (
        "fit",
        "split_s",
    ): "the movie is cut in two at one moment: the first test rows follow training rows within seconds, and "
    "one cut says nothing of the spread",
    ("fit", "min_fold_trs"): "a run with few training rows joins its neighbour in the inner folds",
    (
        "fit",
        "zscore_bold",
    ): "mean and scale of BOLD are of the whole movie, test rows among them; runs keep their "
    "differences in level",
    ("fit", "zscore_features"): "mean and scale of features are of the whole movie, test rows among them",
    (
        "fit",
        "alpha",
    ): "one penalty for all vertices, whatever their signal: too strong for some, too weak for others",
    ("fit", "alpha_exponents"): "another range of penalties",
    ("fit", "n_alphas"): "another number of penalties",
    ("fit", "outer"): "other outer folds than the last run alone",
    ("fit", "test_runs"): "other test runs than the last one",
    ("fit", "solver"): "the solver is given, not chosen by size",
    ("fit", "tf32"): "penalties are chosen in reduced precision",
    ("models", "weights"): "untrained networks: a control",
    ("models", "n_layers"): "networks of fewer layers than the published ones",
    (
        "models",
        "beats",
    ): "the file's training decides what the features know: one fine-tuned on AudioSet knows its classes",
    ("models", "clip"): "the file's training decides what the features know",
    ("models", "cavmae"): "the file's training decides what the features know",
    ("models", "audio_window_s"): "another audio context",
    ("models", "audio_align"): "audio windows are centred on the row, so that features know what comes",
    ("models", "audio_pool"): "tokens of the whole window are pooled, which smears features over its length",
    ("average", "bold"): "raw BOLD is averaged, so that a subject with a larger scale counts more",
    ("average", "mixed_versions"): "subjects who saw different versions of the stimulus are averaged",
}
"""What a value other than the default one does, by table and key; keys that change no result are not among
them."""

AS_PUBLISHED = "as published by the reference study"


@dataclass(frozen=True)
class Departure:
    """One setting that is not the default one."""

    key: str
    default: str
    found: str
    meaning: str


def settings_of(
    study: Study, *, models: Collection[str] = MODELS, audio: bool = True, average: bool = True
) -> dict[str, Any]:
    """Settings of a study that change the results of a fit, as plain values: kept with it, for the study
    file may change after it.

    Parameters
    ----------
    models : collection of str
        Models whose features the fit is of. What does not act on it is left out: a fit that stays as it is
        when that changes would tell of an old value.
    audio, average : bool
        Whether it is of features from sound, of the average over subjects.
    """
    tables = {
        "fit": study.fit,
        "models": study.models if models else None,
        "average": study.average if average else None,
    }
    plain: dict[str, Any] = {
        name: None if table is None else table.model_dump(mode="json") for name, table in tables.items()
    }
    if study.fit.test_runs == (study.runs[-1].name,):
        plain["fit"]["test_runs"] = []
    kept: dict[str, Any] = {"preset": study.preset}
    for name, values in plain.items():
        keys = [
            key
            for table, key in MEANINGS
            if table == name
            and (audio or not key.startswith("audio_"))
            and (key not in MODELS or key in models)
        ]
        kept[name] = None if values is None else {key: values[key] for key in keys}
    return kept


def acts(settings: Mapping[str, Any], key: str) -> bool:
    """Whether a setting, such as ``models.audio_align``, is one of those that act on a fit."""
    table, _, name = key.partition(".")
    return name in (settings[table] or {})


def departures(settings: Mapping[str, Any]) -> Iterator[Departure]:
    """Settings, as `settings_of` gives them, that are not the defaults, in the order of `MEANINGS`."""
    defaults = {"fit": Fit(), "models": Models(), "average": Average()}
    plain = {name: table.model_dump(mode="json") for name, table in defaults.items()}
    for (table, key), meaning in MEANINGS.items():
        if not acts(settings, f"{table}.{key}"):
            continue
        default, found = plain[table][key], settings[table][key]
        if found != default:
            yield Departure(f"{table}.{key}", _text(default), _text(found), meaning)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return value["checkpoint"] or "the official file that is there"
    if value is None:
        return "none"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return str(value)
