"""Site profiles: what a cluster's partitions are called and what a job has to ask for, in TOML."""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
)

from hpcenc.slurm.values import (
    check_constraint,
    check_directive,
    check_folder,
    check_gpu_request,
    check_interface,
    check_line,
    check_name,
    check_nodes,
    check_partitions,
    parse_memory,
    parse_ports,
    parse_umask,
    parse_walltime,
)

HERE = ("local", "serial")
"""Run on this machine: no profile of a site may be called so."""

SITE_FOLDER = Path("/etc/hpcenc/profiles")

OVERRIDES = "cluster.slurm of the study"
"""Where values come from that no file of a profile holds."""

Name = Annotated[str, AfterValidator(check_name)]
Folder = Annotated[str, AfterValidator(check_folder)]


class ProfileError(ValueError):
    """A profile cannot be used; holds every problem found.

    Parameters
    ----------
    problems : sequence of str
        One line each: where, which key, what was expected, what was found.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class Table(BaseModel):
    """Base of all tables: frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Jobs(Table):
    """What the jobs of one role ask for."""

    partition: Annotated[str, AfterValidator(check_partitions)]
    """Where they queue: one partition, or several joined by commas."""
    account: Name | None = None
    """Who pays; left out where the site asks for none."""
    qos: Name | None = None
    """Quality of service; left out for the site's own."""
    walltime_min: Annotated[int, BeforeValidator(parse_walltime)] = Field(alias="walltime")
    """Limit of each job, in minutes or as SLURM writes it: ``"04:00:00"``, ``"1-12:00:00"``."""
    directives: tuple[Annotated[str, AfterValidator(check_directive)], ...] = ()
    """More options of sbatch, such as ``"--mail-type=FAIL"``; none that has a key here."""


class Controller(Jobs):
    """The one small job that plans, places tasks and asks for workers: never where jobs are preempted."""

    cores: PositiveInt = 1
    """CPU cores."""
    memory_bytes: Annotated[int, BeforeValidator(parse_memory)] = Field(4 * 1024**3, alias="memory")
    """Memory, such as ``"4G"``, which is the default."""


class Workers(Jobs):
    """The jobs that compute; one job is one worker."""

    cores: PositiveInt
    """CPU cores of a worker."""
    memory_bytes: Annotated[int, BeforeValidator(parse_memory)] = Field(alias="memory")
    """Memory of a worker, such as ``"16G"``."""
    constraint: Annotated[str, AfterValidator(check_constraint)] | None = None
    """Features that its node must have, such as ``"a100|h100"``."""
    exclude: Annotated[str, AfterValidator(check_nodes)] | None = None
    """Nodes to keep away from, such as ``"gpu[03-04]"``."""
    max_jobs: PositiveInt = 8
    """Workers at one time, at most; no more are asked for than there is work."""


class GpuWorkers(Workers):
    """The jobs that extract features and fit, one GPU each."""

    gpu_request: Annotated[str, AfterValidator(check_gpu_request)]
    """How one GPU is asked for: ``"--gres=gpu:1"``, ``"--gpus=1"``, ``"--gres=gpu:a100_1g.5gb:1"``."""

    @field_validator("directives")
    @classmethod
    def _one_gres(cls, directives: tuple[str, ...]) -> tuple[str, ...]:
        if any(directive.startswith("--gres=") for directive in directives):
            raise ValueError("expected no --gres here, which would replace that of the key 'gpu_request'")
        return directives


class Network(Table):
    """How workers reach the controller."""

    interface: Annotated[str, AfterValidator(check_interface)] | None = None
    """Network interface of the nodes, such as ``"ib0"``; left out, the one that leads to the other nodes."""
    ports: Annotated[tuple[int, int], BeforeValidator(parse_ports)] | None = None
    """Ports that the site leaves open between nodes, such as ``"40000-40100"``; left out, any free one."""


class SlurmProfile(Table):
    """A site: who may use it, and what its jobs ask for."""

    scratch: Folder
    """Fast folder of a node; ``$TMPDIR``, ``$USER``, ``$SLURM_JOB_ID`` and the like are expanded there."""
    cache: Folder | None = None
    """Where libraries keep compiled code; left out, within ``scratch``. Never the home folder."""
    umask: Annotated[int, BeforeValidator(parse_umask)] | None = None
    """Umask of all jobs, such as ``"007"`` for results that the group may write."""
    group: Name | None = None
    """Unix group that new files belong to."""
    prologue: tuple[Annotated[str, AfterValidator(check_line)], ...] = ()
    """Lines of shell that make ``hpcenc`` runnable on a node: modules, a venv, conda."""
    controller: Controller
    cpu: Workers
    gpu: GpuWorkers | None = None
    """Left out at a site without GPUs: everything runs on the workers of ``cpu``."""
    network: Network = Network()

    def workers(self, kind: Literal["cpu", "gpu"]) -> Workers:
        """The jobs for tasks of one kind."""
        return self.cpu if kind == "cpu" or self.gpu is None else self.gpu


