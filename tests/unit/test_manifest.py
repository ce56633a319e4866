"""Manifests: three formats, every way to break one, and the rows that go on all the same."""

import codecs
import csv
import io
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sakuga.errors import ManifestError, RecipeError
from sakuga.recipe.manifest import Manifest, read_manifest

ROWS = [
    {"id": "first", "prompt": "a fairy, dancing", "seed": 3, "guidance_scale": 4.5, "loras": "fairy:0.8"},
    {"id": "second", "prompt": 'she says "hello"\nand spins', "num_frames": 17, "input_image": "in/photo.png"},
    {"id": "third", "prompt": "妖精が踊る\u2028in one line of the file"},
]


def as_jsonl(rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def as_csv(rows, delimiter: str = ",") -> bytes:
    names = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, names, delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


def as_parquet(rows) -> bytes:
    names = list(dict.fromkeys(name for row in rows for name in row))
    return parquet_bytes({name: [row.get(name) for row in rows] for name in names})


def parquet_bytes(columns) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    return buffer.getvalue()


FORMATS = {"jsonl": as_jsonl, "csv": as_csv, "parquet": as_parquet}
EMPTY_PARQUET = parquet_bytes({"prompt": pyarrow.array([], pyarrow.string())})


def read(tmp_path, name: str, data: bytes | str, **defaults) -> Manifest:
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_manifest(path, defaults)


def the_error(manifest: Manifest, number: int) -> tuple[str, str]:
    [error] = [error for error in manifest.errors if error.number == number]
    assert error.message.isprintable()
    return error.code, error.message


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_three_formats_say_the_same(tmp_path, suffix):
    manifest = read(tmp_path, f"m.{suffix}", FORMATS[suffix](ROWS), width=160)
    assert manifest.errors == ()
    assert [row.id for row in manifest.rows] == ["first", "second", "third"]
    requests = [row.request for row in manifest.rows]
    assert [request.prompt for request in requests] == [row["prompt"] for row in ROWS]
    assert [request.width for request in requests] == [160] * 3
    assert (requests[0].seed, requests[0].guidance_scale, requests[0].loras[0].weight) == (3, 4.5, 0.8)
    assert (requests[1].num_frames, requests[1].input_image) == (17, "in/photo.png")
    assert manifest.base_dir == tmp_path
    from_jsonl = read(tmp_path, "other.jsonl", as_jsonl(ROWS), width=160)
    assert [row.request for row in from_jsonl.rows] == requests  # the seeds of the last two among it


def test_seeds_of_rows_without_one_stay_and_differ(tmp_path):
    first = read(tmp_path, "m.jsonl", as_jsonl(ROWS))
    again = read(tmp_path, "n.jsonl", as_jsonl(reversed(ROWS)), num_inference_steps=5)
    seeds = {row.id: row.request.seed for row in first.rows}
    assert seeds == {row.id: row.request.seed for row in again.rows}
    assert len(set(seeds.values())) == 3


@pytest.mark.parametrize("name", ["m.jsonl", "m.csv"])
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
    ],
)
def test_byte_order_marks(tmp_path, name, mark, encoding):
    data = FORMATS[name[2:]](ROWS).decode()
    manifest = read(tmp_path, name, mark + data.encode(encoding))
    assert manifest.errors == ()
    assert [row.request.prompt for row in manifest.rows] == [row["prompt"] for row in ROWS]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_the_csv_of_spreadsheets(tmp_path, delimiter):
    manifest = read(tmp_path, "m.csv", as_csv(ROWS, delimiter))
    assert [row.id for row in manifest.rows] == ["first", "second", "third"]


