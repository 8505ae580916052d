import pytest

from phiscope.errors import InputError
from phiscope.extraction.inputs import Fields, open_source
from phiscope.extraction.inputs.fields import list_names


def choose(record, **fields):
    return dict(open_source([record], Fields(**fields)).spec)


def test_column_text_is_the_default():
    assert choose({"title": "a", "text": "b", "input_ids": [1]})["text"] == "text"


@pytest.mark.parametrize("column", ["input_ids", "token_ids"])
def test_token_ids_are_the_default_without_a_text(column):
    assert choose({"id": "a", "source": "b", column: [1]})["ids"] == column


def test_only_column_of_strings_is_the_text():
    assert choose({"id": "a", "body": "b", "score": 1})["text"] == "body"
    assert choose({"body": "b", "class": "c"}, label="class")["text"] == "body"


def test_two_columns_of_strings_are_not_guessed():
    with pytest.raises(InputError, match=r"no column 'text'; name the one .* 'title', 'body'"):
        choose({"title": "a", "body": "b"})


@pytest.mark.parametrize("field", ["text", "ids", "id", "label", "span"])
def test_absent_column_is_named_with_those_there_are(field):
    with pytest.raises(InputError, match="texts: no column 'body'; there are 'text', 'score'"):
        choose({"text": "a", "score": 1}, **{field: "body"})


def test_plain_texts_have_no_columns_to_name():
    with pytest.raises(InputError, match="its rows have no columns"):
        open_source(["a", "b"], Fields(text="body"))


def test_bad_first_rows_do_not_decide():
    rows = [{"title": "no text"}, {"id": 1}, {"text": "a", "title": "b"}]
    assert open_source(rows).spec["text"] == "text"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "q"}, "go together"),
        ({"completion": "a"}, "go together"),
        ({"text": "a", "ids": "b"}, "one of text, ids"),
        ({"text": "a", "prompt": "b", "completion": "c"}, "one of text, ids"),
        ({"ids": "a", "span": "b"}, "token ids have none"),
        ({"text": ""}, "name of a column is empty"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Fields(**fields)


def test_messages_name_few_columns_and_print_them_all():
    assert list_names(["a\udcff", "b" * 1000]) == f"'a\\udcff', '{'b' * 40}'"
    assert list_names(map(str, range(10**6))).endswith("'9', ...")
    assert list_names([]) == "none"
