"""CSV files as people save them: any of Excel's kinds, read as text, with the line of each row for errors."""

import codecs
import csv
import io
from pathlib import Path

import pandas as pd

from .reading import DataError

DELIMITERS = ",;\t"  # Excel writes the second in most of Europe, and the third for "Unicode text"


def read_table(path, columns, content: str) -> pd.DataFrame:
    """Read a CSV file.

    Args:
        path: The file: comma, semicolon or tab; UTF-8, or UTF-16 with a byte order mark.
        columns: The columns that it needs; others are read too.
        content: What it holds, for errors: "pairs".

    Returns:
        All columns as text, "" for an empty cell. The index is the line of each row in the file; empty lines are left
        out.

    Raises:
        DataError: It cannot be read, or lacks a column.
    """
    try:
        text = _decoded(Path(path).read_bytes())
        header = io.StringIO(text, newline=None).readline().strip()
        for delimiter in DELIMITERS:
            names = [name.strip('" ') for name in next(csv.reader([header], delimiter=delimiter), [])]
            if set(columns) <= set(names):
                table = _rows(path, text, names, delimiter)
                return table.loc[:, ~table.columns.duplicated()]
    except UnicodeDecodeError as error:
        raise DataError(f'{path} is not UTF-8: save it as "CSV UTF-8" (Excel), or in UTF-8 encoding.') from error
    except OSError as error:
        raise DataError(f"{path} cannot be read as a CSV file of {content}: {error.strerror or error}.") from error
    *first, last = columns
    names = f"{', '.join(first)} and {last}"
    raise DataError(
        f"{path} lacks one of the columns {names}: its first line is {header!r}. Name the columns {names} there, with "
        "a comma, a semicolon or a tab between all columns."
    )


def _decoded(content: bytes) -> str:
    """Decode UTF-8 or, with its byte order mark, UTF-16."""
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return content.decode("utf-16")
    return content.decode("utf-8-sig")


def _rows(path, text, names, delimiter) -> pd.DataFrame:
    """Read all lines but the first."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    lines = []
    line = 1
    try:
        for cells in reader:
            if line > 1 and any(cells):
                rows.append(_fitted(path, line, cells, len(names)))
                lines.append(line)
            line = reader.line_num + 1  # a cell in quotes may have several lines
    except csv.Error as error:
        cure = "Put a value with quotes in it between double quotes, and write each of its own twice"
        raise DataError(f"{path}, line {line}: {error}. {cure}.") from error
    return pd.DataFrame(rows, lines, names, dtype=str)


def _fitted(path, line, cells, count) -> list[str]:
    """Return as many cells as there are columns."""
    if any(cells[count:]):
        cure = "Put a value that holds the delimiter between double quotes"
        raise DataError(f"{path}, line {line}: there are {len(cells)} values in {count} columns. {cure}.")
    missing = count - len(cells)
    return cells[:count] + [""] * missing