def test_utf_16_without_a_mark(tmp_path):
    with pytest.raises(ManifestError, match="UTF-16"):
        read(tmp_path, "m.jsonl", as_jsonl(ROWS[:1]).decode().encode("utf-16-le"))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("m.jsonl", b""),
        ("m.jsonl", b"\n \n"),
        ("m.jsonl", codecs.BOM_UTF8),
        ("m.csv", b""),
        ("m.csv", b"prompt,seed\n"),
        ("m.csv", b"prompt,seed\n,\n\n"),
        ("m.parquet", EMPTY_PARQUET),
    ],
)
def test_empty_manifests(tmp_path, name, data):
    with pytest.raises(ManifestError, match="is empty"):
        read(tmp_path, name, data)


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("m.jsonl", as_parquet(ROWS), "is a Parquet file"),
        ("m.csv", b"\x1f\x8b\x08\0", "gzip"),
        ("m.csv", b"PK\x03\x04", "Excel"),
        ("m.parquet", as_jsonl(ROWS), "no Parquet"),
        ("m.parquet", b"", "no Parquet"),
        ("m.parquet", as_parquet(ROWS)[:-100], "no Parquet"),
        ("m.parquet", as_parquet(ROWS)[:200], "no Parquet"),
        ("m.txt", b"x", "accepted are .jsonl, .csv"),
        ("m.json", b"[]", "name it .jsonl"),
        ("m.csv", b"prompt,prompt\n", "'prompt' twice"),
        ("m.csv", b"prompt,widht\nx,128\n", "did you mean 'width'"),
        ("m.csv", b'prompt,"wid', "header"),
        ("m.parquet", as_parquet([{"promt": "x"}]), "did you mean 'prompt'"),
    ],
)
def test_manifests_that_cannot_be_read_at_all(tmp_path, name, data, part):
    with pytest.raises(ManifestError) as caught:
        read(tmp_path, name, data)
    assert part in caught.value.message
    assert caught.value.message.isprintable()


