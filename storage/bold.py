"""BOLD of one subject and run: finding the file, its header, its axes, its voxel blocks.

CIFTI-2 (``.dtseries.nii``) and plain arrays (``.npy``, (n_trs, n_voxels)). A header costs a
millisecond and a block one read; the axes of a CIFTI file cost half a second of XML.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from nibabel import Nifti2Header
from nibabel.cifti2 import BrainModelAxis, SeriesAxis
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from hpcenc.storage.errors import BoldError, StudyError
from hpcenc.storage.voxels import VoxelAxis, load_cifti

CIFTI_SUFFIX = ".dtseries.nii"
PLAIN_SUFFIX = ".npy"
SAMPLE_BYTES = 4096

SUFFIXES = (CIFTI_SUFFIX, PLAIN_SUFFIX)
"""Ends of the names of files that can be read."""


@dataclass(frozen=True)
class BoldHeader:
    """What the first bytes of a BOLD file say of it."""

    path: Path
    n_trs: int
    n_voxels: int
    """All that the file holds, whichever a study asks for."""
    dtype: np.dtype[Any]
    offset: int
    """Bytes before the first value."""
    layout: Literal["voxels", "trs"]
    """What is contiguous on disk: each voxel's time course, or each TR."""
    slope: float
    inter: float
    """A stored value v means ``slope * v + inter``."""
    size: int
    mtime_ns: int
    header_digest: str
    """Of the header, and of samples of the data: other data may have the same header, size and time."""
    axes: str = ""
    """Names its axes: files of one name here share them. Empty as long as nobody looked."""

    @property
    def identity(self) -> dict[str, Any]:
        """What of the file enters a fit's digest; the path does not."""
        return {"size": self.size, "mtime_ns": self.mtime_ns, "header": self.header_digest}


def find_bold(template: str, folder: Path, subject: str, run: str) -> Path:
    """BOLD file of one subject and run.

    Parameters
    ----------
    template : str
        Path with ``{subject}`` and ``{run}``; may hold globs (``*``, ``?``, ``[...]``, ``**``).
    folder : Path
        Where a relative template starts.

    Raises
    ------
    StudyError
        If no file fits, or several do.
    """
    literal = folder / Path(_fill(template, subject, run)).expanduser()
    if os.path.isfile(literal):  # also one whose name only looks like a glob
        return literal
    escaped = Path(_fill(template, glob.escape(subject), glob.escape(run))).expanduser()
    is_below = not escaped.is_absolute()
    pattern = str(Path(glob.escape(str(folder))) / escaped)
    # Not subject 10 where subject 1 is asked for, and a wildcard stands beside it.
    whole = _name_pattern(os.path.normpath(Path(template).expanduser()), subject, run)
    found = sorted(
        Path(path)
        for path in glob.glob(pattern, recursive=True)
        if os.path.isfile(path)
        and whole.fullmatch(os.path.relpath(path, folder) if is_below else os.path.normpath(path))
    )
    if len(found) == 1:
        return found[0]
    where = f"bold.path: subject {subject!r}, run {run!r}: expected one file of {literal}"
    if found:
        names = ", ".join(str(path) for path in found[:3]) + (", ..." if len(found) > 3 else "")
        raise StudyError(f"{where}, found {len(found)}: {names}. Narrow the template down.")
    raise StudyError(f"{where}, found none; {_nearest_folder(literal)}. Correct the template or runs_of.")


def _name_pattern(template: str, subject: str, run: str) -> re.Pattern[str]:
    """What names a template stands for, as a regular expression.

    A wildcard beside a subject or run does not go on with its digits or letters.
    """
    parts = [
        part for part in re.split(r"(\{subject\}|\{run\}|\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\])", template) if part
    ]
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def is_wild(place: int) -> bool:
        return 0 <= place < len(parts) and (parts[place] in wild or parts[place][0] == "[")

    pattern = ""
    for place, part in enumerate(parts):
        if part in ("{subject}", "{run}"):
            name = subject if part == "{subject}" else run
            before = f"(?<!{_kin(name[:1])})" if is_wild(place - 1) else ""
            after = f"(?!{_kin(name[-1:])})" if is_wild(place + 1) else ""
            pattern += f"{before}{re.escape(name)}{after}"
        elif part[0] == "[" and is_wild(place):
            inner = part[1:-1].replace("\\", r"\\").replace("[", r"\[")
            pattern += f"[^{inner[1:]}]" if inner[0] == "!" else f"[{inner}]"
        else:
            pattern += wild.get(part) or re.escape(part)
    return re.compile(pattern, re.DOTALL)


def _kin(character: str) -> str:
    """What would make a name with this first or last character another one."""
    return r"\d" if character.isdigit() else "[A-Za-z]" if character.isalpha() else r"[^\s\S]"


