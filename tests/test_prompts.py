"""Prompts are the card's to the letter, and answers end where they should, however they arrive."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phiscope.prompts import (
    FORMATS,
    PromptFormat,
    StopRule,
    StopStrings,
    TopLevelStatement,
    make_chat_format,
    select_format,
)

QUESTION = "Write a detailed analogy between mathematics and a lighthouse."
BODY = 'def f(n):\n    """Give n."""\n'


def read_in_pieces(rules: tuple[StopRule, ...], pieces: list[str]) -> tuple[str, str | None]:
    """Stream a completion; give what was shown, and the text cut off where a rule said so."""
    text, shown = "", ""
    for piece in pieces:
        start, text = len(text), text + piece
        cuts = [cut for rule in rules if (cut := rule.find(text, start)) is not None]
        if cuts:
            assert text[: min(cuts)].startswith(shown), "shown text was cut off"
            return text[: min(cuts)], text[: min(cuts)]
        safe = len(text) - max((rule.holdback(text) for rule in rules), default=0)
        assert text[:safe].startswith(shown), "shown text was taken back"
        shown = text[:safe]
    return text, None


def cut_up(text: str, places: list[int]) -> list[str]:
    ends = sorted({place for place in places if place < len(text)} | {0, len(text)})
    return [text[begin:end] for begin, end in pairwise(ends)]


def answer(format_name: str, prompt: str, completion: str) -> str:
    """Give the completion as it is cut when it comes at once and, the same, letter by letter."""
    rules = FORMATS[format_name].stop_rules(prompt)
    whole, _ = read_in_pieces(rules, [completion])
    assert read_in_pieces(FORMATS[format_name].stop_rules(prompt), list(completion))[0] == whole
    return whole


def test_the_formats_are_the_cards() -> None:
    assert FORMATS["qa"].render(QUESTION) == QUESTION
    assert FORMATS["instruct"].render(QUESTION) == f"Instruct: {QUESTION}\nOutput:"
    assert FORMATS["chat"].render("Any suggestions?") == "Alice: Any suggestions?\nBob:"
    assert FORMATS["code"].render(BODY) == BODY
    assert {item.name for item in FORMATS.values()} == set(FORMATS)


def test_history_is_written_as_the_model_would_have_gone_on() -> None:
    history = [("I can't focus.", " Have you a schedule?"), ("Yes, I have.\n", "Hmm, try\nquiet. ")]
    assert FORMATS["chat"].render(" Where? ", history) == (
        "Alice: I can't focus.\nBob: Have you a schedule?\n"
        "Alice: Yes, I have.\nBob: Hmm, try\nquiet.\n"
        "Alice: Where?\nBob:"
    )
    assert (
        FORMATS["instruct"].render("c", [("a", "b")])
        == "Instruct: a\nOutput: b\nInstruct: c\nOutput:"
    )


@pytest.mark.parametrize("name", ["qa", "code"])
def test_formats_without_turns_refuse_history(name: str) -> None:
    assert FORMATS[name].render("x", []) == "x"
    with pytest.raises(ValueError, match=f"format '{name}' has no history; use 'instruct'"):
        FORMATS[name].render("x", [("a", "b")])


def test_a_chat_may_have_other_names() -> None:
    chat = make_chat_format("Ann", "Phi")
    assert chat.render("Hi {x}") == "Ann: Hi {x}\nPhi:"
    assert read_in_pieces(chat.stop_rules(""), [" Hello\nAnn: And"])[0] == " Hello"


@pytest.mark.parametrize(
    ("user", "model"), [("", "B"), ("A\nB", "C"), ("A:", "B"), (" A", "B"), ("A", "A")]
)
def test_names_that_cannot_be_told_apart_are_refused(user: str, model: str) -> None:
    with pytest.raises(ValueError, match="name"):
        make_chat_format(user, model)


def test_an_unknown_format_is_named_with_the_known_ones() -> None:
    assert select_format("qa") is FORMATS["qa"]
    with pytest.raises(ValueError, match=r"no prompt format 'poem'; choose from \['chat', 'code'"):
        select_format("poem")


@pytest.mark.parametrize(
    ("name", "completion", "expected"),
    [
        ("qa", "\n\nIt guides.\nInstruct: Write more", "\n\nIt guides."),
        ("qa", " Follow the\nInstructor: he knows", " Follow the\nInstructor: he knows"),
        ("instruct", " It guides.\n\nInstruct: More\nOutput:", " It guides.\n"),
        ("instruct", " See 'Instruct: this'", " See 'Instruct: this'"),
        ("chat", " Try quiet.\nAlice: Thanks", " Try quiet."),
        ("chat", " Try quiet.\nBob: And more", " Try quiet."),
        ("chat", " Ask Alice: she knows\nAlices", " Ask Alice: she knows\nAlices"),
    ],
)
def test_answers_end_where_another_turn_begins(name: str, completion: str, expected: str) -> None:
    assert answer(name, FORMATS[name].render(QUESTION), completion) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("    return n\n\n\nprint(f(3))\n", "    return n"),
        ("    return n\ndef g():\n    pass", "    return n"),
        ("    return n\n# Exercise 2: ...", "    return n"),
        ("    return n\n```\nThis function", "    return n"),
        ('    return n\n\n"""\nNext', "    return n"),
        ("    return n\n@cache\ndef g", "    return n"),
        ("    return n  \n   \t\nHello", "    return n  "),
        ("    return n\r\n\r\nprint(1)", "    return n\r"),
        ("    return n\n\n    # dead\n    x = 1\n", "    return n\n\n    # dead\n    x = 1\n"),
        ("\treturn n\nelse_where = 1", "\treturn n"),
        ("\treturn n\nelif", "\treturn n\nelif"),
        ("    x = (\n1,\n)\n    return x\nx", "    x = (\n1,\n)\n    return x"),
        ("    x = [1,\n# one\n2]\n    return x\ny", "    x = [1,\n# one\n2]\n    return x"),
        ("    x = 1 + \\\n2\n    return x\ny", "    x = 1 + \\\n2\n    return x"),
        ("    x = 1 # \\\ny", "    x = 1 # \\"),
        ('    x = """\nin\n"" \\"""\n"""\n    y\nz', '    x = """\nin\n"" \\"""\n"""\n    y'),
        ("    x = '''a\nb''' + ''\n    y\nz", "    x = '''a\nb''' + ''\n    y"),
        ("    x = 'it''s' \"(\"\n    y # (\nz", "    x = 'it''s' \"(\"\n    y # ("),
        ("    x = 'a \\\nb'\n    y\nz", "    x = 'a \\\nb'\n    y"),
        ("    # don't (\nz", "    # don't ("),
        ("    x = 'open\nz", "    x = 'open"),
        ("    x = ((1)\n\ndef g():", "    x = ((1)"),
        ("    x = [1)\n\n    y(\nclass A:", "    x = [1)\n\n    y("),
        ("    x = (\ndefault,\nimportant)\n    y\nz", "    x = (\ndefault,\nimportant)\n    y"),
        ("print(f(3))", ""),
        ("\n\nprint(f(3))", ""),
        ("", ""),
    ],
)
def test_code_ends_at_a_new_top_level_statement(completion: str, expected: str) -> None:
    assert answer("code", BODY, completion) == expected


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("def print_prime(n):", "\n    pass\nprint_prime(3)", "\n    pass"),
        ('```python\ndef f():\n    """Doc."""', "\n    pass\n```\nIt", "\n    pass"),
        ("def f():\n    return ", "1\nprint(f())", "1"),
        ("def pri", "me(n):\n    pass\n\nprime(2)", "me(n):\n    pass"),
        ('def f():\n    """Give\n', 'def\n    """\n    pass\nx', 'def\n    """\n    pass'),
        ("x = [\n", "1,\n2]\ny = 3\n", "1,\n2]\ny = 3\n"),
        ("import math\n", "\ndef f():\n    pass\n\nf()", "\ndef f():\n    pass"),
        ("import math\n", "import os\nx = 1\n", "import os\nx = 1\n"),
        ("if x:\n    y = 1\n", "else:\n    y = 2\nz", "else:\n    y = 2"),
        ("try:\n    y()\n", "except E:\n    z()\nfinally: w()\nv", None),
        ("```python\nx = 1\n", "y = 2\n```\nThis", "y = 2"),
        (
            "Write it:",
            "\n\n```python\ndef f():\n    pass\n```\n",
            "\n\n```python\ndef f():\n    pass",
        ),
        ("Do not (ever\n", "\ndef f():\n    pass\n\nx", "\ndef f():\n    pass"),
        ("", "def f():\n    pass\n\nf()", "def f():\n    pass"),
        ("class A:\n    x = 1\n\ndef f():\n", "    pass\nf()", "    pass"),
        ("for x in y: print(x)\n", "z = 1\n", "z = 1\n"),
        ("@cache\nasync def f():", "\n\nx", ""),
        ("x = {'a': 1}\ny = lambda:", " 1\nz = 2", " 1\nz = 2"),
    ],
)
def test_the_prompt_says_what_block_the_code_is_in(
    prompt: str, completion: str, expected: str | None
) -> None:
    expected = completion[:-2] if expected is None else expected
    assert answer("code", prompt, completion) == expected


