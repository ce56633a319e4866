"""Reads a manifest: one video a row, from JSONL, CSV or Parquet, chosen by the suffix of the file.

A row that cannot be used becomes a `RowError` and the others go on; only a file that cannot be read as a whole raises.
Text is UTF-8 (with or without BOM), or UTF-16 or UTF-32 with one. Rows count from 1: lines of a JSONL file, records
after the header of a CSV file. Files that a row names are not opened here, and nothing is known of Ray or of cards.

Run its tests: pytest tests/unit/test_manifest.py
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from sakuga.errors import InputError, ManifestError, shown
from sakuga.recipe.limits import LIMITS
from sakuga.recipe.request import (
    REQUEST_FIELDS,
    RecipeRequest,
    check_id,
    parse_request,
    seed_from_content,
    unknown_fields,
)

MAX_MANIFEST_BYTES = 512 * 1024**2  # read whole; a row of 1 kB each, this is half a million videos
MAX_LINE_CHARS = 1_000_000  # the longest legal row, two prompts of 32,000 characters all escaped, has 400,000
PARQUET_BATCH_ROWS = 1024
ACCEPTED = "accepted are .jsonl, .csv, .tsv and .parquet"
BYTE_ORDER_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
NOT_TEXT = ((b"PAR1", "a Parquet file"), (b"\x1f\x8b", "compressed with gzip"), (b"PK\3\4", "a ZIP or Excel file"))
UNDECODED = re.compile("[\udc80-\udcff]")  # what `surrogateescape` makes of bytes that are not UTF-8
NESTED_FIELDS = ("loras", "step_cache", "tiling")

RawRow = tuple[int, Mapping[str, object] | InputError]
"""The number of a row with its fields, or with what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestRow:
    """A row that can be rendered, with id and seed filled in."""

    number: int
    id: str
    """The row's own, else `row-0001` after its number; unique in the manifest."""
    request: RecipeRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class RowError:
    """A row that cannot be rendered, and why."""

    number: int
    id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a manifest file asks for."""

    path: Path
    rows: tuple[ManifestRow, ...]
    errors: tuple[RowError, ...]

    @property
    def base_dir(self) -> Path:
        """Relative paths of the rows start here."""
        return self.path.parent


def read_manifest(path: str | Path, defaults: Mapping[str, object] | None = None) -> Manifest:
    """All rows of a manifest, good and bad. `defaults` fills fields that a row leaves out.

    Raises ManifestError when the file as a whole cannot be read or has no rows; RecipeError and its relatives when
    the defaults themselves are wrong, which would else be reported once a row.
    """
    path = Path(path)
    parse_request({"prompt": "a dance"}, {**(defaults or {}), "id": None})
    rows: list[ManifestRow] = []
    errors: list[RowError] = []
    used_ids: dict[str, int] = {}
    for number, raw in _raw_rows(path):
        row_id = _row_id(number, raw)
        try:
            rows.append(_row(number, row_id, raw, defaults or {}, used_ids))
        except InputError as error:
            errors.append(RowError(number=number, id=row_id, code=error.code, message=error.message))
    if not rows and not errors:
        raise ManifestError(f"{shown(path)} is empty; write one video a row")
    return Manifest(path=path, rows=tuple(rows), errors=tuple(errors))


def _row(
    number: int,
    row_id: str,
    raw: Mapping[str, object] | InputError,
    defaults: Mapping[str, object],
    used_ids: dict[str, int],
) -> ManifestRow:
    if isinstance(raw, InputError):
        raise raw
    own_id = raw.get("id")
    request = parse_request({**raw, "id": row_id if own_id is None else own_id}, defaults)
    if request.seed is None:
        request = request.model_copy(update={"seed": seed_from_content(raw)})
    first = used_ids.setdefault(row_id.casefold(), number)  # casefold: some file systems do not tell A from a
    if first != number:
        raise ManifestError(f"the id {shown(row_id)} is already that of row {first}; give each row its own")
    return ManifestRow(number=number, id=row_id, request=request)


def _row_id(number: int, raw: Mapping[str, object] | InputError) -> str:
    """The row's own id when it is a legal one: reports and file names must never carry anything else."""
    if isinstance(raw, Mapping) and raw.get("id") is not None:
        try:
            return check_id(raw["id"])
        except InputError:
            return f"row-{number:04d}"  # parse_request reports the id itself
    return f"row-{number:04d}"


