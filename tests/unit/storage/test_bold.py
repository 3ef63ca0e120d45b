from __future__ import annotations

import gzip
import os
import pickle
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.cifti2 import BrainModelAxis, Cifti2Header, ParcelsAxis, ScalarAxis, SeriesAxis
from numpy.typing import NDArray

from hpcenc.storage.bold import find_bold, name_axes, read_axes, read_block, read_header
from hpcenc.storage.errors import BoldError, StudyError
from hpcenc.storage.geometry import grayordinates_axis

N_TRS = 12


def write_cifti(path: Path, data: NDArray[Any], rows: Any, columns: Any, dtype: Any = np.float32) -> Path:
    image = nibabel.Cifti2Image(data, Cifti2Header.from_axes((rows, columns)))
    image.nifti_header.set_intent("NIFTI_INTENT_CONNECTIVITY_DENSE_SERIES")
    image.set_data_dtype(dtype)
    image.to_filename(path)
    return path


@pytest.fixture(scope="module")
def hcp_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HCP's grayordinates, few TRs."""
    data = np.random.default_rng(0).standard_normal((N_TRS, 91282), dtype=np.float32)
    data[3, 17] = np.nan
    path = tmp_path_factory.mktemp("bold") / "run.dtseries.nii"
    return write_cifti(path, data, SeriesAxis(0, 1.0, N_TRS), grayordinates_axis().to_cifti())


def mixed_axis() -> BrainModelAxis:
    """Voxels between the hemispheres, so that cortex is in two parts."""
    left = BrainModelAxis.from_surface(np.arange(0, 10, 2), 10, name="CortexLeft")
    right = BrainModelAxis.from_surface(np.arange(1, 10, 3), 10, name="CortexRight")
    thalamus = BrainModelAxis.from_mask(np.ones((2, 2, 1), bool), affine=np.eye(4), name="thalamus_left")
    return thalamus[:2] + left + thalamus[2:] + right


def test_blocks_are_the_columns_that_nibabel_gives(hcp_file: Path) -> None:
    header = read_header(hcp_file)
    whole = nibabel.load(hcp_file).get_fdata(dtype=np.float32)
    positions = read_axes(hcp_file)[0].positions("cortex")
    assert (header.n_trs, header.n_voxels, header.layout) == (N_TRS, 91282, "voxels")
    for block in (slice(0, 10_000), slice(50_000, 60_000), slice(17, 18)):
        found = read_block(header, block, positions)
        np.testing.assert_array_equal(found, whole[:, :59412][:, block])
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
    np.testing.assert_array_equal(read_block(header, slice(91_000, 100_000)), whole[:, 91_000:])


def test_axes_and_tr_are_read(hcp_file: Path) -> None:
    axis, tr_s = read_axes(hcp_file)
    assert tr_s == 1.0
    assert axis.digest() == grayordinates_axis().digest()


def test_the_tr_is_in_seconds_whatever_its_exponent(tmp_path: Path) -> None:
    columns = mixed_axis()
    header = Cifti2Header.from_axes((SeriesAxis(0, 1490, 3), columns))
    header.get_index_map(0).series_exponent = -3
    path = tmp_path / "a.dtseries.nii"
    nibabel.Cifti2Image(np.zeros((3, len(columns)), np.float32), header).to_filename(path)
    assert read_axes(path)[1] == pytest.approx(1.49)


def test_a_cortex_in_two_parts_is_read_in_its_order(tmp_path: Path) -> None:
    columns = mixed_axis()
    data = np.random.default_rng(1).standard_normal((5, len(columns))).astype(np.float32)
    path = write_cifti(tmp_path / "a.dtseries.nii", data, SeriesAxis(0, 2.0, 5), columns)
    positions = read_axes(path)[0].positions("cortex")
    assert positions.tolist() == [2, 3, 4, 5, 6, 9, 10, 11]
    np.testing.assert_array_equal(
        read_block(read_header(path), slice(3, 7), positions), data[:, [5, 6, 9, 10]]
    )
    np.testing.assert_array_equal(
        read_block(read_header(path), slice(0, 4), positions[::-1]), data[:, [11, 10, 9, 6]]
    )


def test_a_file_with_its_medial_wall_is_read_whole(tmp_path: Path) -> None:
    left, right = (
        BrainModelAxis.from_surface(np.arange(32492), 32492, name=name)
        for name in ("CortexLeft", "CortexRight")
    )
    data = np.random.default_rng(2).standard_normal((2, 64984)).astype(np.float32)
    path = write_cifti(tmp_path / "a.dtseries.nii", data, SeriesAxis(0, 1.0, 2), left + right)
    positions = read_axes(path)[0].positions("cortex")
    found = read_block(read_header(path), slice(60_000, None), positions)
    np.testing.assert_array_equal(found, data[:, 60_000:])


