import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from phiscope.errors import FilterError, InputError
from phiscope.filtering.labels import Classes, Grades, LabelFields, choose_meaning, read_labelled
from phiscope.store import open_store

FIELDS = LabelFields(group="template")


@pytest.fixture(scope="module")
def store(folder):
    return open_store(folder)


def test_rows_are_found_by_their_ids_in_any_order(store, rows):
    labelled = read_labelled(store, rows[::-3], FIELDS)
    assert [store.ids[row] for row in labelled.rows] == [row["id"] for row in rows[::-3]]
    assert labelled.labels == [row["label"] for row in rows[::-3]]
    assert labelled.groups == [row["template"] for row in rows[::-3]]
    assert labelled.texts == [row["text"] for row in rows[::-3]]


def test_without_groups_each_row_is_one(store, rows):
    assert read_labelled(store, rows, LabelFields()).groups == [row["id"] for row in rows]


def test_csv_and_parquet_hold_the_same_labels_under_other_names(store, rows, data, tmp_path):
    renamed = [
        {"key": r["id"], "mark": r["label"], "of": r["template"], "body": r["text"]} for r in rows
    ]
    pq.write_table(pa.Table.from_pylist(renamed), tmp_path / "labels.parquet")
    with (tmp_path / "labels.csv").open("w") as file:
        writer = csv.DictWriter(file, list(renamed[0]))
        writer.writeheader()
        writer.writerows(renamed)
    fields = LabelFields(id="key", label="mark", group="of", text="body")
    wanted = read_labelled(store, data, FIELDS)
    for name in ("labels.parquet", "labels.csv"):
        found = read_labelled(store, tmp_path / name, fields)
        assert np.array_equal(found.rows, wanted.rows)
        assert (found.labels, found.groups) == (wanted.labels, wanted.groups)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "t1"}, "1 ids are there more than once: 't1'"),
        ({"id": "u"}, "1 ids are missing in .*: 'u'; extract"),
        ({"label": None}, "1 ids have no 'label': 't0'"),
        ({"template": None}, "1 ids have no 'template': 't0'"),
        ({"text": "Other."}, "1 ids have another text than .*: 't0'"),
        ({"text": ""}, r"1 ids have no text: 't0 \(empty\)'"),
    ],
)
def test_ids_that_do_not_fit_are_counted_and_named(store, rows, change, message):
    with pytest.raises(InputError, match=message):
        read_labelled(store, [{**rows[0], **change}, *rows[1:]], FIELDS)


def test_many_missing_ids_are_counted_and_the_first_are_named(store, rows):
    strange = [{**row, "id": f"u{number}"} for number, row in enumerate(rows)]
    with pytest.raises(InputError, match=r"240 ids are missing .*'u0', .*'u4', \.\.\.;"):
        read_labelled(store, strange, FIELDS)


def test_an_id_of_several_texts_of_the_store_is_refused(write_store, rows):
    twice = [{**rows[0], "id": "t1"}, *rows[1:4]]
    store = open_store(write_store(twice))
    with pytest.raises(InputError, match=r"1 ids are of several texts of .*: 't1'"):
        read_labelled(store, rows[1:4], FIELDS)


def test_rows_that_the_store_lists_as_bad_are_skipped(write_store, rows):
    long = {"id": "long", "label": "junk", "template": "long", "text": "word " * 400}
    store = open_store(write_store([*rows[:4], long]))
    labelled = read_labelled(store, [*rows[:4], long], FIELDS)
    assert (len(labelled.rows), labelled.num_skipped) == (4, 1)


def test_rows_without_a_label_are_left_alone(store, rows):
    assert read_labelled(store, rows[5:7], FIELDS).rows.tolist() == [5, 6]


def test_an_iterator_is_refused_because_it_is_read_twice(store, rows):
    with pytest.raises(InputError, match="can be read once"):
        read_labelled(store, iter(rows), FIELDS)


def test_two_classes_have_the_targets_one_and_zero():
    meaning = choose_meaning(["a", "b", "a"], "b", 3.0)
    assert meaning == Classes(positive="b", negative="a")
    assert meaning.targets(["a", "b"]).tolist() == [0, 1]
    assert meaning.are_positive(meaning.targets(["a", "b"])).tolist() == [False, True]


def test_grades_are_positive_from_three_on():
    meaning = choose_meaning(["0", "2.5", "3"], None, 3.0)
    assert meaning == Grades(positive_from=3.0)
    assert meaning.are_positive(meaning.targets(["0", "2.5", "3"])).tolist() == [False, False, True]


@pytest.mark.parametrize("labels", [["a", "b", "c"], ["a"], ["b", "c"]])
def test_other_than_two_classes_are_refused(labels):
    with pytest.raises(FilterError, match="a filter tells 'a' from one other class"):
        choose_meaning(labels, "a", 3.0)


@pytest.mark.parametrize("label", ["good", "6", "-1", "nan"])
def test_what_is_no_grade_is_named(label):
    with pytest.raises(FilterError, match=f"the label '{label}' is no grade from 0 to 5"):
        choose_meaning(["1", label], None, 3.0)


def test_ids_of_the_store_s_own_input_are_its_row_numbers_where_it_has_none(write_store, rows):
    bare = [json.loads(json.dumps({**row, "id": None})) for row in rows[:4]]
    store = open_store(write_store(bare))
    assert read_labelled(store, bare, FIELDS).rows.tolist() == [0, 1, 2, 3]
