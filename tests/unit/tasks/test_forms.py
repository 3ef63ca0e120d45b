"""Packed quadratic forms against plain products in float64."""

import numpy as np
import pytest
from array_api_compat import array_namespace, device

from hpcenc.tasks.forms import (
    inner_products,
    interleave,
    pack,
    pack_less_product,
    packed_size,
    panels,
    quadratic_forms,
)

SIZES = [
    pytest.param(1, 4, id="one row"),
    pytest.param(3, 8, id="less than a panel"),
    pytest.param(16, 8, id="whole panels"),
    pytest.param(29, 8, id="part of a panel"),
    pytest.param(29, 256, id="the default panel"),
]


def symmetric(n_forms, size, seed=0):
    values = np.random.default_rng(seed).standard_normal((n_forms, size, size))
    return values + values.transpose(0, 2, 1)


def explicit(Y, forms):
    wide = Y.astype(np.float64)
    return np.stack([[y @ form @ y for form in forms] for y in wide])


@pytest.mark.parametrize(("size", "width"), SIZES)
def test_panels_cover_every_column_once(size, width):
    columns = [column for first, stop in panels(size, width) for column in range(first, stop)]
    assert columns == list(range(size))
    assert packed_size(size, width) == len(pack(symmetric(1, size), width))


def test_a_packed_form_of_many_rows_is_half_a_matrix_and_little_more():
    assert packed_size(2924) / 2924**2 == pytest.approx(0.5 + 0.5 / 11, abs=0.01)


@pytest.mark.parametrize(("size", "width"), SIZES)
@pytest.mark.parametrize("n_forms", [0, 1, 3])
def test_forms_are_those_of_plain_products(library, size, width, n_forms):
    forms = symmetric(n_forms, size)
    Y = np.random.default_rng(1).standard_normal((7, size)).astype(np.float32)
    packed = pack(forms.astype(np.float32), width)
    given = library.to_device(Y)
    found = quadratic_forms(given, library.to_device(packed), width)
    assert array_namespace(found) is array_namespace(given)
    assert device(found) == device(given)
    on_host = library.to_host(found)
    assert on_host.dtype == np.float64
    expected = explicit(Y, forms) if n_forms else np.empty((7, 0))
    np.testing.assert_allclose(on_host, expected, rtol=1e-5, atol=1e-6 * size**2)


def test_many_voxels_are_taken_in_parts(library, monkeypatch):
    forms = symmetric(2, 29)
    Y = np.random.default_rng(2).standard_normal((53, 29)).astype(np.float32)
    packed = library.to_device(pack(forms.astype(np.float32), 8))
    monkeypatch.setattr("hpcenc.tasks.forms.VOXELS_AT_ONCE", 10)
    found = library.to_host(quadratic_forms(library.to_device(Y), packed, 8))
    np.testing.assert_allclose(found, explicit(Y, forms), rtol=1e-5, atol=1e-4)


def test_only_the_upper_triangle_is_read():
    forms = symmetric(2, 29)
    below = np.tril(np.ones((29, 29), bool), -1)
    np.testing.assert_array_equal(pack(np.where(below, np.nan, forms), 8), pack(forms, 8))


@pytest.mark.parametrize(("size", "width"), SIZES)
def test_a_matrix_less_a_symmetric_product_is_packed_as_their_difference(size, width):
    rng = np.random.default_rng(4)
    right, inside = rng.standard_normal((size, 5)), symmetric(1, 5)[0]
    left, (form,) = right @ inside, symmetric(1, size)
    upper = np.where(np.tri(size, k=-1, dtype=bool), np.nan, form)
    expected = pack((form - left @ right.T)[None], width)
    np.testing.assert_allclose(pack_less_product(upper, left, right, width), expected, atol=1e-12)


def test_packing_leaves_the_forms_as_they_are():
    forms = symmetric(2, 29)
    before = forms.copy()
    pack(forms, 8)
    np.testing.assert_array_equal(forms, before)


@pytest.mark.parametrize(("size", "width"), SIZES)
@pytest.mark.parametrize("n_forms", [0, 1, 3])
def test_forms_packed_one_by_one_become_those_packed_together(size, width, n_forms):
    forms = symmetric(n_forms, size)
    one_by_one = np.zeros((n_forms, packed_size(size, width)))
    for place, form in enumerate(forms):
        one_by_one[place] = pack(form[None], width)
    np.testing.assert_array_equal(interleave(one_by_one, size, width), pack(forms, width))


@pytest.mark.parametrize(("size", "width"), SIZES)
def test_inner_products_are_those_of_the_whole_matrices(size, width):
    forms = symmetric(3, size)
    packed = np.stack([pack(form[None], width) for form in forms])
    expected = np.einsum("aij,bij->ab", forms, forms)
    np.testing.assert_allclose(inner_products(packed, size, width), expected, rtol=1e-12, atol=1e-12)


def test_inner_products_tell_forms_apart_that_float32_sums_would_not():
    first = symmetric(1, 200)[0].astype(np.float32)
    second = first * (1 + np.float32(1e-5) * symmetric(1, 200, seed=3)[0]).astype(np.float32)
    gram = inner_products(np.stack([pack(first[None]), pack(second[None])]), 200)
    distance = gram[0, 0] + gram[1, 1] - 2 * gram[0, 1]
    expected = np.linalg.norm(first.astype(np.float64) - second) ** 2
    assert distance == pytest.approx(expected, rel=1e-4)
