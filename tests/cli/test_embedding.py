import json

import numpy as np
import pytest

import phiscope


@pytest.fixture(scope="module")
def phi(folder):
    return phiscope.load(folder, mode="fp32-cpu")


def test_each_line_of_stdin_becomes_a_line_of_numbers(run_model, type_in, phi):
    type_in(b"one\r\ntwo\n")
    code, out, _ = run_model("embed")
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0
    assert [row[0] for row in rows] == ["0", "1"]
    np.testing.assert_allclose(
        [[float(x) for x in row[1:]] for row in rows], phi.embed(["one", "two"]), rtol=1e-6
    )


def test_file_arguments_and_stdin_give_the_same(run_model, type_in, tmp_path):
    (tmp_path / "texts").write_bytes(b"\xef\xbb\xbfone\ntwo")
    type_in(b"one\ntwo\n")
    assert (
        run_model("embed", "one", "two")
        == run_model("embed")
        == run_model("embed", "--file", tmp_path / "texts")
    )


def test_npy_file_holds_what_the_library_embeds(run_model, tmp_path, phi):
    path = tmp_path / "vectors.npy"
    words = ("--layer", 1, "--pool", "last", "--normalize", "--out", path)
    code, out, _ = run_model("embed", "one", "two", *words)
    assert (code, out) == (0, "")
    wanted = phi.embed(["one", "two"], 1, pool="last", normalize=True)
    np.testing.assert_array_equal(np.load(path), wanted)


def test_more_texts_than_one_chunk_stay_in_order(run_model, type_in, tmp_path, phi):
    texts = [f"text {number}" for number in range(150)]
    type_in("\n".join(texts).encode())
    path = tmp_path / "vectors.npy"
    run_model("embed", "--out", path)
    np.testing.assert_allclose(np.load(path), phi.embed(texts), atol=1e-5)


def test_fault_55_bad_rows_are_recorded_by_index_and_the_others_served(
    run_model, type_in, tmp_path
):
    rows = b"good\n\nbad \xff utf-8\n" + b"long " * 40 + b"\nlast\n"
    type_in(rows)
    code, out, err = run_model("embed", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 3
    assert [row["index"] for row in found] == [0, 1, 2, 3, 4]
    assert [row.get("error") for row in found] == [
        None, "empty", "not valid UTF-8 at byte 4", "200 tokens exceed the context of 128", None,
    ]  # fmt: skip
    assert "row 3: 200 tokens" in err
    assert "3 of 5 rows were bad" in err
    type_in(rows)
    path = tmp_path / "vectors.npy"
    assert run_model("embed", "--out", path)[0] == 3
    vectors = np.load(path)
    assert np.isnan(vectors).all(axis=1).tolist() == [False, True, True, True, False]
    assert vectors[4].tolist() == pytest.approx(found[4]["embedding"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--layer", "3"), "hidden states 0 to 2"),
        (("--out", "vectors.txt"), ".npy"),
        (("--file", "texts"), "one of them"),
        (("bad \udcff byte",), "not valid UTF-8"),
    ],
)
def test_what_cannot_be_is_a_usage_error(words, told, run_model):
    code, out, err = run_model("embed", "text", *words)
    assert (code, out) == (2, "")
    assert told in err


def test_no_text_at_all_is_a_usage_error(run_model, type_in):
    type_in(b"")
    code, _, err = run_model("embed")
    assert code == 2
    assert "stdin holds no lines" in err


def test_an_absent_file_fails_by_its_name(run_model):
    code, _, err = run_model("embed", "--file", "nowhere.txt")
    assert (code, err) == (1, "phiscope: nowhere.txt: No such file or directory\n")
