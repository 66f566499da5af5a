"""Files of a table: where they are, what they hold, what their rows are."""

import codecs
import gzip
import io
import os
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sllmr.components.interactions_example_gen.config import CsvConfig, DataConfig
from sllmr.components.interactions_example_gen.files import MAX_LINES_OF_A_ROW, DataError, open_table, table_paths
from sllmr.components.interactions_example_gen.tables import check_tables, read_interactions, read_items

ITEMS = b"item_id,title\ni1,First\ni2,Second\n"


def parquet_bytes(**columns):
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns or {"item_id": ["i1"], "title": ["First"]}), buffer)
    return buffer.getvalue()


def zip_bytes():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("items.csv", ITEMS)
    return buffer.getvalue()


def make(path, content=ITEMS):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def titles(path, **settings):
    config = DataConfig.model_validate({"interactions": "unused.csv", "items": path, **settings})
    return [item.title for item in read_items(table_paths(path, "data.items"), config)]


def test_a_folder_is_its_parts_without_what_a_writer_leaves_beside_them(tmp_path):
    for name in ("b.csv", "a.csv", "_SUCCESS", ".a.csv.crc"):
        make(tmp_path / "parts" / name)
    names = [os.path.basename(path) for path in table_paths(str(tmp_path / "parts"), "data.items")]
    assert names == ["a.csv", "b.csv"]


@pytest.mark.parametrize(
    ("folders", "message"), [(["dt=2024-03-01"], r"holds folders, such as dt=2024-03-01; write"), ([], "without files")]
)
def test_a_folder_that_holds_no_parts_is_refused(tmp_path, folders, message):
    (tmp_path / "parts").mkdir()
    for folder in folders:
        make(tmp_path / "parts" / folder / "a.csv")
    with pytest.raises(DataError, match=message):
        table_paths(str(tmp_path / "parts"), "data.items")


def test_two_stars_find_files_in_folders(tmp_path):
    expected = sorted(make(tmp_path / folder / "a.csv") for folder in ("x", "x/y", "z"))
    assert sorted(table_paths(str(tmp_path / "**" / "*.csv"), "data.items")) == expected


@pytest.mark.parametrize("pattern", ["[old]/items.csv", "[old]/*.csv", "[old]"])
def test_brackets_of_a_folder_are_its_name(tmp_path, pattern):
    path = make(tmp_path / "[old]" / "items.csv")
    assert table_paths(str(tmp_path / pattern), "data.items") == [path]


def test_brackets_are_a_pattern_where_no_file_is_named_so(tmp_path):
    paths = [make(tmp_path / f"part{n}.csv") for n in range(3)]
    assert table_paths(str(tmp_path / "part[01].csv"), "data.items") == paths[:2]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=rf"matches none \({tmp_path}/nowhere does not exist\)"):
        table_paths(str(tmp_path / "nowhere" / "deep" / "a.csv"), "data.items")


