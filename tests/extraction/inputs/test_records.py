import math

import numpy as np
import pytest
import torch

from phiscope.extraction.inputs import Fields
from phiscope.extraction.inputs.records import make_row

QA = Fields(prompt="q", completion="a")
SPAN = Fields(text="text", span="span")


def test_prompt_and_completion_are_joined_and_the_seam_is_known():
    row = make_row(0, {"q": "caf\u00e9? ", "a": "yes"}, QA)
    assert (row.text, row.prompt_chars) == ("caf\u00e9? yes", 6)


def test_span_counts_characters():
    row = make_row(0, {"text": "caf\u00e9 au lait", "span": [5, 7]}, SPAN)
    assert row.text[slice(*row.span)] == "au"


@pytest.mark.parametrize("span", [[2, 2], [3, 1], [-1, 2], [0, 5], [1], [1, 2, 3]])
def test_span_outside_the_text_is_a_fault(span):
    row = make_row(0, {"text": "four", "span": span}, SPAN)
    assert row.fault == "column 'span' is no [begin, end] within 4 characters"


@pytest.mark.parametrize("name", ["7", 7, np.int64(7), b"7"])
def test_ids_and_labels_become_strings(name):
    row = make_row(0, {"id": name, "text": "a", "class": name}, Fields(text="text", label="class"))
    assert (row.id, row.label) == ("7", "7")


@pytest.mark.parametrize("cells", [{}, {"id": None}, {"id": ""}, {"id": math.nan}])
def test_missing_id_is_the_index_and_missing_label_is_none(cells):
    row = make_row(12, {"text": "a", **cells}, Fields(text="text", label="class"))
    assert (row.id, row.label) == ("12", None)


def test_bad_row_keeps_its_id():
    assert make_row(0, {"id": "a", "text": ""}, Fields(text="text")).id == "a"


@pytest.mark.parametrize(
    "ids", [[1, 2], (1, 2), np.array([1, 2], np.int32), torch.tensor([1, 2]), range(1, 3), "[1, 2]"]
)
def test_token_ids_come_as_any_sequence(ids):
    assert make_row(0, {"t": ids}, Fields(ids="t")).ids == (1, 2)
    if not isinstance(ids, str):
        assert make_row(0, ids, Fields()).ids == (1, 2)


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"text": ""}, "empty"),
        ({"text": None}, "column 'text' is null"),
        ({"body": "a"}, "no column 'text'; there are 'body'"),
        ({}, "no column 'text'; there are none"),
        ({"text": 5}, "column 'text' holds a value of type int, not a string"),
        ({"text": ["a"]}, "column 'text' holds a value of type list, not a string"),
        ({"text": "ab\ud800"}, "a lone surrogate at character 2"),
        ({"text": b"ab\xff"}, "not valid UTF-8 at byte 2"),
        (
            {"text": "a", "id": [1]},
            "column 'id' holds a value of type list, not a name or a number",
        ),
        ({"text": "a", "id": "\ud800"}, "a lone surrogate at character 0"),
        ({"input_ids": []}, "empty"),
        ({"input_ids": [1, -1]}, "the number at place 1 of 'input_ids' is no token id"),
        ({"input_ids": [2**31]}, "the number at place 0 of 'input_ids' is no token id"),
        ({"input_ids": [1, True]}, "column 'input_ids' holds a value of type bool at place 1, not"),
        ({"input_ids": [1, None]}, "column 'input_ids' holds null at place 1, not an integer"),
        ({"input_ids": 5}, "column 'input_ids' holds a value of type int, not a list of integers"),
        ({"input_ids": "[1"}, "not sound JSON: "),
        ("", "empty"),
        ([], "empty"),
        (None, "a row is a text, token ids or columns, not null"),
        (1.5, "a row is a text, token ids or columns, not a value of type float"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(record, fault):
    row = make_row(4, record, Fields())
    assert row.fault.startswith(fault)
    assert (row.index, row.id, row.text, row.ids) == (4, "4", None, None)


def test_nul_and_white_space_are_texts():
    assert make_row(0, "\0", Fields()).text == "\0"
    assert make_row(0, " ", Fields()).text == " "
