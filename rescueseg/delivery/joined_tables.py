"""The tables of all delivered volumes as one, for spreadsheets and statistics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv

from rescueseg.delivery.folder import DeliveryFolder
from rescueseg.delivery.places import table_path
from rescueseg.delivery.whole_file import whole_file

_ROWS = 1 << 16
_FORMULA = r"^[=+\-@\t\r]"
"""How a cell begins that a spreadsheet would compute (OWASP, "CSV injection")."""
_DIGITS = 6
"""Of a number in the CSV that count."""


def join_tables(folder: DeliveryFolder) -> None:
    """Write ``objects.parquet`` and ``objects.csv``: the rows of all delivered volumes, by volume and id.

    Columns are those of `rescueseg.delivery.object_table.write_table` in that order, units in their names; intensities of
    channels that a volume does not have are null, and empty in the CSV. Both files are made anew from the volumes' tables,
    in parts, and take the place of old ones when they are complete.

    The CSV is for spreadsheets: its numbers have six significant digits, and a text that a spreadsheet would take for a
    formula, such as a class ``=1+1``, has an apostrophe before it. The Parquet file holds all as it is.

    Parameters
    ----------
    folder : DeliveryFolder
        The delivery. Where no volume has a table nothing is written.

    Raises
    ------
    StorageError
        If the disk is full.
    """
    names = [v.volume_id for v in folder.delivered() if folder.storage.exists(table_path(v.volume_id))]
    schemas = [_schema(folder, name) for name in names]
    if not schemas:
        return
    schema = pa.unify_schemas(schemas)
    with ExitStack() as stack:
        parquet = stack.enter_context(whole_file(folder.storage, "objects.parquet"))
        table = stack.enter_context(whole_file(folder.storage, "objects.csv"))
        with pq.ParquetWriter(parquet, schema) as rows, csv.CSVWriter(str(table), schema) as lines:
            for name in names:
                for part in _parts(folder, name, schema):
                    rows.write_table(part)
                    lines.write_table(_for_spreadsheets(part))


def _schema(folder: DeliveryFolder, volume_id: str) -> Any:
    with folder.storage.fs.open(folder.storage.path(table_path(volume_id)), "rb") as file:
        return pq.ParquetFile(file).schema_arrow.remove_metadata()


def _parts(folder: DeliveryFolder, volume_id: str, schema: Any) -> Iterator[Any]:
    """Yield the rows of a volume, with the columns of all."""
    with folder.storage.fs.open(folder.storage.path(table_path(volume_id)), "rb") as file:
        for batch in pq.ParquetFile(file).iter_batches(_ROWS):
            part = pa.Table.from_batches([batch])
            columns = [
                part[field.name] if field.name in part.column_names else pa.nulls(len(part), field.type)
                for field in schema
            ]
            yield pa.table(columns, schema=schema)


def _for_spreadsheets(part: Any) -> Any:
    """Return rows as they stand in the CSV."""
    columns = []
    for column in part.columns:
        if pa.types.is_string(column.type):
            column = pc.replace_substring_regex(column, pattern=f"({_FORMULA})", replacement=r"'\1")
        elif pa.types.is_floating(column.type):
            values = [float(f"{v:.{_DIGITS}g}") for v in column.to_numpy().tolist()]
            column = pa.array(np.asarray(values, np.float64), column.type, mask=column.is_null().to_numpy())
        columns.append(column)
    return pa.table(columns, schema=part.schema)