def test_manifests_that_are_not_there(tmp_path):
    with pytest.raises(ManifestError, match="does not exist"):
        read_manifest(tmp_path / "none.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ManifestError, match="not a file"):
        read_manifest(tmp_path / "folder.jsonl")


@pytest.mark.parametrize("suffix", FORMATS)
def test_ten_thousand_columns(tmp_path, suffix):
    row = {"prompt": "x", **{f"column{number}": number for number in range(9_999)}}
    if suffix == "jsonl":
        manifest = read(tmp_path, "m.jsonl", as_jsonl([row, {"prompt": "fine"}]))
        code, message = the_error(manifest, 1)
        assert code == "E_RECIPE"
        assert [row.number for row in manifest.rows] == [2]
    else:
        with pytest.raises(ManifestError, match="10,000 columns") as caught:
            read(tmp_path, f"m.{suffix}", FORMATS[suffix]([row]))
        message = caught.value.message
    assert "and 9996 more" in message
    assert len(message) < 400


BAD_LINES = [
    ('{"prompt": "x", "widht": 128}', "E_RECIPE", "did you mean 'width'"),
    ('{"prompt": ""}', "E_PROMPT", "empty"),
    ('{"seed": 3}', "E_RECIPE", "'prompt' is missing"),
    (json.dumps({"prompt": "x" * 32_001}), "E_PROMPT", "32001"),
    (r'{"prompt": "\u001b[31mred"}', "E_PROMPT", "U+001B"),
    (r'{"prompt": "\ud83e"}', "E_PROMPT", "U+D83E"),
    ('{"prompt": "x", "width": 0}', "E_GEOMETRY", "width is 0"),
    ('{"prompt": "x", "width": "128"}', "E_GEOMETRY", "text"),
    ('{"prompt": "x", "num_frames": -1}', "E_GEOMETRY", "num_frames"),
    ('{"prompt": "x", "num_frames": 1000000}', "E_GEOMETRY", "num_frames"),
    ('{"prompt": "x", "num_inference_steps": 0}', "E_RECIPE", "num_inference_steps is 0"),
    ('{"prompt": "x", "seed": -1}', "E_RECIPE", "seed is -1"),
    ('{"prompt": "x", "seed": 9223372036854775808}', "E_RECIPE", "seed is 9223372036854775808"),
    ('{"prompt": "x", "guidance_scale": NaN}', "E_MANIFEST", "NaN"),
    ('{"prompt": "x", "guidance_scale": -Infinity}', "E_MANIFEST", "-Infinity"),
    ('{"prompt": "x", "guidance_scale": 1e999}', "E_RECIPE", "inf"),
    ('{"prompt": "x", "seed": ' + "9" * 5000 + "}", "E_MANIFEST", "cannot be read"),
    ('{"prompt": "x", "prompt": "y"}', "E_MANIFEST", "'prompt' stands twice"),
    ('{"prompt": "x", "input_image": 5}', "E_IMAGE", "path"),
    ('{"prompt": "x", "id": "../x"}', "E_RECIPE", "id is"),
    ("[" * 100_000, "E_MANIFEST", "cannot be read"),
    ('["prompt"]', "E_MANIFEST", "one JSON object a line"),
    ('"prompt"', "E_MANIFEST", "one JSON object a line"),
    ('{"prompt": "x"', "E_MANIFEST", "not JSON at column"),
    ("prompt: x", "E_MANIFEST", "not JSON at column 1"),
    (json.dumps({"prompt": "x", "negative_prompt": "y" * 1_000_000}), "E_MANIFEST", "1,000,000"),
]


@pytest.mark.parametrize(("line", "code", "part"), BAD_LINES, ids=[f"{part}-{code}" for _, code, part in BAD_LINES])
def test_a_bad_line_is_reported_and_the_others_go_on(tmp_path, line, code, part):
    manifest = read(tmp_path, "m.jsonl", f'{{"prompt": "before"}}\n{line}\n{{"prompt": "after"}}\n')
    assert [(row.number, row.request.prompt) for row in manifest.rows] == [(1, "before"), (3, "after")]
    assert [(error.number, error.id, error.code) for error in manifest.errors] == [(2, "row-0002", code)]
    assert part in the_error(manifest, 2)[1]


def test_bytes_that_are_not_utf_8(tmp_path):
    good, bad = b'{"prompt": "x"}\n', b'{"prompt": "caf\xe9"}\n'
    manifest = read(tmp_path, "m.jsonl", good + bad)
    assert (len(manifest.rows), the_error(manifest, 2)[0]) == (1, "E_MANIFEST")
    manifest = read(tmp_path, "m.csv", b"prompt\nx\ncaf\xe9\n")
    assert (len(manifest.rows), the_error(manifest, 2)[0]) == (1, "E_MANIFEST")


def test_a_half_written_last_line(tmp_path):
    whole, last = as_jsonl(ROWS[:2]), as_jsonl(ROWS[1:2])
    for length in range(1, len(last) - 1):
        manifest = read(tmp_path, "m.jsonl", as_jsonl(ROWS[:1]) + last[:length])
        assert [row.id for row in manifest.rows] == ["first"]
        assert "cut off" in the_error(manifest, 2)[1]
    complete = read(tmp_path, "m.jsonl", whole.rstrip(b"\n"))
    assert [row.id for row in complete.rows] == ["first", "second"]


@pytest.mark.parametrize(
    ("last", "part"),
    [
        (b'c,"half a pro', "quotes"),
        (b"c", "1 cells, the header 2"),
        (b"c,d,e", "3 cells, the header 2"),
        (b'c,"d"e', "quotes"),
        (b'c,"half\nd,z\ne,q",5', "3 cells over 3 lines"),
    ],
)
def test_a_broken_csv_row(tmp_path, last, part):
    manifest = read(tmp_path, "m.csv", b"id,prompt\na,x\nb,y\n" + last)
    assert [row.id for row in manifest.rows] == ["a", "b"]
    assert part in the_error(manifest, 3)[1]


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        (b'b,"half\nc,z\nd,w\n', 3),
        (b'b,"half\nc,z\nd,"whole"\n', 3),
        (b'b,"half\nc,z\nd,"half\n', 3),
        (b'b,"two\nlines"\nc,"he said ""no""\nd,w\n', 5),
        (b'"b","half\r\n"c","z"\r\n', 3),
        (b'b,"' + b"y" * 140_000 + b"\nc,z\n", 3),
        (b'b,"half\n' + b"c,z\n" * 40_000, 3),
    ],
)
def test_a_quote_that_stays_open_swallows_no_row(tmp_path, rows, line):
    with pytest.raises(ManifestError, match=f"line {line} "):
        read(tmp_path, "m.csv", b"id,prompt\na,x\n" + rows)