def test_scaled_integers_are_read_as_nibabel_reads_them(tmp_path: Path) -> None:
    columns = mixed_axis()
    data = np.random.default_rng(3).normal(9000, 40, (6, len(columns)))
    path = write_cifti(tmp_path / "a.dtseries.nii", data, SeriesAxis(0, 1.0, 6), columns, dtype=np.int16)
    header = read_header(path)
    assert header.dtype == np.int16
    assert header.slope != 1.0
    found = read_block(header, slice(None))
    np.testing.assert_array_equal(found, nibabel.load(path).get_fdata().astype(np.float32))
    np.testing.assert_allclose(found, data, atol=0.01)


def test_the_other_byte_order_is_read(tmp_path: Path) -> None:
    columns = mixed_axis()
    data = np.random.default_rng(4).standard_normal((6, len(columns))).astype(np.float32)
    native = nibabel.load(write_cifti(tmp_path / "a.dtseries.nii", data, SeriesAxis(0, 1.0, 6), columns))
    swapped = nibabel.Nifti2Header(endianness=">")
    swapped.set_data_dtype(">f4")
    swapped.set_intent("NIFTI_INTENT_CONNECTIVITY_DENSE_SERIES")
    swapped.extensions.extend(native.nifti_header.extensions)
    image = nibabel.Nifti2Image(data.reshape(1, 1, 1, 1, 6, -1), None, swapped)
    path = tmp_path / "b.dtseries.nii"
    path.write_bytes(image.to_bytes())
    assert read_header(path).dtype.byteorder == ">"
    assert read_axes(path)[0].to_cifti() == columns
    np.testing.assert_array_equal(read_block(read_header(path), slice(2, 9)), data[:, 2:9])


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "i2"])
def test_plain_arrays_are_read_in_either_order(tmp_path: Path, order: Any, dtype: str) -> None:
    data = np.random.default_rng(4).normal(0, 100, (7, 30)).astype(dtype)
    np.save(tmp_path / "a.npy", np.asarray(data, order=order))
    header = read_header(tmp_path / "a.npy")
    axis, tr_s = read_axes(tmp_path / "a.npy")
    assert (axis.n_voxels, axis.is_plain, tr_s) == (30, True, None)
    for positions in (None, axis.positions("cortex"), np.arange(30)[::-1].copy()):
        block = read_block(header, slice(4, 11), positions)
        columns = np.arange(4, 11) if positions is None else positions[4:11]
        np.testing.assert_array_equal(block, data[:, columns].astype(np.float32))
        assert block.flags.c_contiguous


def test_a_truncated_file_is_refused_before_and_while_reading(tmp_path: Path, hcp_file: Path) -> None:
    path = tmp_path / "cut.dtseries.nii"
    path.write_bytes(hcp_file.read_bytes())
    header = read_header(path)
    os.truncate(path, header.size - 4)
    with pytest.raises(
        BoldError, match=r"cut.dtseries.nii: truncated: 12 TRs of 91282 voxels need \d+ bytes"
    ):
        read_header(path)
    with pytest.raises(BoldError, match=r"cut.dtseries.nii: has changed since the plan was made"):
        read_block(header, slice(0, 90_000))
    os.truncate(path, 300)
    with pytest.raises(BoldError, match="expected a CIFTI-2 file"):
        read_header(path)
    path.unlink()
    with pytest.raises(BoldError, match="cannot be read: No such file"):
        read_header(path)
    with pytest.raises(BoldError, match=r"cannot be read: .*No such file"):
        read_block(header, slice(0, 10))


def test_a_longer_file_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4)))
    with (tmp_path / "a.npy").open("ab") as file:
        file.write(b"more")
    with pytest.raises(BoldError, match="longer than its header says: 3 TRs of 4 voxels"):
        read_header(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"<!DOCTYPE html><html>sign in</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"../../.git/annex/objects/a/b", "git-annex"),
        (gzip.compress(b"x" * 1000, mtime=0), "a gzip file"),
        (b"", "an empty file"),
        (bytes(1000), "something else"),
        (nibabel.Nifti1Image(np.zeros((2, 2, 2, 2)), np.eye(4)).to_bytes(), "a NIfTI-1 file"),
    ],
)
@pytest.mark.parametrize("suffix", [".dtseries.nii", ".npy"])
def test_other_files_are_named(tmp_path: Path, content: bytes, found: str, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(BoldError, match=f"a{suffix}: expected a.*, found .*{found}"):
        read_header(path)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.func.gii", "a.h5", "a.ptseries.nii"])
def test_other_formats_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"data")
    with pytest.raises(BoldError, match=r"expected a file that ends in \.dtseries\.nii or \.npy"):
        read_header(tmp_path / name)