@dataclass
class MergedProfile:
    """Tables of all the files of a profile, one upon the other, not yet checked.

    Attributes
    ----------
    tables : dict
        The values.
    sources : dict
        Where each value comes from, by the path of its key.
    """

    name: str
    tables: dict[str, Any] = field(default_factory=dict)
    sources: dict[tuple[str, ...], str] = field(default_factory=dict)

    def add(self, tables: Mapping[str, Any], source: str) -> None:
        """Put a file upon what is there, table by table and key by key."""
        for key, value in tables.items():
            if isinstance(value, Mapping):
                table = self.tables.get(key)
                self.tables[key] = {**(table if isinstance(table, dict) else {}), **value}
                self.sources |= {(key, inner): source for inner in value}
            else:
                self.tables[key] = value
            self.sources[(key,)] = source

    def settings(self) -> Iterator[tuple[str, Any, str]]:
        """Key, value and source of everything that is set, the keys of a table together."""
        for key, value in self.tables.items():
            if isinstance(value, dict):
                for inner, found in value.items():
                    yield f"{key}.{inner}", found, self.sources[key, inner]
            else:
                yield key, value, self.sources[key,]

    def checked(self) -> SlurmProfile:
        """The profile, if nothing is wrong with it.

        Raises
        ------
        ProfileError
            Every problem, each with its file and key, what was expected and what was found.
        """
        problems = []
        if self.sources.get(("prologue",)) == OVERRIDES:
            problems.append(
                f"{OVERRIDES}: prologue: expected in a profile of yours or of the site only, for it is code "
                f"that jobs run; found {self.tables['prologue']!r}"
            )
        try:
            # By way of JSON, where strict means what it does in TOML: "10" is no number, a list is a tuple.
            profile = SlurmProfile.model_validate_json(json.dumps(self.tables, default=str), strict=True)
        except ValidationError as error:
            raise ProfileError(*problems, *self._problems(error)) from None
        if problems:
            raise ProfileError(*problems)
        return profile

    def _problems(self, error: ValidationError) -> Iterator[str]:
        """A line for each error of pydantic."""
        for item in error.errors():
            loc = item["loc"]
            key = ".".join(str(part + 1 if isinstance(part, int) else part) for part in loc)
            where = f"{self._source(loc)}: {key}"
            message = item["msg"].removeprefix("Value error, ")
            if item["type"] == "extra_forbidden":
                known = _known_keys(loc[:-1])
                near = difflib.get_close_matches(str(loc[-1]), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
                yield f"{where}: unknown key; {hint}"
            elif item["type"] == "missing":
                yield f"{where}: required, but absent"
            else:
                yield f"{where}: {message[0].lower()}{message[1:]}, found {item['input']!r}"

    def _source(self, loc: tuple[int | str, ...]) -> str:
        """Where a key, or else the table that it lacks in, comes from."""
        path = tuple(str(part) for part in loc[:2])
        found = self.sources.get(path) or self.sources.get(path[:1])
        return found or f"profile {self.name!r}"


def profile_folders() -> tuple[Path, ...]:
    """Where profiles lie, the strongest first: the user's folder, then those of the site.

    ``HPCENC_PROFILES`` names the site's, joined by colons.
    """
    folders = [Path(part) for part in os.environ.get("HPCENC_PROFILES", "").split(":") if part]
    return (user_folder(), *(folders or [SITE_FOLDER]))


def user_folder() -> Path:
    """Where the user's own profiles lie."""
    home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(home) / "hpcenc" / "profiles"


def profile_path(name: str) -> Path:
    """The user's own file of a profile.

    Raises
    ------
    ProfileError
        If a profile cannot be called so.
    """
    if not _is_name(name):
        raise ProfileError(
            f"profile: expected a name of letters, digits, '.', '_' and '-', neither {' nor '.join(HERE)}; "
            f"found {name!r}"
        )
    return user_folder() / f"{name}.toml"


def list_profiles() -> dict[str, tuple[Path, ...]]:
    """Files of every profile, by name; the strongest first."""
    found: dict[str, tuple[Path, ...]] = {}
    for folder in profile_folders():
        for path in sorted(folder.glob("*.toml")):
            if _is_name(path.stem):
                found[path.stem] = (*found.get(path.stem, ()), path)
    return dict(sorted(found.items()))


def read_profile(name: str, *, overrides: Mapping[str, Any] | None = None) -> MergedProfile:
    """Files of a profile, one upon the other and the overrides on top; `find_profile` checks them too.

    Raises
    ------
    ProfileError
        If there is no such profile, or a file of it cannot be read.
    """
    files = list_profiles().get(name, ())
    if not files:
        known = ", ".join((*HERE, *list_profiles()))
        folders = ", ".join(str(folder) for folder in profile_folders())
        way_out = f". Write one with `hpcenc profile init {name}`" if _is_name(name) else ""
        raise ProfileError(f"profile: expected one of {known}, found {name!r}; looked in {folders}{way_out}")
    merged, problems = MergedProfile(name), []
    for path in reversed(files):
        try:
            merged.add(tomllib.loads(path.read_bytes().decode()), str(path))
        except tomllib.TOMLDecodeError as error:
            problems.append(f"{path}: not valid TOML: {error}")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(f"{path}: cannot be read as a profile: {error}")
    if problems:
        raise ProfileError(*problems)
    merged.add(overrides or {}, OVERRIDES)
    return merged


def find_profile(name: str, *, overrides: Mapping[str, Any] | None = None) -> SlurmProfile:
    """A site profile, by its name.

    Parameters
    ----------
    name : str
        That of a file ``NAME.toml`` in one of `profile_folders`. A file of the user lies upon the site's
        of the same name, table by table and key by key.
    overrides : mapping, optional
        What a study changes, in the same tables; any key but ``prologue``.

    Raises
    ------
    ProfileError
        If there is no such profile; else every problem of it at once.
    """
    return read_profile(name, overrides=overrides).checked()


def _is_name(name: str) -> bool:
    """Whether a profile may be called so."""
    return name not in HERE and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) is not None


def _known_keys(loc: tuple[int | str, ...]) -> list[str]:
    """Keys of the table at a path of a profile."""
    table: type[Table] = SlurmProfile
    for part in loc:
        annotation = table.model_fields[str(part)].annotation
        parts = (annotation, *get_args(annotation))
        table = next(kind for kind in parts if isinstance(kind, type) and issubclass(kind, Table))
    return [found.alias or key for key, found in table.model_fields.items()]