@pytest.mark.parametrize("quote", [b"", b'"'])
def test_a_csv_cell_over_the_limit_costs_its_own_row(tmp_path, quote):
    manifest = read(tmp_path, "m.csv", b"id,prompt\na,x\nb," + quote + b"y" * 140_000 + quote + b"\nc,z\n")
    assert [row.id for row in manifest.rows] == ["a", "c"]
    assert "131,072 characters" in the_error(manifest, 2)[1]


@pytest.mark.parametrize(
    ("field", "cell", "code"),
    [
        ("seed", "1.5", "E_RECIPE"),
        ("seed", "abc", "E_RECIPE"),
        ("seed", "9223372036854775808", "E_RECIPE"),
        ("seed", "-1", "E_RECIPE"),
        ("width", "1e3x", "E_GEOMETRY"),
        ("guidance_scale", "nan", "E_RECIPE"),
        ("guidance_scale", "inf", "E_RECIPE"),
        ("loras", "fairy:x", "E_RECIPE"),
        ("loras", '[{"name": }]', "E_MANIFEST"),
        ("tiling", "yes", "E_RECIPE"),
    ],
)
def test_csv_cells_of_the_wrong_type(tmp_path, field, cell, code):
    manifest = read(tmp_path, "m.csv", as_csv([{"prompt": "x", field: cell}, {"prompt": "y"}]))
    assert the_error(manifest, 1)[0] == code
    assert [row.number for row in manifest.rows] == [2]


def test_csv_cells_of_every_type(tmp_path):
    row = {
        "prompt": "x",
        "seed": "9223372036854775807",
        "width": "128.0",  # as a spreadsheet or pandas may write it
        "guidance_scale": "1e1",
        "loras": "fairy:0.5; glow",
        "tiling": '{"tile_height": 20}',
    }
    [row] = read(tmp_path, "m.csv", as_csv([row])).rows
    assert (row.request.seed, row.request.width, row.request.guidance_scale) == (2**63 - 1, 128, 10.0)
    assert [(lora.name, lora.weight) for lora in row.request.loras] == [("fairy", 0.5), ("glow", 1.0)]
    assert row.request.tiling.tile_height == 20


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"seed": [1.0, float("nan")]}, "E_RECIPE"),
        ({"width": ["128", "wide"]}, "E_GEOMETRY"),
        ({"prompt": [b"x", b"y"]}, "E_PROMPT"),
        ({"loras": [[{"name": "a b"}], [{"name": "a b"}]]}, "E_RECIPE"),
    ],
)
def test_parquet_columns_of_the_wrong_type(tmp_path, values, code):
    manifest = read(tmp_path, "m.parquet", parquet_bytes({"prompt": ["x", "y"], **values}))
    assert the_error(manifest, 2)[0] == code


def test_an_id_used_twice(tmp_path):
    manifest = read(tmp_path, "m.jsonl", as_jsonl([{"id": name, "prompt": "x"} for name in ("a", "A", "b")]))
    assert [row.id for row in manifest.rows] == ["a", "b"]
    assert "already that of row 1" in the_error(manifest, 2)[1]


def test_ids_in_reports_are_always_safe(tmp_path):
    manifest = read(tmp_path, "m.jsonl", as_jsonl([{"id": "x\x1b[31m/../y", "prompt": "x"}, {"id": 7, "prompt": "y"}]))
    assert [error.id for error in manifest.errors] == ["row-0001"]
    assert [(row.id, row.request.id) for row in manifest.rows] == [("7", "7")]


def test_bad_defaults_are_told_once_and_at_the_start(tmp_path):
    with pytest.raises(RecipeError, match="num_inference_steps is 0"):
        read(tmp_path, "m.jsonl", as_jsonl(ROWS), num_inference_steps=0)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=60), suffix=st.sampled_from(list(FORMATS)))
@example(data=b'prompt\n"\0', suffix="csv")
@example(data=b"prompt\r\rx\n\ry", suffix="csv")
def test_no_bytes_break_the_reader(tmp_path, data, suffix):
    try:
        manifest = read(tmp_path, f"m.{suffix}", data)
    except ManifestError as error:
        messages = [error.message]
    else:
        assert manifest.rows or manifest.errors
        messages = [error.message for error in manifest.errors]
    assert all(message.isprintable() for message in messages)