@pytest.mark.parametrize(
    "array", [np.zeros(4), np.zeros((2, 2, 2)), np.zeros((0, 4)), np.zeros((2, 2), complex)]
)
def test_plain_arrays_of_another_shape_are_refused(tmp_path: Path, array: NDArray[Any]) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(BoldError, match=r"expected numbers of shape \(n_trs, n_voxels\)"):
        read_header(tmp_path / "a.npy")


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[{}]], dtype=object), allow_pickle=True)
    with pytest.raises(BoldError, match="expected numbers"):
        read_header(tmp_path / "a.npy")


def test_axes_of_another_kind_are_refused(tmp_path: Path) -> None:
    columns = mixed_axis()
    parcels = ParcelsAxis.from_brain_models([("one", columns[2:4]), ("two", columns[4:6])])
    cases = {
        "parcels": (SeriesAxis(0, 1.0, 3), parcels, "expected columns of grayordinates, found a ParcelsAxis"),
        "maps": (ScalarAxis(["a", "b", "c"]), columns, "expected rows in seconds, found a ScalarAxis"),
        "hertz": (
            SeriesAxis(0, 1.0, 3, "HERTZ"),
            columns,
            "expected rows in seconds, found a SeriesAxis in HERTZ",
        ),
    }
    for name, (rows, of_columns, message) in cases.items():
        path = write_cifti(
            tmp_path / f"{name}.dtseries.nii", np.zeros((3, len(of_columns))), rows, of_columns
        )
        with pytest.raises(BoldError, match=f"{name}.dtseries.nii: {message}"):
            read_axes(path)


def test_damaged_xml_is_a_bold_error(tmp_path: Path) -> None:
    columns = mixed_axis()
    path = write_cifti(
        tmp_path / "a.dtseries.nii", np.zeros((3, len(columns))), SeriesAxis(0, 1.0, 3), columns
    )
    path.write_bytes(path.read_bytes().replace(b"<MatrixIndicesMap", b"<MatrixIndices<ap", 1))
    read_header(path)
    with pytest.raises(BoldError, match=r"a\.dtseries\.nii: the CIFTI-2 header cannot be read"):
        read_axes(path)


def test_identity_follows_content_and_time_but_not_the_path(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 4)))
    first = read_header(tmp_path / "a.npy").identity
    assert set(first) == {"size", "mtime_ns", "header"}
    os.rename(tmp_path / "a.npy", tmp_path / "b.npy")
    assert read_header(tmp_path / "b.npy").identity == first
    os.utime(tmp_path / "b.npy", ns=(0, 5))
    assert read_header(tmp_path / "b.npy").identity != first
    np.save(tmp_path / "b.npy", np.zeros((4, 3)))
    os.utime(tmp_path / "b.npy", ns=(first["mtime_ns"], first["mtime_ns"]))
    assert read_header(tmp_path / "b.npy").identity != first


def test_identity_follows_the_data_where_header_size_and_time_are_the_same(tmp_path: Path) -> None:
    data = np.random.default_rng(0).standard_normal((50, 400), dtype=np.float32)
    found = []
    for scale in (1, 2):  # another cleaning of the same run, from an archive without times
        np.save(tmp_path / "a.npy", scale * data)
        os.utime(tmp_path / "a.npy", ns=(0, 5))
        found.append(read_header(tmp_path / "a.npy").identity)
    assert found[0] != found[1]


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_that_was_replaced_since_the_plan_is_not_read(tmp_path: Path, order: Any) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.asarray(np.ones((30, 40), np.float32), order=order))
    header = read_header(path)
    np.save(tmp_path / "b.npy", np.asarray(np.zeros((30, 40), np.float32), order=order))
    os.utime(tmp_path / "b.npy", ns=(0, 5))
    os.replace(tmp_path / "b.npy", path)
    with pytest.raises(BoldError, match=r"a\.npy: has changed since the plan was made\. Submit again"):
        read_block(header, slice(0, 10))