PIECES = st.sampled_from(
    [
        *"\n\n \t#:\\\"'()[]{}`aex1",
        "    ",
        "\n\n",
        '"""',
        "'''",
        "```",
        "def f():",
        "else:",
        "\nelif x",
    ]
)


@settings(max_examples=400, deadline=None)
@given(
    prompt=st.lists(PIECES, max_size=8).map("".join),
    text=st.lists(PIECES, max_size=25).map("".join),
    places=st.lists(st.integers(0, 60)),
)
def test_code_is_cut_alike_in_any_pieces(prompt: str, text: str, places: list[int]) -> None:
    whole = read_in_pieces((TopLevelStatement(prompt),), [text])
    for pieces in (cut_up(text, places), list(text)):
        assert read_in_pieces((TopLevelStatement(prompt),), pieces) == whole


@settings(max_examples=400, deadline=None)
@given(
    strings=st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4),
    text=st.text("ab\n", max_size=12),
    places=st.lists(st.integers(0, 12)),
)
def test_stop_strings_cut_alike_in_any_pieces(
    strings: list[str], text: str, places: list[int]
) -> None:
    """The definition: of all ends of a stop string the first; there, the longest string."""
    ends = [
        (end, string)
        for end in range(len(text) + 1)
        for string in strings
        if text[:end].endswith(string)
    ]
    first = min((end for end, _ in ends), default=None)
    cuts = [end - len(string) for end, string in ends if end == first]
    expected = text[: min(cuts)] if cuts else text
    for pieces in ([text], cut_up(text, places), list(text)):
        assert read_in_pieces((StopStrings(strings),), pieces)[0] == expected


def test_one_rule_may_follow_many_completions_at_a_time() -> None:
    rule = TopLevelStatement(BODY)
    completions = [f"    return {n}\n\nprint({n})" for n in range(300)]
    texts = [""] * len(completions)
    for length in range(1, 20):
        for row, completion in enumerate(completions):
            if len(texts[row]) == length - 1:
                found = rule.find(completion[:length], length - 1)
                texts[row] = completion[: length if found is None else found]
    assert texts[:2] == ["    return 0", "    return 1"]
    assert texts[299] == "    return 299"


def test_empty_stop_strings_and_a_lone_string_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        StopStrings(["a", ""])
    with pytest.raises(TypeError, match=r"several, for instance \['abc'\]"):
        StopStrings("abc")
    assert StopStrings([]).find("abc", 0) is None
    assert PromptFormat(name="bare", about="").stop_rules("x") == ()
