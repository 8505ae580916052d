import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_extraction import MERGES

from phiscope.extraction.inputs import Row
from phiscope.extraction.selection import Tokens, parse_selection
from phiscope.tokenizer import Tokenizer, tokenizer_from_merges

TOKENIZER = tokenizer_from_merges(MERGES)
LETTERS = st.text("a\u00e9\U0001f642 the<\n", max_size=12)


def choose(selection, text=None, tokenizer=TOKENIZER, length=None, **fields):
    row = Row(index=0, id="0", text=text, **fields)
    ids = list(fields.get("ids") or tokenizer.encode(text))[:length]
    return parse_selection(selection)(Tokens(row, ids, tokenizer)).tolist()


def spell(places, text, tokenizer=TOKENIZER):
    """The bytes of the tokens at these places."""
    ids = tokenizer.encode(text)
    return [tokenizer.token_bytes(ids[place]) for place in places]


def test_ends_are_counted_and_may_be_more_than_there_is():
    assert choose("all", "abcde") == [0, 1, 2, 3, 4]
    assert choose("first:2", "abcde") == [0, 1]
    assert choose("last:2", "abcde") == [3, 4]
    assert choose("first:9", "abc") == choose("last:9", "abc") == [0, 1, 2]


@settings(max_examples=50, deadline=None)
@given(before=LETTERS, chosen=LETTERS.filter(len), after=LETTERS)
def test_characters_choose_exactly_the_tokens_that_hold_a_byte_of_them(before, chosen, after):
    text, span = before + chosen + after, (len(before), len(before) + len(chosen))
    owners = [place for place, char in enumerate(text) for _ in char.encode()]  # of every byte
    expected, at = [], 0
    for place, token_id in enumerate(TOKENIZER.encode(text)):
        size = len(TOKENIZER.token_bytes(token_id))
        if any(span[0] <= owner < span[1] for owner in owners[at : at + size]):
            expected.append(place)
        at += size
    assert choose(f"chars:{span[0]}:{span[1]}", text) == expected
    assert choose("span", text, span=span) == expected
    whole = set(choose(f"text:{chosen}", text))
    assert whole >= set(expected)


def test_a_token_that_ends_inside_a_character_belongs_to_that_character():
    text = "a\U0001f642b"
    assert spell(range(5), text)[1:4] == [b"\xf0\x9f", b"\x99", b"\x82"]
    assert choose("chars:1:2", text) == choose("text:\U0001f642", text) == [1, 2, 3]
    assert choose("chars:2:3", text) == [4]
    assert choose("chars:2:99", text) == [4]
    assert choose("chars:3:9", text) == []


@given(prompt=LETTERS, completion=LETTERS)
@settings(deadline=None)
def test_prompt_and_completion_are_all_tokens_and_share_none(prompt, completion):
    fields = {"text": prompt + completion, "prompt_chars": len(prompt)}
    first, rest = choose("prompt", **fields), choose("completion", **fields)
    assert first + rest == choose("all", **fields)
    assert len(b"".join(spell(first, fields["text"]))) >= len(prompt.encode())


def test_a_token_across_the_border_belongs_to_the_prompt():
    assert spell(choose("prompt", "go then", prompt_chars=5), "go then")[-1] == b" the"
    assert spell(choose("completion", "go then", prompt_chars=5), "go then") == [b"n"]
    assert choose("completion", "the", prompt_chars=2) == []
    assert choose("prompt", "the", prompt_chars=0) == []


def test_an_end_token_written_out_is_one_token_with_all_its_letters():
    text = "a<|endoftext|>b"
    assert len(TOKENIZER.encode(text)) == 3
    assert choose("chars:14:15", text) == choose("text:b", text) == [2]
    assert choose("chars:5:6", text) == choose("token:<|endoftext|>", text) == [1]


@pytest.mark.parametrize("text", ["ab cd", " ab", "a<|endoftext|>bc d", "\u00e9"])
def test_a_tokenizer_that_adds_a_space_before_texts_shifts_nothing(text):
    backend = tokenizer_from_merges(["\u0120 a", "\u0120 b"]).backend
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    spacing = Tokenizer(backend)
    for place, char in enumerate(text):
        chosen = choose(f"chars:{place}:{place + 1}", text, spacing)
        held = b"".join(spell(chosen, text, spacing))
        assert char.encode() in held
        assert len(held.replace(b"<|endoftext|>", b"<").strip()) <= len(char.encode())
    first, rest = (choose(name, text, spacing, prompt_chars=1) for name in ("prompt", "completion"))
    assert rest == list(range(first[-1] + 1, len(spacing.encode(text))))


def test_tokens_that_spell_another_text_are_refused():
    row = Row(index=0, id="0", text="abc")
    with pytest.raises(ValueError, match="at byte 1 its tokens spell something else"):
        parse_selection("chars:0:1")(Tokens(row, TOKENIZER.encode("axc"), TOKENIZER))


def test_what_was_cut_off_is_not_chosen():
    assert choose("last:2", "abcdef", length=4) == [2, 3]
    assert choose("chars:3:6", "abcdef", length=4) == [3]
    assert choose("text:f", "abcdef", length=4) == []


def test_occurrences_may_overlap_and_touch():
    assert choose("text:aba", "xababa") == [1, 2, 3, 4, 5]
    assert choose("token:cd", "cdxcdcd") == [0, 1, 3, 4, 5, 6]
    assert choose("token:zz", "z") == choose("text:zz", "z") == []


def test_a_token_is_named_by_its_text_or_its_id():
    the = TOKENIZER.encode(" the")
    assert choose("token: the", "in the end the") == choose(f"token:{the[0]}", "in the end the")
    assert choose("token:7", ids=(7, 5, 7)) == [0, 2]
    assert choose("token:5:5", "5:5") == [0, 1, 2]


@pytest.mark.parametrize("selection", ["chars:0:1", "span", "prompt", "completion"])
def test_token_ids_have_no_characters_to_choose(selection):
    with pytest.raises(ValueError, match=r"this row has token ids|the row has no"):
        choose(selection, ids=(7, 5, 7))
    assert choose("text:a", ids=(7, 5, 7)) == []


def test_a_row_without_a_span_is_refused():
    with pytest.raises(ValueError, match="the row has no span of characters"):
        choose("span", "abc")


@pytest.mark.parametrize(
    "selection",
    [
        *("", "some", "all:3", "span:1:2", "first", "first:", "first:0", "first:-1"),
        *("last:two", "last:1.5", "chars", "chars:3", "chars:3:3", "chars:5:2", "chars:-3:-1"),
        *("chars:1:2:3", "token:", "text"),
    ],
)
def test_what_is_no_selection_is_refused_when_it_is_read(selection):
    with pytest.raises(ValueError, match=r"choose from all|takes a number|chars:BEGIN:END"):
        parse_selection(selection)


@pytest.mark.parametrize("selection", ["all", "first:2", "last:2", "chars:1:3", "token:a"])
def test_places_are_whole_numbers_that_ascend(selection):
    row = Row(index=0, id="0", text="banana")
    places = parse_selection(selection)(Tokens(row, TOKENIZER.encode("banana"), TOKENIZER))
    assert places.dtype == np.int64
    assert (np.diff(places) > 0).all()
