from __future__ import annotations

import pytest

from hpcenc.slurm.values import parse_memory, parse_ports, parse_umask, parse_walltime


@pytest.mark.parametrize(
    ("value", "minutes"),
    [
        (90, 90),
        ("90", 90),
        ("90:00", 90),
        ("1:30", 2),  # SLURM rounds seconds up to a whole minute
        ("01:30:00", 90),
        ("1-12", 36 * 60),
        ("1-12:30", 36 * 60 + 30),
        ("2-00:00:01", 48 * 60 + 1),
    ],
)
def test_a_walltime_is_minutes_in_any_of_slurms_forms(value: object, minutes: int) -> None:
    assert parse_walltime(value) == minutes


@pytest.mark.parametrize(
    "value", [0, -1, "0", "", "UNLIMITED", "4h", "1:2:3:4", "1-", " 5", "5\n", 1.5, True, None]
)
def test_any_other_walltime_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected minutes, or a time such as"):
        parse_walltime(value)


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("1K", 2**10), ("500M", 500 * 2**20), ("16GB", 2**34), ("1T", 2**40)]
)
def test_memory_is_in_powers_of_1024(text: str, n_bytes: int) -> None:
    assert parse_memory(text) == n_bytes


@pytest.mark.parametrize("value", ["16", 16, "0G", "1.5G", "16g", "", "-1G", "G"])
def test_memory_without_a_unit_or_of_none_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected a size with its unit"):
        parse_memory(value)


@pytest.mark.parametrize("value", ["80-90", "5000", "5000-4000", "60000-70000", 5000])
def test_ports_are_a_rising_range_of_unprivileged_ones(value: object) -> None:
    assert parse_ports("40000-40100") == (40000, 40100)
    with pytest.raises(ValueError, match="expected a range of ports"):
        parse_ports(value)


@pytest.mark.parametrize("value", [27, "27", "0888", "u=rwx"])
def test_a_umask_is_octal_text(value: object) -> None:
    assert (parse_umask("027"), parse_umask("0007")) == (0o27, 0o7)
    with pytest.raises(ValueError, match="expected a text of octal digits"):
        parse_umask(value)
