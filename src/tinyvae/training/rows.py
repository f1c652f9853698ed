"""Rows of a history as a chain of blocks of bytes.

A block is a line of JSON and a body. The body holds the columns of successive rows, 8 bytes per
number, so that every number is restored bitwise. The line describes the columns, contains the
digest of the body, and names the previous block by its place in a file and by the digest of its
line. So the digest of a line covers all rows up to its block.
"""

import hashlib
import itertools
import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Real
from typing import Any, BinaryIO

from tinyvae.io.json import parse_json

MAX_LINE = 2**24  # bytes
REQUIRED = {"epochs": ("epoch", "step", "time_seconds"), "updates": ("step",)}  # columns
CODES = {bool: "?", int: "q", float: "d"}


@dataclass
class Rows:
    """Rows of epochs and of updates."""

    epochs: list[dict[str, float]] = field(default_factory=list)
    updates: list[dict[str, float]] = field(default_factory=list)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.epochs) + len(self.updates)


@dataclass(frozen=True)
class Block:
    """Address of a block in a file.

    Attributes:
        offset: Position in the file.
        digest: Digest of its line.
        epochs: Number of rows of epochs up to its end.
        updates: Number of rows of updates up to its end.
    """

    offset: int
    digest: str
    epochs: int
    updates: int


def encode_block(rows: Rows, previous: Block | None) -> tuple[bytes, str]:
    """Return a block of rows that follow ``previous``, and the digest of its line."""
    form: dict[str, Any] = {"previous": None if previous is None else asdict(previous)}
    body = bytearray()
    for table, part in (("epochs", rows.epochs), ("updates", rows.updates)):
        form[table] = []
        for (names, kinds), run in itertools.groupby(part, key=_columns):
            columns = {name: _code(name, kind) for name, kind in zip(names, kinds, strict=True)}
            values = list(zip(*(row.values() for row in run), strict=True))
            for code, column in zip(columns.values(), values, strict=True):
                body += array("d" if code == "d" else "q", column).tobytes()
            form[table].append([columns, len(values[0])])
    form["sha256"] = hashlib.sha256(body).hexdigest()
    line = json.dumps(form, separators=(",", ":")).encode() + b"\n"
    return line + body, hashlib.sha256(line).hexdigest()


def _columns(row: dict[str, float]) -> tuple[tuple[str, ...], tuple[type, ...]]:
    return tuple(row), tuple(map(type, row.values()))


def _code(name: str, kind: type) -> str:
    for base, code in CODES.items():
        if issubclass(kind, base):
            return code
    raise TypeError(f"the history expects numbers in column '{name}', got a {kind.__name__}")


def read_line(file: BinaryIO) -> tuple[bytes, str]:
    """Return the line of the block at the position of a file, and the line's digest."""
    line = file.readline(MAX_LINE)
    return line, hashlib.sha256(line).hexdigest()


def read_block(line: bytes, file: BinaryIO) -> tuple[Rows, Block | None]:
    """Return the rows of a block, and the address of the previous one.

    Args:
        line: Its line.
        file: File at the position of its body.

    Raises:
        ValueError: If the block is damaged or not in this format.
    """
    form = parse_json(line.decode())
    if not isinstance(form, dict) or form.keys() != {"previous", "sha256", *REQUIRED}:
        raise ValueError(f"expected the line of a block, got {line!r:.80}")
    runs = {table: _runs(form[table], columns) for table, columns in REQUIRED.items()}
    num_numbers = sum(len(columns) * count for part in runs.values() for columns, count in part)
    start = file.tell()
    if 8 * num_numbers > file.seek(0, os.SEEK_END) - start:
        raise ValueError("the numbers of a block are cut off")
    file.seek(start)
    body = memoryview(file.read(8 * num_numbers))
    if hashlib.sha256(body).hexdigest() != form["sha256"]:
        raise ValueError("the numbers of a block are damaged")
    rows, start = Rows(), 0
    for table, part in runs.items():
        for columns, count in part:
            end = start + 8 * len(columns) * count
            getattr(rows, table).extend(_decode(columns, count, body[start:end]))
            start = end
    return rows, _address(form["previous"])


def _runs(value: Any, required: Sequence[str]) -> list[tuple[dict[str, str], int]]:
    """Return the columns and the length of each run of rows with equal columns."""
    runs = []
    for run in value if isinstance(value, list) else [value]:
        match run:
            case [dict(columns), int(count)] if (
                count > 0
                and set(required) <= columns.keys()
                and all(code in CODES.values() for code in columns.values())
            ):
                runs.append((columns, count))
            case _:
                raise ValueError(f"expected columns such as {required}, got {run!r:.80}")
    return runs


def _decode(columns: Mapping[str, str], count: int, body: memoryview) -> Iterator[dict[str, float]]:
    floats, integers = body.cast("d"), body.cast("q")
    values = []
    for index, code in enumerate(columns.values()):
        cells = (floats if code == "d" else integers)[index * count : (index + 1) * count].tolist()
        values.append(list(map(bool, cells)) if code == "?" else cells)
    return (dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True))


def _address(value: Any) -> Block | None:
    match value:
        case None:
            return None
        case {
            "offset": int(offset),
            "digest": str(digest),
            "epochs": int(epochs),
            "updates": int(updates),
        } if min(offset, epochs, updates) >= 0:
            return Block(offset, digest, epochs, updates)
    raise ValueError(f"expected the address of a block, got {value!r:.80}")


def rows_of_json(data: bytes) -> Rows:
    """Return the rows of a checkpoint that holds them all, as JSON. Raise if they are not valid."""
    tables = json.loads(data)
    rows = Rows(tables["epochs"], tables["updates"])
    for table, columns in REQUIRED.items():
        for row in getattr(rows, table):
            if not set(columns) <= row.keys() or not all(map(_is_number, row.values())):
                raise ValueError(f"expected numbers in columns such as {columns}, got {row!r:.80}")
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
