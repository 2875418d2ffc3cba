"""A record or an array that was flipped, cut or emptied is one error that names the file, or reads as it was."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rescueseg.errors import StorageError
from rescueseg.storage import FORMAT, Storage, canonical_json, digest_json, parse_record, record_bytes

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
VOLUME = {"volume_id": "v", "shape_zyx": [4, 8, 8], "refused": None}


def is_refused_or_equal(data: bytes, record: Any) -> bool:
    """Tell whether a damaged file is refused; where it is not, it must read as the record."""
    error = error_of(lambda: parse_record(data, "campaign/v.json"))
    if error is None:
        assert canonical_json(parse_record(data, "campaign/v.json")) == canonical_json(record), data
        return False
    assert error.where == "campaign/v.json"
    assert "\n" not in str(error)
    return True


def error_of(read: Callable[[], Any]) -> StorageError | None:
    """Return the error with which something is refused; None where it is read. Any other error is the test's."""
    try:
        read()
    except StorageError as error:
        return error
    return None


@settings(max_examples=200, deadline=None)
@given(record=JSON, data=st.data())
def test_a_record_with_one_damage_is_refused_or_reads_as_it_was(record: Any, data: st.DataObject) -> None:
    written = record_bytes(record)
    assert not is_refused_or_equal(written, record)
    at = data.draw(st.integers(0, len(written) - 1), label="at")
    flipped = bytearray(written)
    flipped[at] ^= data.draw(st.integers(1, 255), label="bits")
    is_refused_or_equal(bytes(flipped), record)
    is_refused_or_equal(written[:at], record)
    is_refused_or_equal(written[at + 1 :], record)
    assert is_refused_or_equal(b"", record)


def test_every_changed_byte_of_a_record_is_refused_but_for_the_space_around_it() -> None:
    written = record_bytes(VOLUME)
    changes = ((at, byte) for at in range(len(written)) for byte in set(range(256)) - {written[at]})
    accepted = [
        (written[at], byte)
        for at, byte in changes
        if not is_refused_or_equal(written[:at] + bytes([byte]) + written[at + 1 :], VOLUME)
    ]
    assert {byte for pair in accepted for byte in pair} <= set(b" \n\t\r"), "white space means nothing"
    for length in range(len(written) - 1):
        assert is_refused_or_equal(written[:length], VOLUME)


@pytest.mark.parametrize("of", [{2: "a", 10: "b"}, ((1, 2), {"x": (3.0,)}), 1.5, "x", None, {"format": 3}])
def test_what_json_writes_otherwise_than_it_was_given_has_a_checksum_that_fits(of: Any) -> None:
    assert parse_record(record_bytes(of), "v.json") == json.loads(json.dumps(of))


def test_records_of_earlier_versions_have_no_checksum_and_are_read() -> None:
    for older in (VOLUME, {"format": 1, "record": VOLUME}, {"format": 3, "generation": 0}, [1, 2], 1.5):
        expected = older["record"] if isinstance(older, dict) and "record" in older else older
        assert parse_record(json.dumps(older).encode(), "v.json") == expected


@pytest.mark.parametrize("format_", [FORMAT + 1, 99])
@pytest.mark.parametrize("rest", [{}, {"sha256": digest_json({})}, {"signature": "x"}])
def test_a_record_of_a_later_format_is_refused_by_its_format(format_: int, rest: dict[str, str]) -> None:
    document = {"format": format_, "record": {}} | rest
    with pytest.raises(StorageError, match=f"a later version of rescueseg wrote this file: its format is {format_}"):
        parse_record(json.dumps(document).encode(), "v.json")


@pytest.mark.parametrize(
    "document",
    [
        {"format": FORMAT, "record": VOLUME},
        {"format": 1, "record": VOLUME, "sha256": digest_json(VOLUME)},
        {"record": VOLUME, "sha256": digest_json(VOLUME)},
        {"format": FORMAT, "sha256": digest_json(VOLUME)},
        {"format": "2", "record": VOLUME, "sha256": digest_json(VOLUME)},
        {"format": FORMAT, "record": VOLUME, "sha256": digest_json([])},
        {"format": 0, "record": VOLUME},
    ],
)
def test_a_record_without_what_its_format_needs_is_damaged(document: dict[str, Any]) -> None:
    with pytest.raises(StorageError, match=r"v\.json: the file is damaged: .*\. Restore it from a backup"):
        parse_record(json.dumps(document).encode(), "v.json")


@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
def test_every_changed_bit_of_an_array_is_refused_or_means_nothing(tmp_path: Path, dtype: type[np.generic]) -> None:
    storage = Storage(str(tmp_path))
    array = np.arange(60).reshape(3, 4, 5).astype(dtype)
    storage.write_array("a.npz", array)
    written = storage.read_bytes("a.npz")
    refused = 0
    versions = [written[:length] for length in range(len(written))]
    for at, bit in itertools.product(range(len(written)), range(8)):
        versions.append(written[:at] + bytes([written[at] ^ 1 << bit]) + written[at + 1 :])
    for data in versions:
        (tmp_path / "b.npz").write_bytes(data)
        error = error_of(lambda: storage.read_array("b.npz"))
        if error is None:
            np.testing.assert_array_equal(storage.read_array("b.npz"), array)
        else:
            refused += 1
            assert error.where == str(tmp_path / "b.npz")
            assert error.what.startswith("the file is damaged: ")
    assert refused > len(written) * 6


def test_what_is_no_file_or_no_array_is_one_error(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "plain.npz").write_bytes(b"")
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "other.npz", labels=np.zeros(3))
    for read, name in (
        (storage.read_json, "folder.json"),
        (storage.read_array, "folder.json"),
        (storage.read_array, "plain.npz"),
        (storage.read_array, "one.npy"),
        (storage.read_array, "other.npz"),
    ):
        with pytest.raises(StorageError, match="the file is damaged: ") as caught:
            read(name)
        assert caught.value.where == str(tmp_path / name)
        assert "Restore it from a backup" in caught.value.todo


def test_a_file_may_be_made_that_nobody_writes_into(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for value in (1, 2):
        storage.write_array("a/b/c.npz", np.full(3, value), read_only=True)
        assert (tmp_path / "a/b/c.npz").stat().st_mode & 0o777 == 0o444
        assert storage.read_array("a/b/c.npz").tolist() == [value] * 3
    assert [p.name for p in (tmp_path / "a/b").iterdir()] == ["c.npz"]
