"""Texts and their labels from files: CSV, TSV, JSON lines, parquet, or a folder per class."""

import csv
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_cl.errors import InputError

Column = str | int
FORMATS = ".csv, .tsv, .tab, .txt, .jsonl, .ndjson, .json (a line each), .parquet"
HINT = "set stream.dataset.path=FILE, or FOLDER with a sub-folder of .txt files per class"


@dataclass
class Reading:
    """How a file is read.

    Args:
        text: Name of the texts' column, or its position in a file without a line of names.
        label: Of the labels' column.
        domain: Of the domains' column, or None.
        delimiter: Of columns, one character or ``"tab"``; by default a tab in .tsv, .tab and .txt files, else a comma.
        quotes: Whether columns may stand in double quotes; by default not with tabs, where quotes are part of texts.
        encoding: Of the file.
    """

    text: Column = "text"
    label: Column = "label"
    domain: Column | None = None
    delimiter: str | None = None
    quotes: bool | None = None
    encoding: str = "utf-8"

    @property
    def columns(self) -> list[Column]:
        """The columns that are read."""
        return [self.text, self.label, *([] if self.domain is None else [self.domain])]


@dataclass
class Texts:
    """Texts, the name of each one's class, and of its domain if domains are known."""

    texts: list[str]
    labels: list[str]
    domains: list[str] | None = None


def read_texts(path: str | Path | None, argument: str, reading: Reading) -> Texts:
    """The texts of a file or folder.

    Args:
        path: Where they are.
        argument: Name of the argument that says so, for messages.
        reading: How.

    Raises:
        InputError: If there is nothing, another format, a column that is not there, or a row without text or label;
            rows are named by their number.
    """
    if path is None or not Path(path).exists():
        given = None if path is None else str(path)
        raise InputError(f"{argument}={given!r}, which is not there", f"a file ({FORMATS}) or a folder", HINT)
    path = Path(path)
    if path.is_dir():
        return _folder(path, argument, reading)
    try:
        rows = list(_rows(path, argument, reading))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{argument}={str(path)!r} ({error})", f"text in {reading.encoding}", "set stream.dataset.encoding=latin-1"
        ) from error
    if not rows:
        raise InputError(f"{argument}={str(path)!r} without rows", "texts and labels", HINT)
    columns = list(zip(*rows, strict=True))
    return Texts(list(columns[0]), list(columns[1]), None if reading.domain is None else list(columns[2]))


def _folder(path: Path, argument: str, reading: Reading) -> Texts:
    found = Texts([], [])
    for folder in sorted(p for p in path.iterdir() if p.is_dir()):
        for file in sorted(folder.glob("*.txt")):
            found.texts.append(file.read_text(reading.encoding))
            found.labels.append(folder.name)
    if not found.texts:
        raise InputError(f"{argument}={str(path)!r}", "a folder with a sub-folder of .txt files per class", HINT)
    if reading.domain is not None:
        raise InputError(f"domain_column={reading.domain!r} of a folder", "none there", "leave it out, or give a file")
    return found


def _rows(path: Path, argument: str, reading: Reading) -> Iterator[list[str]]:
    kind = path.suffix.lower()
    if kind in (".jsonl", ".ndjson", ".json"):
        records: Iterator[Any] = _json_lines(path, argument, reading)
    elif kind == ".parquet":
        records = _parquet(path, reading)
    elif kind in (".csv", ".tsv", ".tab", ".txt"):
        records = _table(path, argument, reading, kind != ".csv")
    else:
        raise InputError(f"{argument}={str(path)!r}", f"a file of {FORMATS}", HINT)
    for number, record in records:
        row = []
        for column in reading.columns:
            if isinstance(record, Mapping) and column not in record:
                raise _no_column(column, list(record), path, reading)
            if isinstance(record, list) and not (isinstance(column, int) and -len(record) <= column < len(record)):
                raise InputError(
                    f"row {number} of {str(path)!r} with {len(record)} columns, without column {column!r}",
                    "that column in every row",
                    "check stream.dataset.delimiter and quotes",
                )
            value = record[column]
            if value is None or (value == "" and column != reading.text):
                raise InputError(f"row {number} of {str(path)!r} without {column!r}", "a value", "leave the row out")
            row.append(str(value))
        yield row


def _no_column(column: Column, known: Sequence[Any], path: Path, reading: Reading) -> InputError:
    argument = {reading.text: "text_column", reading.label: "label_column"}.get(column, "domain_column")
    names = [str(name)[:40] for name in known[:10]]
    hint = f"set stream.dataset.{argument}=NAME; in a file without a line of names, its position: 0, 1, ..."
    return InputError(f"{argument}={column!r} of {str(path)!r}", f"one of {', '.join(names)}", hint)


def _table(path: Path, argument: str, reading: Reading, tabs: bool) -> Iterator[tuple[int, Any]]:
    delimiter = reading.delimiter or ("\t" if tabs else ",")
    delimiter = "\t" if delimiter in ("tab", "\\t") else delimiter
    if len(delimiter) != 1:
        raise InputError(f"delimiter={delimiter!r}", "one character, or 'tab'", "set stream.dataset.delimiter=tab")
    quotes = delimiter != "\t" if reading.quotes is None else reading.quotes
    positions = [isinstance(column, int) for column in reading.columns]
    if any(positions) and not all(positions):
        raise InputError(f"columns {reading.columns!r}", "names of all, or positions of all", "give one kind")
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        with path.open(newline="", encoding=reading.encoding) as file:
            quoting: Any = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
            lines = csv.reader(file, delimiter=delimiter, quoting=quoting)
            names = None if all(positions) else [name.removeprefix("\ufeff") for name in next(lines, [])]
            for number, line in enumerate(lines, 1):
                if not line:
                    continue
                if names is not None and len(line) != len(names):
                    raise InputError(
                        f"row {number} of {str(path)!r} with {len(line)} columns",
                        f"{len(names)}, as the line of names has",
                        "check stream.dataset.delimiter and quotes",
                    )
                yield number, line if names is None else dict(zip(names, line, strict=True))
    except csv.Error as error:
        raise InputError(f"{argument}={str(path)!r} ({error})", "a table", "check delimiter and quotes") from error


def _json_lines(path: Path, argument: str, reading: Reading) -> Iterator[tuple[int, Any]]:
    with path.open(encoding=reading.encoding) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                record = error
            if not isinstance(record, dict):
                raise InputError(
                    f"line {number} of {argument}={str(path)!r}",
                    "a JSON object in each line",
                    '{"text": ..., "label": ...}',
                )
            yield number, record


def _parquet(path: Path, reading: Reading) -> Iterator[tuple[int, Any]]:
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            f"path={str(path)!r} without the package pyarrow", "pyarrow, to read parquet", "pip install pyarrow"
        ) from error
    known = parquet.read_schema(path).names
    for column in reading.columns:
        if column not in known:
            raise _no_column(column, known, path, reading)
    table = parquet.read_table(path, columns=reading.columns)
    yield from enumerate(table.to_pylist(), 1)
