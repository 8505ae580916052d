from hypothesis import given
from hypothesis import strategies as st

from phiscope.training.corpora.cleaning import clean, find_fault
from phiscope.training.corpora.options import CorpusOptions

PLAIN = CorpusOptions()


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_nothing_but_line_ends_changes_by_default(text):
    assert clean(text, PLAIN) == text.replace("\r\n", "\n")
    assert clean(text.replace("\r", ""), PLAIN) == text.replace("\r", "")


def test_a_carriage_return_alone_stays():
    assert clean("50%\r100%\r\ndone", PLAIN) == "50%\r100%\ndone"


def test_text_is_composed_where_that_is_asked_for():
    assert clean("cafe\u0301", CorpusOptions(nfc=True)) == "caf\xe9"
    assert clean("cafe\u0301", PLAIN) == "cafe\u0301"


def test_a_nul_is_a_fault_or_replaced():
    assert find_fault(clean("a\0b", PLAIN), PLAIN) == "nul"
    replacing = CorpusOptions(nul="replace")
    assert clean("a\0b", replacing) == "a\ufffdb"
    assert find_fault("a\ufffdb", replacing) is None


def test_length_is_counted_in_bytes():
    options = CorpusOptions(min_bytes=4)
    assert find_fault("abc", options) == "short"
    assert find_fault("\xe9\xe9", options) is None