def _raw_rows(path: Path) -> Iterator[RawRow]:
    suffix = path.suffix.lower()
    readers = {
        ".jsonl": _jsonl_rows,
        ".ndjson": _jsonl_rows,
        ".csv": _csv_rows,
        ".tsv": _csv_rows,
        ".parquet": _parquet_rows,
    }
    if suffix not in readers:
        hint = "; write one JSON object a line and name it .jsonl" if suffix == ".json" else ""
        raise ManifestError(f"{shown(path)} ends in {shown(suffix)}; {ACCEPTED}{hint}")
    try:
        if not path.is_file():
            raise ManifestError(f"{shown(path)} does not exist or is not a file; check the path")
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise ManifestError(f"{shown(path)} is larger than {MAX_MANIFEST_BYTES:,} bytes; split it")
        yield from readers[suffix](path)
    except OSError as error:
        raise ManifestError(f"{shown(path)} cannot be read ({error.strerror or error}); check it") from error


def _text(path: Path) -> str:
    """The file as text; bytes that are not UTF-8 become lone surrogates, which the rows they stand in report."""
    data = path.read_bytes()
    for signature, name in NOT_TEXT:
        if data.startswith(signature):
            raise ManifestError(f"{shown(path)} is {name}, not text; give it its right suffix or convert it")
    for mark, encoding in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data.decode(encoding, "surrogateescape" if encoding == "utf-8-sig" else "replace")
    if data[:1000].count(0) > len(data[:1000]) // 4:
        raise ManifestError(f"{shown(path)} looks like UTF-16 without a byte order mark; save it as UTF-8")
    return data.decode("utf-8", "surrogateescape")


def _jsonl_rows(path: Path) -> Iterator[RawRow]:
    lines = _text(path).split("\n")  # not splitlines: U+2028 may stand in a prompt
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _json_row(line, is_cut_off=number == len(lines))


def _json_row(line: str, *, is_cut_off: bool) -> Mapping[str, object] | InputError:
    """The object of one line. `is_cut_off`: no line break ends it, as after a writer that was stopped."""
    if len(line) > MAX_LINE_CHARS:
        return ManifestError(f"the line has {len(line):,} characters; at most {MAX_LINE_CHARS:,} are taken")
    if UNDECODED.search(line):
        return ManifestError("the line is not UTF-8; save the file as UTF-8")
    try:
        value = json.loads(line, object_pairs_hook=_no_field_twice, parse_constant=_no_constant)
    except InputError as error:
        return error
    except json.JSONDecodeError as error:
        if is_cut_off:
            return ManifestError(f"the last line is cut off after {shown(line[-20:])}; write it again")
        return ManifestError(f"not JSON at column {error.colno} ({error.msg}); write one JSON object a line")
    except (ValueError, RecursionError) as error:  # a number of over 4,300 digits; nesting beyond the stack
        return ManifestError(f"JSON that cannot be read ({type(error).__name__}); simplify the line")
    if not isinstance(value, dict):
        return ManifestError(f"the line holds {shown(value)}; write one JSON object a line")
    return value


def _no_field_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ManifestError(f"the field {shown(twice)} stands twice; keep one of them")
    return fields


def _no_constant(constant: str) -> object:
    raise ManifestError(f"the line has {constant}, which is no JSON; write a number or leave the field out")


def _csv_rows(path: Path) -> Iterator[RawRow]:
    text = _text(path)
    first_line = text.lstrip("\r\n").partition("\n")[0]
    # Excel writes `;` in many countries and tabs into its UTF-16 files; field names hold none of the three.
    delimiter = max(",;\t", key=first_line.count)
    lines = list(io.StringIO(text, newline=""))
    records = _records(path, lines, delimiter)
    header = next(records, [])
    if isinstance(header, InputError):
        raise ManifestError(f"{shown(path)} has a header that cannot be read: {header}; name the columns in line 1")
    names = [name.strip() for name in header]
    while names and not names[-1]:  # a spreadsheet's empty columns at the right
        names.pop()
    _check_columns(path, names)
    for number, record in enumerate(records, start=1):
        if isinstance(record, InputError):
            yield number, record
        elif any(cell.strip() for cell in record):
            yield number, _csv_row(names, record)


