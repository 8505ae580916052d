import pytest

from phiscope.generation.options import GenerationOptions
from phiscope.generation.stopping import CompletionText

TEXT = "one two\n\nthree \u20ac4 \U0001f600 five"


def run(tokenizer, text, **options):
    """Push a text byte by byte; give the stream of pieces and the finished text."""
    completion = CompletionText(GenerationOptions(**options), tokenizer.detokenizer())
    pieces = []
    for token_id in tokenizer.encode(text):
        pieces.append(completion.push(token_id))
        if completion.has_stopped:
            break
    return [*pieces, completion.finish()], completion


@pytest.mark.parametrize(
    "stop", ["two", "\n\n", "\u20ac", "\U0001f600 f", "e", "four", "o", "five", TEXT, "ive!"]
)
def test_stream_and_text_end_where_the_stop_begins(tokenizer, stop):
    pieces, completion = run(tokenizer, TEXT, stop=(stop,))
    expected = TEXT.split(stop)[0]
    assert "".join(pieces) == completion.text == expected
    assert completion.stop_reason == (stop if stop in TEXT else None)


def test_what_may_begin_a_stop_is_held_back_until_it_is_none(tokenizer):
    pieces, _ = run(tokenizer, "ab##c###d", stop=("###",))
    assert pieces[:5] == ["a", "b", "", "", "##c"]
    assert "".join(pieces) == "ab##c"


def test_released_text_never_changes(tokenizer):
    pieces, completion = run(tokenizer, TEXT, stop=("thriller", "\n\nfour", " \U0001f600 six"))
    assert "".join(pieces) == completion.text == TEXT
    assert not completion.has_stopped


def test_broken_bytes_at_the_end_become_replacement_characters(tokenizer):
    completion = CompletionText(GenerationOptions(), tokenizer.detokenizer())
    pieces = [completion.push(token_id) for token_id in b"a\xe2\x82"]
    assert pieces == ["a", "", ""]
    assert completion.finish() == "\ufffd"


def test_stop_string_of_the_replacement_character_is_found_at_the_end(tokenizer):
    options = GenerationOptions(stop=("\ufffd",))
    completion = CompletionText(options, tokenizer.detokenizer())
    assert [completion.push(token_id) for token_id in b"a\xe2"] == ["a", ""]
    assert completion.finish() == ""
    assert completion.stop_reason == "\ufffd"


class AfterSentence:
    """Stop behind the first full stop."""

    def find(self, text, start):
        place = text.find(".", start)
        return None if place < 0 else place + 1

    def holdback(self, text):
        return 0


def test_rules_stop_beside_strings(tokenizer):
    rules = (AfterSentence(),)
    _, by_rule = run(tokenizer, "Yes. No!", stop=("!",), stop_rules=rules)
    assert (by_rule.text, by_rule.stop_reason) == ("Yes.", "AfterSentence")
    _, by_string = run(tokenizer, "Yes! No.", stop=("!",), stop_rules=rules)
    assert (by_string.text, by_string.stop_reason) == ("Yes", "!")


def test_abandoned_text_shows_what_was_held_back(tokenizer):
    completion = CompletionText(GenerationOptions(stop=("###",)), tokenizer.detokenizer())
    assert [completion.push(token_id) for token_id in b"a##"] == ["a", "", ""]
    assert completion.abandon() == "##"
    assert completion.text == "a##"
