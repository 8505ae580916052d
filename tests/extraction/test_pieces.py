import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_extraction import make_rows

from phiscope.extraction.pieces import Text, cut_windows, plan_waves

WINDOWS = st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
SEQUENCES = st.builds(
    lambda stem, rest: [*stem, *rest],
    st.sampled_from([range(0), range(10), range(20), [*range(10), *range(50, 65)]]),
    st.lists(st.integers(90, 91), min_size=1, max_size=20),
)


def make_texts(*sequences, chosen=None):
    texts, first = [], 0
    for row, ids in zip(make_rows(*sequences), sequences, strict=True):
        positions = np.array(chosen or range(len(ids)))
        texts.append(Text(row, tuple(ids), positions, first, int(positions[-1]) + 1))
        first += len(positions)
    return texts


def gather(waves):
    """For each text, its chosen tokens as the pieces read them: (order, position, token)."""
    found = {}
    for wave in waves:
        for piece in [*wave.prefixes, *wave.pieces]:
            for read in piece.reads:
                for owner in read.owners:
                    places = enumerate(read.rows.tolist(), read.order)
                    rows = [(order, piece.ids[row]) for order, row in places]
                    found.setdefault(owner, []).extend(rows)
    return {owner: sorted(rows) for owner, rows in found.items()}


@given(length=st.integers(1, 80), windows=WINDOWS)
@settings(max_examples=50, deadline=None)
def test_windows_read_every_token_once_behind_enough_others(length, windows):
    window, stride = windows
    (text,) = make_texts(range(1000, 1000 + length))
    pieces = list(cut_windows(text, 0, window=window, stride=stride))
    read = []
    for piece in pieces:
        (rows,) = [r.rows for r in piece.reads]
        assert len(piece.ids) <= window
        assert piece.reads[0].order == len(read)
        read += [piece.ids[row] for row in rows]
        begin = piece.ids[0] - 1000
        assert all(row >= min(window - stride, row + begin) for row in rows)
    assert read == list(text.ids)


@given(
    sequences=st.lists(SEQUENCES, min_size=1, max_size=8),
    seed=st.integers(0, 99),
    windows=WINDOWS,
    prefix_budget=st.none() | st.integers(1, 60),
)
@settings(max_examples=80, deadline=None)
def test_every_chosen_token_is_read_once_in_its_order(sequences, seed, windows, prefix_budget):
    texts, draw = [], random.Random(seed)
    for text in make_texts(*sequences):
        count = draw.randint(1, len(text.ids))
        chosen = draw.sample(range(len(text.ids)), count if draw.random() < 0.5 else 1)
        end = max(chosen) + 1 if draw.random() < 0.8 else len(text.ids)
        texts.append(replace(text, positions=np.sort(chosen), end=end))
    window, stride = windows
    waves = plan_waves(texts, window=window, stride=stride, prefix_budget=prefix_budget)
    expected = {
        number: list(enumerate(text.ids[place] for place in text.positions))
        for number, text in enumerate(texts)
    }
    assert gather(waves) == expected


def test_the_prefixes_of_a_wave_are_bounded_unless_there_is_one():
    stems = [[1] * 20, [2] * 50, [3] * 20]
    texts = make_texts(*([*stem, k] for stem in stems for k in (7, 8)))
    waves = list(plan_waves(texts, window=64, stride=32, prefix_budget=40))
    assert [[len(prefix.ids) for prefix in wave.prefixes] for wave in waves] == [[20], [50], [20]]
    waves = list(plan_waves(texts, window=64, stride=32, prefix_budget=70))
    assert [[len(prefix.ids) for prefix in wave.prefixes] for wave in waves] == [[20, 50], [20]]


def test_pieces_behind_a_prefix_say_where_they_start():
    stem = list(range(100, 120))
    (wave,) = plan_waves(
        make_texts([*stem, 1, 2], [*stem, 3]), window=64, stride=32, prefix_budget=64
    )
    assert [(p.ids, p.start, p.prefix) for p in wave.pieces] == [((1, 2), 20, 0), ((3,), 20, 0)]
    assert [read.owners for read in wave.prefixes[0].reads] == [(0, 1)]


def test_tokens_after_the_last_that_counts_are_not_run():
    (wave,) = plan_waves(make_texts(range(30), chosen=[2, 5]), window=8, stride=4, prefix_budget=9)
    assert [piece.ids for piece in wave.pieces] == [(0, 1, 2, 3, 4, 5)]


def test_windows_that_nobody_reads_are_not_run():
    (wave,) = plan_waves(make_texts(range(30), chosen=[29]), window=8, stride=4, prefix_budget=9)
    assert [piece.ids for piece in wave.pieces] == [tuple(range(24, 30))]


@pytest.mark.parametrize("prefix_budget", [None, 64])
def test_a_text_of_several_windows_shares_no_prefix(prefix_budget):
    texts = make_texts([1] * 40, [1] * 40)
    (wave,) = plan_waves(texts, window=30, stride=15, prefix_budget=prefix_budget)
    assert [len(piece.ids) for piece in wave.pieces] == [30, 25, 30, 25]
    assert wave.prefixes == ()