def _records(path: Path, lines: list[str], delimiter: str) -> Iterator[list[str] | InputError]:
    """The records of CSV lines; a line that cannot be read is an error in its place, and the next one follows.

    Raises ManifestError when a record that cannot be read goes on over several lines: which of them are rows that an
    open quote has swallowed, nobody can tell.
    """
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        first = reader.line_num
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            read = lines[first : reader.line_num]
            opened = _open_quote(read)
            line = first + 1 + (opened or 0)
            if "field limit" in str(error):
                size = f"more than {csv.field_size_limit():,} characters"
                # The reader stops in the middle of the line: with a quote open, the next line may still be this cell.
                if len(read) > 1 or opened is not None:
                    raise ManifestError(
                        f"{shown(path)} has a cell of {size} from line {line} on; shorten it or close its quote"
                    ) from error
                yield ManifestError(f"a cell has {size}; shorten it")
            elif len(read) > 1:
                raise ManifestError(
                    f"{shown(path)} has a quote in line {line} that is not closed where its cell ends, so the rows "
                    f"after it cannot be told apart; close it"
                ) from error
            else:
                yield ManifestError(f"the quotes of the row do not match ({error}); mend them")


def _open_quote(lines: list[str]) -> int | None:
    """Index of the line whose quote is still open after the last one; None when every quote is closed.

    >>> _open_quote(['a,"x"', 'b,"y', 'c,"z"'])
    1
    """
    opened = None
    for index, line in enumerate(lines):
        if line.count('"') % 2:  # an escaped quote is two of them
            opened = index if opened is None else None
    return opened


def _csv_row(names: list[str], record: list[str]) -> Mapping[str, object] | InputError:
    if len(record) < len(names) or any(cell.strip() for cell in record[len(names) :]):
        num_lines = 1 + sum(cell.count("\n") for cell in record)
        over = (
            f" over {num_lines} lines" if num_lines > 1 else ""
        )  # rows of their own that an open quote has swallowed?
        return ManifestError(
            f"the row has {len(record)} cells{over}, the header {len(names)}; it is cut off, or a comma stands outside "
            f"quotes"
        )
    if any(UNDECODED.search(cell) for cell in record):
        return ManifestError("the row is not UTF-8; save the file as UTF-8")
    try:
        return {name: _cell_value(name, cell) for name, cell in zip(names, record, strict=False) if cell.strip()}
    except InputError as error:
        return error


def _cell_value(field: str, cell: str) -> object:
    """A cell as the type of its field. A number that cannot be read stays text, which the field's check reports.

    >>> _cell_value("num_frames", "33"), _cell_value("loras", "fairy:0.8; glow")
    (33, ['fairy:0.8', 'glow'])
    """
    text = cell.strip()
    if field in LIMITS:
        if re.fullmatch(r"[+-]?\d{1,40}", text):
            return int(text)
        try:
            return float(text)
        except ValueError:
            return text
    if field in NESTED_FIELDS and text.startswith(("{", "[")):
        value = _json_row(f'{{"cell": {text}}}', is_cut_off=False)
        if isinstance(value, InputError):
            raise ManifestError(f"{field}: {value.message}")
        return value["cell"]
    if field == "loras":
        return [name.strip() for name in text.split(";")]
    return cell


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    import pyarrow  # 0.2 s to import, and only this kind of manifest needs it
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            _check_columns(path, names)
            batches = file.iter_batches(batch_size=PARQUET_BATCH_ROWS)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ManifestError(f"{shown(path)} is damaged or no Parquet ({shown(reason)}); write it again") from error


def _check_columns(path: Path, names: Iterable[str]) -> None:
    """A wrong column is wrong for every row: the manifest is refused before anything is rendered."""
    names = list(names)
    unknown = [name for name in names if name not in REQUEST_FIELDS]
    if unknown:
        raise ManifestError(f"{shown(path)} has {len(names):,} columns; {unknown_fields(unknown)}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ManifestError(f"{shown(path)} has the column {shown(twice)} twice; keep one of them")