def read_header(path: Path) -> BoldHeader:
    """Header of a BOLD file, without the XML of a CIFTI file.

    Raises
    ------
    BoldError
        If the file is missing, of another format, truncated, or longer than its header says.
    """
    try:
        if path.name.endswith(CIFTI_SUFFIX):
            header = _read_cifti_header(path)
        elif path.name.endswith(PLAIN_SUFFIX):
            header = _read_plain_header(path)
        else:
            raise BoldError(f"{path}: expected a file that ends in {' or '.join(SUFFIXES)}")
    except OSError as error:
        raise BoldError(f"{path}: cannot be read: {error.strerror or error}") from error
    expected = header.offset + header.n_trs * header.n_voxels * header.dtype.itemsize
    if header.size != expected:
        state = "truncated" if header.size < expected else "longer than its header says"
        raise BoldError(
            f"{path}: {state}: {header.n_trs} TRs of {header.n_voxels} voxels need {expected} bytes, "
            f"found {header.size}. Copy or download it again."
        )
    return header


def name_axes(header: BoldHeader) -> BoldHeader:
    """The same header with its axes named, by a hash of everything before the data.

    Raises
    ------
    BoldError
        If the file cannot be read.
    """
    try:
        with header.path.open("rb") as file:
            before_data = file.read(header.offset)
    except OSError as error:
        raise BoldError(f"{header.path}: cannot be read: {error.strerror or error}") from error
    return replace(header, axes=hashlib.sha256(before_data).hexdigest()[:16])


def read_axes(path: Path) -> tuple[VoxelAxis, float | None]:
    """Voxel axis and TR of a BOLD file.

    Returns
    -------
    voxels : VoxelAxis
        All that the file holds.
    tr_s : float or None
        Seconds; None for plain arrays, which do not say it.

    Raises
    ------
    BoldError
        If the file cannot be read, its columns are not grayordinates, or its rows not times.
    """
    header = read_header(path)
    if not path.name.endswith(CIFTI_SUFFIX):
        return VoxelAxis.from_count(header.n_voxels), None
    try:
        cifti = load_cifti(path).header
        rows, columns = cifti.get_axis(0), cifti.get_axis(1)
    except Exception as error:  # what a parser raises of damaged XML is anything
        raise BoldError(f"{path}: the CIFTI-2 header cannot be read: {error}") from error
    if not isinstance(rows, SeriesAxis) or rows.unit != "SECOND":
        raise BoldError(
            f"{path}: expected rows in seconds, found {_describe(rows)}. Use a dense time series."
        )
    if not isinstance(columns, BrainModelAxis):
        raise BoldError(
            f"{path}: expected columns of grayordinates, found {_describe(columns)}. Use a dense time series."
        )
    if (len(rows), len(columns)) != (header.n_trs, header.n_voxels):
        raise BoldError(
            f"{path}: its XML describes {len(rows)} TRs of {len(columns)} grayordinates, its binary header "
            f"{header.n_trs} of {header.n_voxels}. The file is damaged."
        )
    return VoxelAxis.from_cifti(columns), float(rows.step)


