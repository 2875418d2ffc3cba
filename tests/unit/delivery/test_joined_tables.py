"""One table of all volumes."""

from __future__ import annotations

import csv
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rescueseg.delivery import joined_tables
from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.joined_tables import join_tables
from rescueseg.delivery.records import DeliveredVolume
from rescueseg.delivery.whole_file import whole_file
from rescueseg.storage import Storage


def deliver(folder: DeliveryFolder, name: str, rows: int, channels: tuple[str, ...], *, recorded: bool = True) -> None:
    columns = {"volume": [name] * rows, "id": list(range(1, rows + 1)), "volume_um3": [0.5 * n for n in range(rows)]}
    columns |= {"branches": [None if n % 2 else n for n in range(rows)]}
    columns |= {channel: [float(n) for n in range(rows)] for channel in channels}
    schema = {"volume": pa.string(), "id": pa.int64(), "volume_um3": pa.float64(), "branches": pa.int64()}
    table = pa.table(columns, pa.schema({**schema, **dict.fromkeys(channels, pa.float64())}))
    with whole_file(folder.storage, f"tables/{name}.parquet") as path:
        pq.write_table(table.replace_schema_metadata({"made for": name}), path)
    if recorded:
        volume = DeliveredVolume(
            volume_id=name,
            source=f"{name}.tif",
            in_campaign=True,
            shape_zyx=(4, 4, 4),
            spacing_um_zyx=(1, 1, 1),
            digest="d",
            labels=("mask",),
        )
        folder.records.write(folder.volume_record(name), volume)


def test_all_volumes_are_in_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joined_tables, "_ROWS", 3)
    folder = DeliveryFolder(str(tmp_path))
    join_tables(folder)
    assert list(tmp_path.iterdir()) == []
    deliver(folder, "b", 7, ("mean_intensity",))
    deliver(folder, "a", 2, ("mean_channel_0", "mean_channel_1"))
    deliver(folder, "c", 0, ("mean_intensity",))
    deliver(folder, "killed", 4, ("mean_intensity",), recorded=False)
    join_tables(folder)
    parquet, text = pd.read_parquet(tmp_path / "objects.parquet"), pd.read_csv(tmp_path / "objects.csv")
    pd.testing.assert_frame_equal(parquet, text, check_dtype=False)
    assert list(text) == [
        *("volume", "id", "volume_um3", "branches"), *("mean_channel_0", "mean_channel_1", "mean_intensity"),
    ]  # fmt: skip
    assert text["volume"].tolist() == ["a"] * 2 + ["b"] * 7
    assert text["id"].tolist() == [1, 2, 1, 2, 3, 4, 5, 6, 7]
    assert text["branches"].isna().sum() == 4
    deliver(folder, "b", 3, ("mean_intensity",))
    join_tables(folder)
    assert pd.read_csv(tmp_path / "objects.csv")["volume"].tolist() == ["a"] * 2 + ["b"] * 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["objects.csv", "objects.parquet", "records", "tables"]


def test_a_spreadsheet_computes_no_text_and_shows_six_digits(tmp_path: Path) -> None:
    folder = DeliveryFolder(str(tmp_path))
    deliver(folder, "a", 7, ())
    names = ["=1+1", "@cmd", "+1", "-1", "\tx", "cell", "a=b"]
    exact = [1 / 3, 2e-7 / 3, 123456789.0, None, 0.1, float("nan"), -2e5 / 3]
    rows = pa.table({"volume": ["a"] * 7, "class": names, "volume_um3": pa.array(exact, pa.float64())})
    pq.write_table(rows, tmp_path / "tables" / "a.parquet")
    join_tables(folder)
    with (tmp_path / "objects.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["class"] for line in lines] == ["'=1+1", "'@cmd", "'+1", "'-1", "'\tx", "cell", "a=b"]
    texts = [line["volume_um3"] for line in lines]
    assert texts[3] == ""
    assert texts[5] == "nan"
    for text, value in zip(texts, exact, strict=True):
        if text not in ("", "nan"):
            assert float(text) == float(f"{value:.6g}")
            assert len(text.split("e")[0].strip("-").lstrip("0.").replace(".", "").rstrip("0")) <= 6
    kept = pq.read_table(tmp_path / "objects.parquet")
    assert kept["class"].to_pylist() == names
    assert kept["volume_um3"].to_pylist()[:3] == exact[:3]


def test_a_kill_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = DeliveryFolder(str(tmp_path))
    deliver(folder, "a", 2, ("mean_intensity",))
    join_tables(folder)
    old = {name: (tmp_path / name).read_bytes() for name in ("objects.csv", "objects.parquet")}
    deliver(folder, "a", 4, ("mean_intensity",))

    def dying(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(joined_tables, "_parts", dying)
    with pytest.raises(KeyboardInterrupt):
        join_tables(folder)
    assert {name: (tmp_path / name).read_bytes() for name in old} == old


def test_a_file_reaches_remote_storage_whole_or_not_at_all() -> None:
    storage = Storage("memory://whole_file_test")
    with whole_file(storage, "sub/v.nii.gz") as path:
        assert path.name.endswith(".nii.gz")
        path.write_bytes(b"voxels")
        assert not storage.exists("sub/v.nii.gz")
    assert storage.read_bytes("sub/v.nii.gz") == b"voxels"
    assert not path.exists()
    with pytest.raises(ValueError, match="broken"), whole_file(storage, "other.tif"):
        raise ValueError("broken")
    assert storage.list("") == ["sub"]
