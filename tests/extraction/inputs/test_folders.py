import pytest

from phiscope.errors import InputError
from phiscope.extraction.inputs import Fields, open_source
from phiscope.extraction.inputs.rows import MAX_ROW_BYTES

FILES = {
    "b.txt": b"b",
    "a/z.md": b"\xef\xbb\xbfa z\r\n",
    "a/b/c.PY": b"pass\n",
    "a-b.txt": b"a-b",
    "a.txt": b"",
    "bad.txt": b"\xff",
    "picture.png": b"no text",
    "README": b"no ending",
    ".hidden.txt": b"hidden",
    ".git/a.txt": b"hidden",
}


@pytest.fixture
def folder(tmp_path):
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_text_files_are_rows_in_the_order_of_their_paths(folder):
    source = open_source(folder)
    rows = list(source.rows())
    assert [row.id for row in rows] == sorted(row.id for row in rows)
    assert {row.id: row.text for row in rows} == {
        "a-b.txt": "a-b",
        "a.txt": None,
        "a/b/c.PY": "pass\n",
        "a/z.md": "a z\r\n",
        "b.txt": "b",
        "bad.txt": None,
    }
    assert [row.fault for row in rows if row.fault] == ["empty", "not valid UTF-8 at byte 0"]
    assert source.count() == len(rows)
    assert [*source.rows(0, 2), *source.rows(2, 5), *source.rows(5)] == rows


def test_links_to_folders_and_special_files_are_passed_over(folder):
    (folder / "loop").symlink_to(folder)
    (folder / "loop.txt").symlink_to(folder)
    (folder / "nowhere.txt").symlink_to(folder / "absent.txt")
    (folder / "link.txt").symlink_to(folder / "b.txt")
    assert {row.id for row in open_source(folder).rows()} - FILES.keys() == {"link.txt"}


def test_file_that_went_away_or_is_endless_is_a_bad_row_under_its_name(folder):
    with (folder / "a-b.txt").open("wb") as file:
        file.truncate(MAX_ROW_BYTES + 1)
    rows = open_source(folder).rows()
    assert [(row.id, row.fault) for row in [next(rows)]] == [
        ("a-b.txt", "longer than 67,108,864 bytes")
    ]
    (folder / "b.txt").unlink()
    (folder / "bad.txt").unlink()
    faults = {row.id: row.fault for row in rows}
    assert faults["b.txt"] == "cannot be read: No such file or directory"


def test_folder_without_texts_and_columns_it_has_not_are_refused(folder, tmp_path_factory):
    with pytest.raises(InputError, match="no column 'body'; there are 'id', 'text'"):
        open_source(folder, Fields(text="body"))
    with pytest.raises(InputError, match=r"holds no text files, such as \.txt"):
        open_source(tmp_path_factory.mktemp("empty"))
