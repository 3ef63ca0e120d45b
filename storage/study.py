"""The study file: one TOML file, read once into frozen models that are passed down whole."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from hpcenc.storage.errors import StudyError
from hpcenc.storage.layout import AVERAGE
from hpcenc.storage.study_checks import cross_problems, file_problems
from hpcenc.storage.study_problems import describe_problems, known_keys

MAIN_STIMULUS = "main"
"""Stimulus version of a study whose runs name one movie each."""


class Settings(BaseModel):
    """Base of all settings: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, allow_inf_nan=False)


def _rising(delays: tuple[int, ...]) -> tuple[int, ...]:
    if list(delays) != sorted(set(delays)):
        raise ValueError(f"delays must rise without repeats, found {list(delays)}")
    return delays


Delays = Annotated[tuple[NonNegativeInt, ...], AfterValidator(_rising)]
"""Delays in TRs, rising."""


def _place(name: str) -> str:
    if not re.fullmatch(r"(left|right|voxel) \d+", name):
        raise ValueError(f"expected such as 'left 1234', 'right 1234' or 'voxel 1234', found {name!r}")
    return name


VertexName = Annotated[str, AfterValidator(_place)]


class Segment(Settings):
    """A part of a run, in seconds from the run's first volume, half open."""

    kind: Literal["clip", "rest", "repeat"]
    """``repeat`` is a clip that is shown in other runs too: ``group`` names it."""
    start_s: Annotated[float, Field(ge=0)]
    end_s: PositiveFloat
    name: str = ""
    group: str = ""

    @model_validator(mode="after")
    def _check(self) -> Segment:
        if self.end_s <= self.start_s:
            raise ValueError(f"segment ends at {self.end_s} s, before its start at {self.start_s} s")
        if (self.kind == "repeat") != bool(self.group):
            raise ValueError("a 'repeat' segment needs a 'group', and only a 'repeat' segment has one")
        return self


class Run(Settings):
    """One unbroken scan of one movie."""

    name: Annotated[str, Field(min_length=1)]
    n_trs: PositiveInt
    """Volumes of BOLD, which are the rows of every array of this run."""
    movie: str | dict[str, str] | None = None
    """The movie file, or one for each stimulus version; absent where only feature files are used."""
    segments: tuple[Segment, ...] = ()
    """Rest and repeated clips; what is not named is clip."""

    def movies(self) -> dict[str, str]:
        """Movie path of each stimulus version."""
        if self.movie is None:
            return {}
        return self.movie if isinstance(self.movie, dict) else {MAIN_STIMULUS: self.movie}

    def rows(self, kind: str, tr_s: float) -> tuple[tuple[str, int, int], ...]:
        """Rows that segments of one kind touch.

        Parameters
        ----------
        kind : {"clip", "rest", "repeat"}
        tr_s : float
            Repetition time in seconds.

        Returns
        -------
        tuple of (group or name, start, stop)
            Half-open row spans, cut to the run. A row that a segment touches in part counts as
            touched: a second of rest or of a repeated clip is never kept by rounding.
        """
        spans = []
        for segment in self.segments:
            if segment.kind == kind:
                # Seconds over TR need not be whole in floating point where they are in decimals.
                start = math.floor(segment.start_s / tr_s + 1e-9)
                stop = math.ceil(segment.end_s / tr_s - 1e-9)
                spans.append((segment.group or segment.name, start, min(stop, self.n_trs)))
        return tuple(spans)