def test_files_of_the_same_axes_share_their_name_whatever_their_data(tmp_path: Path) -> None:
    axis, rng = mixed_axis(), np.random.default_rng(0)
    names = {}
    for file, n_trs in (("a", 5), ("b", 5), ("longer", 6)):
        data = rng.standard_normal((n_trs, len(axis))).astype(np.float32)
        path = write_cifti(tmp_path / f"{file}.dtseries.nii", data, SeriesAxis(0, 1.0, n_trs), axis)
        assert read_header(path).axes == ""
        names[file] = name_axes(read_header(path)).axes
    assert names["a"] == names["b"] != names["longer"]


def test_axes_of_a_file_that_is_gone_have_no_name(tmp_path: Path) -> None:
    np.save(path := tmp_path / "run.npy", np.zeros((5, 3), np.float32))
    header = read_header(path)
    path.unlink()
    with pytest.raises(BoldError, match=r"run\.npy: cannot be read: No such file"):
        name_axes(header)


def test_headers_travel_to_workers(hcp_file: Path) -> None:
    header = read_header(hcp_file)
    assert pickle.loads(pickle.dumps(header)) == header


def test_templates_find_one_file(tmp_path: Path) -> None:
    folder = tmp_path / "odd [name]"
    for name in ("S1/run1_AP.npy", "S1/run2_PA.npy", "S[2]/run1_AP.npy", "S1/run3_AP.npy", "S1/run3_PA.npy"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    assert find_bold("{subject}/{run}_??.npy", folder, "S1", "run2").name == "run2_PA.npy"
    assert find_bold("{subject}/{run}_*.npy", folder, "S[2]", "run1").parent.name == "S[2]"
    assert find_bold("S[2]/{run}_AP.npy", folder, "S2", "run1").parent.name == "S[2]"
    absolute = f"{folder}/{{subject}}/{{run}}_AP.npy"
    assert find_bold(absolute, Path("/nowhere"), "S1", "run3") == folder / "S1" / "run3_AP.npy"
    with pytest.raises(
        StudyError, match=r"subject 'S1', run 'run3': expected one file .* found 2: .*run3_AP.*run3_PA"
    ):
        find_bold("{subject}/{run}_*.npy", folder, "S1", "run3")
    with pytest.raises(
        StudyError, match=r"found none; .*S1 holds run1_AP.npy, run2_PA.npy, run3_AP.npy and 1 more"
    ):
        find_bold("{subject}/{run}_*.npy", folder, "S1", "run4")
    with pytest.raises(StudyError, match=r"found none; .*odd \[name\] holds S1, S\[2\]"):
        find_bold("{subject}/{run}_*.npy", folder, "S3", "run1")


@pytest.mark.parametrize(
    ("template", "there", "missing"),
    [
        ("sub-{subject}*/{run}.npy", "sub-10/one.npy", ("1", "one")),
        ("sub-*{subject}/{run}.npy", "sub-10/one.npy", ("0", "one")),
        ("{subject}/*{run}*.npy", "S1/task-run-10_bold.npy", ("S1", "run-1")),
        ("{subject}/**/{run}?.npy", "S1/a/b/oneX.npy", ("S1", "one")),
        ("{subject}/{run}[!_].npy", "S1/oneX.npy", ("S1", "one")),
    ],
)
def test_a_wildcard_makes_no_other_subject_or_run_of_a_name(
    tmp_path: Path, template: str, there: str, missing: tuple[str, str]
) -> None:
    (tmp_path / there).parent.mkdir(parents=True)
    (tmp_path / there).touch()
    for start in ("", f"{tmp_path}/"):
        with pytest.raises(StudyError, match="found none"):
            find_bold(start + template, tmp_path, *missing)


@pytest.mark.parametrize(
    ("template", "there", "wanted"),
    [
        ("sub-{subject}*/{run}.npy", "sub-10_a/one.npy", ("10", "one")),
        ("*{subject}/{run}.npy", "sub10/one.npy", ("10", "one")),
        ("{subject}/*{run}*.npy", "S1/task-run-1_bold.npy", ("S1", "run-1")),
        ("{subject}/**/{run}?.npy", "S1/a/b/one7.npy", ("S1", "one")),
        ("x/../{subject}/{run}[_-]*.npy", "S1/one-a.npy", ("S1", "one")),
        ("{subject}_*/{run}[!x].npy", "S1_a/one7.npy", ("S1", "one")),
    ],
)
def test_wildcards_stand_for_what_a_name_may_have_around_it(
    tmp_path: Path, template: str, there: str, wanted: tuple[str, str]
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / there).parent.mkdir(parents=True)
    (tmp_path / there).touch()
    for start in ("", f"{tmp_path}/"):
        assert find_bold(start + template, tmp_path, *wanted).samefile(tmp_path / there)