@pytest.mark.parametrize("address", ["s3://bucket/a.csv", "https://me:hunter2@host/a.csv", "gs://b/*.parquet"])
def test_an_address_is_refused_and_not_repeated(address):
    with pytest.raises(ValueError, match="must be a path on this machine") as caught:
        DataConfig(interactions=address, items="b.csv")
    assert "hunter2" not in str(caught.value.errors()[0]["msg"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("items.csv", gzip.compress(ITEMS), "must be CSV as its name says, but is gzip; add the suffix .gz"),
        ("items.csv", parquet_bytes(), "but is Parquet; rename it to end in .parquet"),
        ("items.csv", zip_bytes(), "but is a zip archive or a spreadsheet"),
        ("items.csv", b'{"item_id": 1}\n', "but is JSON"),
        ("items.csv", b"<!DOCTYPE html><html>", "but is HTML or XML"),
        ("items.csv", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("items.csv", codecs.BOM_UTF16_LE + ITEMS.decode().encode("utf-16-le"), "encoding: utf-16 "),
        ("items.csv", b"", "the file is empty"),
        ("items.csv.gz", ITEMS, "must be gzip as its name says, but is not; remove the suffix .gz"),
        ("items.csv.gz", parquet_bytes(), "must be gzip as its name says, but is Parquet"),
        ("items.csv.gz", gzip.compress(parquet_bytes()), "but is Parquet; rename it to end in .parquet.gz"),
        ("items.csv.gz", gzip.compress(gzip.compress(ITEMS)), "is gzip within gzip; unpack it once"),
        ("items.parquet", ITEMS, "must be Parquet as its name says, but looks like text; rename it to end in .csv"),
        ("items.parquet", gzip.compress(parquet_bytes()), "must be Parquet as its name says, but is gzip"),
        ("items.parquet", parquet_bytes()[:-100], "must be Parquet, but"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",  # the same in every worker process
)
def test_content_that_is_not_what_the_name_says_is_named(tmp_path, name, content, message):
    path = make(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        check_tables(DataConfig(interactions=path, items=path))


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_another_separator_is_guessed_in_the_error_and_read_when_set(tmp_path, separator):
    path = make(tmp_path / "items.csv", ITEMS.replace(b",", separator.encode()))
    with pytest.raises(DataError, match=r"seem to be separated by .*: set data.items_csv.separator"):
        titles(path)
    assert titles(path, items_csv={"separator": separator}) == ["First", "Second"]
    assert titles(path, csv={"separator": separator}) == ["First", "Second"]


def test_a_tab_may_be_written_as_backslash_t():
    assert CsvConfig(separator="\\t").separator == "\t"


@pytest.mark.parametrize("settings", [{"separator": "::"}, {"separator": ""}, {"encoding": "latin-99"}])
def test_what_is_no_separator_or_encoding_is_refused(settings):
    with pytest.raises(ValueError, match="must be"):
        CsvConfig(**settings)


def test_a_file_without_a_header_says_so(tmp_path):
    path = make(tmp_path / "i.csv", b"A39HTATAQ9V7YF,0205616461,5.0,1369699200\n")
    items = make(tmp_path / "items.csv")
    with pytest.raises(DataError, match="the first line looks like data: put a header line"):
        check_tables(DataConfig(interactions=path, items=items))


@pytest.mark.parametrize("encoding", ["windows-1252", "utf-16", "utf-8-sig", "shift_jis"])
def test_a_configured_encoding_is_read(tmp_path, encoding):
    title = "カフェ" if encoding == "shift_jis" else "Café"
    path = make(tmp_path / "items.csv", f"item_id,title\ni1,{title}\n".encode(encoding))
    assert titles(path, csv={"encoding": encoding}) == [title]


WIDE = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


@pytest.mark.parametrize("encoding", WIDE)
def test_wide_text_with_and_without_a_mark_is_named_and_read_when_set(tmp_path, encoding):
    path = make(tmp_path / "items.csv", "item_id,title\ni1,Café 日本\n".encode(encoding))
    with pytest.raises(DataError, match=rf"looks like {encoding.upper()}; set data.items_csv.encoding: {encoding} "):
        titles(path)
    assert titles(path, items_csv={"encoding": encoding}) == ["Café 日本"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_text_that_is_not_as_wide_as_configured_is_named(tmp_path, encoding):
    path = make(tmp_path / "items.csv")
    with pytest.raises(DataError, match=r"looks like UTF-8; set data\.items_csv\.encoding: utf-8 "):
        titles(path, csv={"encoding": encoding})


@pytest.mark.parametrize(
    ("encoding", "title"),
    [
        ("windows-1252", "Crème brûlée – 5 €"),
        ("windows-1250", "Zażółć gęślą jaźń"),
        ("iso-8859-2", "Škoda řeka źdźbło"),
        ("windows-1251", "Русский товар"),
        ("windows-1253", "Ελληνικά"),
        ("koi8-r", "Русский товар"),
        ("shift_jis", "日本語テスト商品"),
        ("euc_jp", "日本語テスト商品"),
        ("gb18030", "中文产品名称"),
        ("big5", "中文產品"),
        ("euc_kr", "한국어 상품"),
    ],
)
def test_text_in_another_encoding_is_a_bad_row_that_shows_how_it_reads_and_costs_itself(tmp_path, encoding, title):
    path = make(tmp_path / "items.csv", f"item_id,title\ni1,{title}\ni2,Tea\n".encode(encoding))
    bad, good = read_items([path], DataConfig(interactions="unused.csv", items=path))
    assert "title must be UTF-8 text; it reads" in str(bad)
    assert f"{title!r} as {encoding}" in str(bad)
    assert good.title == "Tea"
    assert titles(path, items_csv={"encoding": encoding}) == [title, "Tea"]


def test_the_text_of_a_user_id_in_another_encoding_is_not_shown(tmp_path):
    path = make(tmp_path / "i.csv", "user_id,item_id,timestamp\nJosé,i1,2024-01-01\n".encode("windows-1252"))
    (bad,) = read_interactions(path, DataConfig(interactions=path, items="unused.csv"))
    assert "set data.csv.encoding to the right one of windows-1252, " in str(bad)
    assert "Jos" not in str(bad)


def test_a_long_field_is_read(tmp_path):
    path = make(tmp_path / "items.csv", b"item_id,title\ni1," + b"x" * 200_000 + b"\n")
    assert [len(title) for title in titles(path)] == [200_000]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'i9,"open', "malformed_quotes"),
        (b'i9,"closed" too early', "malformed_quotes"),
        (b'"i9,open', "malformed_quotes"),
        (b"i9,a,b", "wrong_number_of_fields"),
        (b"i9,a,", "wrong_number_of_fields"),
        (b"\x00\x00\x00", "wrong_number_of_fields"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_malformed_row_costs_itself_wherever_it_stands(tmp_path, line, reason, place):
    lines = [b"i1,First", b'i2,"Second, again"']
    lines.insert(place, line)
    path = make(tmp_path / "items.csv", b"item_id,title\n" + b"\n".join(lines) + b"\n")
    rows = list(read_items([path], DataConfig(interactions="unused.csv", items=path)))
    bad = [row for row in rows if hasattr(row, "reason")]
    assert [(row.row, row.reason) for row in bad] == [(place + 2, reason)]
    assert [row.title for row in rows if row not in bad] == ["First", "Second, again"]


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        (b"i9,a,", "rows end with a separator that the header lacks"),
        (b"\x00\x00", "it holds NUL bytes"),
        (b"i9,a,b", "check its quotes"),
    ],
)
def test_a_row_of_another_width_says_what_it_looks_like(tmp_path, line, fix):
    path = make(tmp_path / "items.csv", b"item_id,title\n" + line + b"\n")
    (bad,) = read_items([path], DataConfig(interactions="unused.csv", items=path))
    assert fix in str(bad)


def test_an_open_quote_does_not_hold_the_rest_of_a_large_file(tmp_path):
    count = 2 * MAX_LINES_OF_A_ROW
    rows = b"".join(b"i%d,title\n" % n for n in range(count))
    path = make(tmp_path / "items.csv", b'item_id,title\nx,"open\n' + rows)
    with open_table(path, CsvConfig(), "data.items_csv") as table:
        read = [values for _, values in table.rows(["item_id", "title"]) if isinstance(values, tuple)]
    assert len(read) == count


def test_quotes_may_be_characters_like_any_other(tmp_path):
    path = make(tmp_path / "items.csv", b'item_id\ttitle\ni1\t"Weird Al" Yankovic\n')
    config = DataConfig(interactions="unused.csv", items=path, csv=CsvConfig(separator="\t"))
    (bad,) = read_items([path], config)
    assert "set data.csv.quotes: false" in str(bad)
    assert titles(path, csv={"separator": "\t", "quotes": False}) == ['"Weird Al" Yankovic']


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("items.tsv", ITEMS, r"rename it to end in .csv and set data.csv.separator"),
        ("items.csv", b"sep=;\n" + ITEMS.replace(b",", b";"), "remove the first line, which is for spreadsheets"),
        ("items.csv", b"1::Toy Story (1995)::Animation\n", "separated by '::': replace it"),
    ],
)
def test_other_forms_of_text_tables_are_named_with_their_cure(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        titles(make(tmp_path / name, content))