class Subjects(Settings):
    """Who was scanned, and which version of the stimulus each one saw."""

    ids: Annotated[tuple[str, ...], Field(min_length=1)]
    stimulus: str = MAIN_STIMULUS
    """Stimulus version of everyone whom ``stimulus_of`` does not name."""
    stimulus_of: dict[str, str] = {}
    runs_of: dict[str, tuple[str, ...]] = {}
    """Runs of subjects who do not have them all."""
    only: tuple[str, ...] = ()
    """Subjects that are fitted, ``average`` among them; all if empty. The average is of all all the same."""

    @field_validator("ids")
    @classmethod
    def _unique(cls, ids: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({subject for subject in ids if ids.count(subject) > 1})
        if twice:
            raise ValueError(f"subjects named twice: {', '.join(twice)}")
        return ids


class Bold(Settings):
    """Where BOLD lies."""

    path: str
    """Template with ``{subject}`` and ``{run}``; globs are allowed and must match one file."""
    grayordinates: Literal["cortex", "all"] = "cortex"


class ModelFile(Settings):
    """Which checkpoint of a model to use."""

    checkpoint: str | None = None
    """File name inside ``weights_dir``; None finds the official names."""


class Models(Settings):
    """How features are computed from movies."""

    weights_dir: Path = Path("weights")
    weights: Literal["pretrained", "untrained"] = "pretrained"
    """``untrained`` is a control: the library's own initialisation under ``seed``."""
    seed: NonNegativeInt = 0
    n_layers: Annotated[int, Field(ge=2, le=12)] = 12
    """Transformer layers; fewer than 12 only for untrained models."""
    audio_window_s: PositiveFloat = 10.0
    audio_align: Literal["causal", "centred"] = "causal"
    audio_pool: Literal["tr", "window"] = "tr"
    sets: tuple[str, ...] = ()
    """Feature sets that ``--models all`` stands for; those of the reference study's main table, and the
    feature files, if empty."""
    beats: ModelFile = ModelFile()
    clip: ModelFile = ModelFile()
    cavmae: ModelFile = ModelFile()

    @model_validator(mode="after")
    def _check(self) -> Models:
        if self.n_layers != 12 and self.weights == "pretrained":
            raise ValueError("n_layers is for weights = 'untrained' only: a checkpoint has 12 layers")
        return self


class FeatureFile(Settings):
    """A feature space read from files on the TR grid: ``.npy``, ``.npz`` or ``.mat``."""

    path: str
    """Template with ``{run}``; each file holds (n_trs, n_features)."""
    key: str | None = None
    """Array inside a ``.npz`` or ``.mat``; needed where the file holds more than one."""


class WeightsException(Settings):
    """One fit whose weights are kept in another form than the rest."""

    feature_set: str
    subject: str
    weights: Literal["primal", "dual", "none"]


class Fit(Settings):
    """How voxel blocks are fitted."""

    delays: Annotated[Delays, Field(min_length=1)] = tuple(range(1, 11))
    """Delays of the FIR window, in TRs."""
    alpha_exponents: tuple[float, float] = (-2.0, 5.0)
    """Alphas are ``10**u * trace(Kc) / (n - 1)`` with u between these, Kc the centred training kernel."""
    n_alphas: Annotated[int, Field(ge=1, le=1000)] = 20
    outer: Literal["single", "rotate"] = "single"
    """``rotate`` makes every run the test run once."""
    test_runs: tuple[str, ...] = ()
    """Held-out runs of ``outer = "single"``; the last run if empty."""
    rest: Literal["drop", "keep"] = "drop"
    repeat_train: Literal["drop", "keep"] = "drop"
    """``keep`` leaves repeated clips in training, where they leak into the test run."""
    repeat_test: Literal["keep", "drop", "only"] = "keep"
    split_s: PositiveFloat | None = None
    """Train on the first so many seconds of all runs together, test on the rest; whole runs are held out if
    absent. A run that is cut trains with its first part and tests with the other, a few TRs later."""
    min_fold_trs: NonNegativeInt = 0
    """A run with fewer training rows is no inner fold of its own: it joins the run before it."""
    zscore_bold: Literal["run", "movie"] = "run"
    """``movie`` takes mean and scale from all used rows of all runs, those of the test among them."""
    zscore_features: Literal["train", "movie"] = "train"
    """``movie`` takes mean and scale from all rows, those of the test among them."""
    alpha: Literal["voxel", "shared"] | PositiveFloat = "voxel"
    """``shared``: one alpha for all voxels of a subject, by their mean error in the inner folds. A number
    is that alpha, as it is added to the kernel of the windowed features."""
    basis_tolerance: Annotated[float, Field(gt=0, le=1e-2)] = 1e-5
    solver: Literal["auto", "exact", "fast"] = "auto"
    """How each voxel's alpha is found; `auto` takes the fast solver where it pays."""
    weights: Literal["primal", "dual", "none"] = "primal"
    weights_folds: Literal["last", "all"] = "last"
    weights_exceptions: tuple[WeightsException, ...] = ()
    block: PositiveInt = 10_000
    """Voxels of one task; a multiple of 2,500, the voxels of one shard of weights."""
    backend: Literal["auto", "numpy", "torch", "torch-cuda", "cupy"] = "auto"
    """``torch`` is PyTorch on the CPU; ``torch-cuda`` and ``cupy`` need a CUDA device."""
    tf32: bool = False
    """Choose alphas by products in TF32, where a GPU has it. Refits, r and weights stay in float32."""

    @field_validator("alpha_exponents")
    @classmethod
    def _rising(cls, exponents: tuple[float, float]) -> tuple[float, float]:
        if exponents[0] > exponents[1]:
            raise ValueError(f"the lower exponent comes first, found {list(exponents)}")
        return exponents

    @field_validator("block")
    @classmethod
    def _whole_shards(cls, block: int) -> int:
        if block % 2500:
            raise ValueError(f"must be a multiple of 2500, found {block}")
        return block

    def exponents(self) -> tuple[float, ...]:
        """Exponents u of the alpha grid, rising."""
        low, high = self.alpha_exponents
        step = (high - low) / max(self.n_alphas - 1, 1)
        return tuple(low + step * i for i in range(self.n_alphas))

    def weights_of(self, names: Sequence[str], subject: str) -> Literal["primal", "dual", "none"]:
        """Form in which the weights of one fit are kept; its feature set may have several names."""
        for exception in self.weights_exceptions:
            if exception.feature_set in names and exception.subject == subject:
                return exception.weights
        return self.weights


class Sweeps(Settings):
    """Fits of every feature set in many variants, of which each voxel chooses one inside the training
    runs."""

    delays: Delays = ()
    """Single delays in TRs, each a fit of its own beside the window's."""
    layers: bool = False
    """Every layer of the models."""
    tags: NonNegativeInt | None = None
    """Delay in TRs at which every single tag of ``beats-tags`` and ``cavmae-tags`` is held against BOLD."""
    bands: bool = False
    """Sums of two feature sets with a penalty each: nine ratios of their kernels' scalings, from 1:10,000 to
    10,000:1; a larger scaling is a smaller penalty."""
    subjects: tuple[str, ...] = ()
    """Subjects that they are fitted in, ``average`` among them; all if empty."""

    @property
    def any_asked(self) -> bool:
        """Whether there is anything to sweep over."""
        return bool(self.delays) or self.layers or self.tags is not None or self.bands


class Average(Settings):
    """The pseudo-subject ``average``, whose BOLD is the mean over subjects."""

    bold: Literal["zscored", "raw"] = "zscored"
    """Whether each subject's runs are z-scored before the mean is taken. The mean is z-scored in any case."""
    stimulus: str | None = None
    """Stimulus version whose subjects are averaged and whose features predict; ``subjects.stimulus`` if
    absent."""
    mixed_versions: bool = False
    """Average subjects who saw other versions too."""


class Cluster(Settings):
    """Where tasks run."""

    profile: str = "local"
    """``local`` or ``serial``, both on this machine, or the name of a SLURM site's profile."""
    slurm: dict[str, Any] = {}
    """What this study changes in that profile, in the same tables."""
    n_workers: PositiveInt | None = None
    """Worker processes; None takes one for every core that memory allows."""
    threads_per_worker: PositiveInt | None = None

    @field_validator("profile")
    @classmethod
    def _name(cls, profile: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", profile):
            raise ValueError(f"expected local, serial or the name of a profile, found {profile!r}")
        return profile


class Study(Settings):
    """A study: runs, subjects, features, and how they are fitted."""

    name: Annotated[str, Field(min_length=1)]
    tr_s: PositiveFloat
    """Repetition time in seconds."""
    store: Path = Path("results/study.zarr")
    """The Zarr store; the run folders and the operator cache lie beside it."""
    note: str = ""
    """Shown at the head of every report."""
    preset: Literal["default", "paper"] = "default"
    """``paper``: the settings were those of the reference study as published; said in the report, and no
    more."""
    simulated: bool = False
    """Whether the BOLD is simulated; said in every figure."""
    runs: Annotated[tuple[Run, ...], Field(min_length=1)]
    subjects: Subjects
    bold: Bold
    models: Models = Models()
    feature_files: dict[str, FeatureFile] = {}
    fit: Fit = Fit()
    regions: tuple[str, ...] | None = None
    """Sets of regions that the report sums over: names of `hpcenc.storage.regions.BUILT_IN`, or label
    files. By default ``masks`` and ``glasser-groups``, where the study is on their surface."""
    vertices: tuple[VertexName, ...] = ()
    """Vertices whose courses the report draws beside the best ones: ``left 1234`` of the cortex's surface, or
    ``voxel 1234`` of the voxel axis."""
    tags: tuple[str, ...] = ()
    """AudioSet tags whose courses the report draws; by default those that most vertices chose as their single
    tag, or that vary most."""
    sweeps: Sweeps = Sweeps()
    average: Average | None = None
    cluster: Cluster = Cluster()
    folder: Path = Field(default=Path(), exclude=True)
    """Folder of the study file, from which its paths are taken."""

    @field_validator("store")
    @classmethod
    def _on_disk(cls, store: Path) -> Path:
        if re.match(r"\w+:/", str(store)):
            raise ValueError(f"expected a folder of a file system of this machine, found {str(store)!r}")
        return store

    @model_validator(mode="after")
    def _check(self) -> Study:
        if problems := tuple(cross_problems(self)):
            raise ValueError("\n".join(problems))
        return self

    def resolve(self, path: Path | str) -> Path:
        """Absolute path of one that the study file names."""
        return (self.folder / Path(path).expanduser()).resolve()

    @property
    def store_path(self) -> Path:
        """Absolute path of the Zarr store."""
        return self.resolve(self.store)

    @property
    def fitted(self) -> tuple[str, ...]:
        """Subjects that are fitted, the pseudo-subject ``average`` last if it is one of them."""
        known = (*self.subjects.ids, *((AVERAGE,) if self.average else ()))
        return tuple(subject for subject in known if subject in (self.subjects.only or known))

    @property
    def scanned(self) -> tuple[str, ...]:
        """Subjects whose BOLD is read: all, where their average is fitted."""
        return self.subjects.ids if AVERAGE in self.fitted else self.fitted

    def stimulus_of(self, subject: str) -> str:
        """Stimulus version that a subject saw."""
        return self.subjects.stimulus_of.get(subject, self.subjects.stimulus)

    def runs_of(self, subject: str) -> tuple[Run, ...]:
        """Runs that a subject has, in the study's order."""
        present = self.subjects.runs_of.get(subject)
        return tuple(run for run in self.runs if present is None or run.name in present)


def load_study(path: Path) -> Study:
    """Read a study file.

    Parameters
    ----------
    path : Path
        A TOML file; its folder is the one that relative paths start from.

    Raises
    ------
    StudyError
        Every problem of the file at once, each with the key, what was expected and what was found.
    """
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise StudyError(f"{path}: no such study file. Write one with `hpcenc init`.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read as a study file: {error}") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise StudyError(f"{path}: not valid TOML: {error}") from None
    folder = path.resolve().parent
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise StudyError(
            f"folder {str(folder)!r}: its name is not UTF-8, which a run's files need; rename it"
        ) from None
    return parse_study(data, folder=folder, where=path.name)


def parse_study(data: dict[str, Any], folder: Path, where: str = "study") -> Study:
    """Study of a parsed TOML table; `load_study` says the rest."""
    problems = []
    if "folder" in data:  # a field of the study, but no key of its file
        problems.append(f"folder: unknown key; known keys: {', '.join(known_keys(Study, ()))}")
    try:
        # By way of JSON, where strict means what it does in TOML: "10" is no number, a list is a tuple.
        text = json.dumps({**data, "folder": str(folder)}, default=str)
        study = Study.model_validate_json(text, strict=True)
        problems += file_problems(study)
    except ValidationError as error:
        problems += describe_problems(error, Study)
    if problems:
        raise StudyError([f"{where}: {problem}" for problem in problems])
    return study