def read_block(
    header: BoldHeader, voxels: slice, positions: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """One voxel block of a BOLD file.

    Parameters
    ----------
    header : BoldHeader
        From `read_header`.
    voxels : slice
        The block on the study's voxel axis.
    positions : array of shape (n_study_voxels,), optional
        Where each voxel of the study lies in the file (`VoxelAxis.positions`); the file's own
        order if absent. Neighbours in the file are read in one go.

    Returns
    -------
    array of shape (n_trs, n_block)
        C-contiguous; values as stored, scaled if the file says so, NaN kept.

    Raises
    ------
    BoldError
        If the data cannot be read, or end before the block does.
    """
    index = np.arange(header.n_voxels)[voxels] if positions is None else positions[voxels]
    if index.size and index.max() >= header.n_voxels:
        raise BoldError(f"{header.path}: voxel {index.max()} was asked for, the file has {header.n_voxels}")
    try:
        block = _read_columns(header, index) if header.layout == "trs" else _read_courses(header, index).T
    except BoldError:
        raise
    except (OSError, EOFError, ValueError) as error:
        raise BoldError(f"{header.path}: the data of its voxels cannot be read: {error}") from error
    if (header.slope, header.inter) != (1.0, 0.0):
        block = np.multiply(block, header.slope, dtype=np.float64) + header.inter
    return np.ascontiguousarray(block, dtype=np.float32)


def _read_cifti_header(path: Path) -> BoldHeader:
    with path.open("rb") as file:
        head = file.read(Nifti2Header.template_dtype.itemsize)
        status = os.fstat(file.fileno())
    if len(head) < Nifti2Header.template_dtype.itemsize or head[4:8] != b"n+2\0":
        raise BoldError(f"{path}: expected a CIFTI-2 file, found {_guess(head)}")
    try:
        nifti = Nifti2Header(head, check=False)
        dtype, shape = nifti.get_data_dtype(), nifti.get_data_shape()
        slope, inter = nifti.get_slope_inter()
        offset = int(nifti["vox_offset"])
    except (HeaderDataError, ValueError) as error:
        raise BoldError(f"{path}: its CIFTI-2 header is damaged: {error}") from error
    if len(shape) != 6 or shape[:4] != (1, 1, 1, 1) or min(shape) < 1 or dtype.kind not in "fiu":
        raise BoldError(f"{path}: expected numbers by TR and grayordinate, found {dtype} of shape {shape}")
    with path.open("rb") as file:
        found = _digest(file, head, offset, status.st_size)
    return BoldHeader(
        path=path,
        n_trs=int(shape[4]),
        n_voxels=int(shape[5]),
        dtype=dtype,
        offset=offset,
        layout="voxels",  # NIfTI's first index runs fastest, and time comes before grayordinates
        slope=1.0 if slope is None else float(slope),
        inter=0.0 if inter is None else float(inter),
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        header_digest=found,
    )


def _read_plain_header(path: Path) -> BoldHeader:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        try:
            shape, by_voxel, dtype = _read_npy_header(file)
        except ValueError as error:
            file.seek(0)
            raise BoldError(
                f"{path}: expected a NumPy array, found {_guess(file.read(540))}: {error}"
            ) from error
        offset = file.tell()
        file.seek(0)
        head = file.read(offset)
        found = _digest(file, head, offset, status.st_size)
    if len(shape) != 2 or min(shape) < 1 or dtype.kind not in "fiu":
        raise BoldError(
            f"{path}: expected numbers of shape (n_trs, n_voxels), found {dtype} of shape {shape}"
        )
    return BoldHeader(
        path=path,
        n_trs=shape[0],
        n_voxels=shape[1],
        dtype=dtype,
        offset=offset,
        layout="voxels" if by_voxel else "trs",
        slope=1.0,
        inter=0.0,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        header_digest=found,
    )


def _read_npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and dtype; the file stands at its first value then."""
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)


def _read_courses(header: BoldHeader, index: NDArray[np.int64]) -> NDArray[Any]:
    """Stored values (n_block, n_trs) of a file whose time courses are contiguous.

    Read rather than mapped: a mapped file that shrinks, or a disk that fails, kills the process.
    """
    course_bytes = header.n_trs * header.dtype.itemsize
    raw = np.empty((len(index), course_bytes), np.uint8)
    with _open(header) as file:
        for part in _contiguous_parts(index):
            file.seek(header.offset + int(index[part.start]) * course_bytes)
            wanted = raw[part].data.cast("B")
            if file.readinto(wanted) != len(wanted):
                raise EOFError("the file ends too early")
    return raw.view(header.dtype)


def _read_columns(header: BoldHeader, index: NDArray[np.int64]) -> NDArray[Any]:
    """Stored values (n_trs, n_block) of a file whose TRs are contiguous."""
    shape = (header.n_trs, header.n_voxels)
    with _open(header) as file:
        mapped = np.memmap(file, header.dtype, "r", header.offset, shape)
    parts = list(_contiguous_parts(index))
    if len(parts) == 1:
        return np.array(mapped[:, index[0] : index[-1] + 1])
    return mapped[:, index]


def _open(header: BoldHeader) -> BufferedReader:
    """The file, if it is the one that the header is of."""
    file = header.path.open("rb")
    status = os.fstat(file.fileno())
    if (status.st_size, status.st_mtime_ns) != (header.size, header.mtime_ns):
        file.close()
        raise BoldError(f"{header.path}: has changed since the plan was made. Submit again.")
    return file


def _digest(file: BinaryIO, head: bytes, offset: int, size: int) -> str:
    """Of a header and of samples of the data: the first, the middle and the last."""
    digest = hashlib.sha256(head)
    for place in (offset, (offset + size) // 2, size - SAMPLE_BYTES):
        file.seek(max(offset, place))
        digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _contiguous_parts(index: NDArray[np.int64]) -> Iterator[slice]:
    """Stretches of an index that rise by one."""
    edges = np.flatnonzero(np.diff(index) != 1) + 1
    starts = [0, *edges.tolist(), len(index)]
    for start, stop in pairwise(starts):
        if stop > start:
            yield slice(start, stop)


def _fill(template: str, subject: str, run: str) -> str:
    return template.replace("{subject}", subject).replace("{run}", run)


def _nearest_folder(path: Path) -> str:
    """What there is on the way to a path that is missing."""
    folder = next(parent for parent in path.parents if os.path.isdir(parent))
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return f"{folder} cannot be listed: {error.strerror}"
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{folder} holds {some or 'nothing'}"


def _describe(axis: object) -> str:
    name = type(axis).__name__
    return f"a {name} in {axis.unit}" if isinstance(axis, SeriesAxis) else f"a {name}"


def _guess(head: bytes) -> str:
    """What a file is instead, from its first bytes."""
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html")):
        return "a web page (a login or error page was saved in its place)"
    if text.startswith(b"version https://git-lfs") or b"annex/objects" in text:
        return "a pointer of Git LFS or git-annex (get the content first)"
    if head.startswith(b"\x1f\x8b"):
        return "a gzip file (unpack it first)"
    if head[344:348] in (b"n+1\0", b"ni1\0"):
        return "a NIfTI-1 file"
    if not head:
        return "an empty file"
    return "something else"
