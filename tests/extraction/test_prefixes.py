from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from phiscope.extraction.prefixes import LEAST_LENGTH, LEAST_SAVING, Group, group_by_prefix

STEMS = [list(range(n, n + size)) for n, size in ((0, 9), (0, 14), (50, 20), (60, 30))]
SEQUENCES = st.lists(
    st.builds(
        lambda stem, rest: stem + rest,
        st.sampled_from([[], *STEMS, [*STEMS[1], 7, 7, 7, 7, 7, 7, 7, 7]]),
        st.lists(st.integers(0, 2), min_size=1, max_size=20),
    ),
    max_size=9,
)


def count_shared(a, b):
    least = min(len(a), len(b))
    return next((n for n in range(least) if a[n] != b[n]), least)


def best_single(sequences):
    """The most tokens that one group alone could save."""
    best = 0
    for a, b in combinations(sequences, 2):
        length = count_shared(a, b)
        members = sum(s[:length] == a[:length] for s in sequences)
        if length >= LEAST_LENGTH:
            best = max(best, length * (members - 1))
    return best if best >= LEAST_SAVING else 0


@settings(max_examples=60, deadline=None)
@given(SEQUENCES)
def test_members_of_a_group_begin_alike_and_belong_to_no_other(sequences):
    groups = group_by_prefix(sequences)
    members = [member for group in groups for member in group.members]
    assert len(members) == len(set(members))
    for group in groups:
        assert len({tuple(sequences[m][: group.length]) for m in group.members}) == 1
        assert all(len(sequences[m]) >= group.length for m in group.members)
        assert group.length >= LEAST_LENGTH
        assert group.saving >= LEAST_SAVING
    assert [min(group.members) for group in groups] == sorted(min(g.members) for g in groups)


@settings(max_examples=60, deadline=None)
@given(SEQUENCES)
def test_the_groups_save_at_least_what_the_best_group_alone_would(sequences):
    assert sum(group.saving for group in group_by_prefix(sequences)) >= best_single(sequences)


def test_a_group_shares_all_that_its_members_share():
    stem = list(range(20))
    assert group_by_prefix([[*stem, 1, 2], [5], [*stem, 3]]) == [Group(20, (0, 2))]
    assert group_by_prefix([stem, [9], stem]) == [Group(20, (0, 2))]
    assert group_by_prefix([stem, [*stem, 1]]) == [Group(20, (0, 1))]


def test_pairs_within_a_larger_family_are_grouped_where_that_saves_more():
    stem = list(range(10))
    pairs = [[*stem, n, *[100 + n] * 40, k] for n in range(3) for k in (1, 2)]
    assert [g.members for g in group_by_prefix(pairs)] == [(0, 1), (2, 3), (4, 5)]
    family = [[*range(40), n, n, k] for n in range(3) for k in (1, 2)]
    assert group_by_prefix(family) == [Group(40, (0, 1, 2, 3, 4, 5))]


def test_a_pair_within_is_given_up_where_the_rest_alone_would_save_too_little():
    stem = list(range(9))
    family = [[*stem, 0], [*stem, 0], *[[*stem, *range(30, 40)]] * 2]
    assert group_by_prefix(family) == [Group(9, (0, 1, 2, 3))]


def test_what_saves_too_little_is_left_alone():
    assert group_by_prefix([]) == group_by_prefix([[1, 2, 3]]) == []
    short = list(range(LEAST_LENGTH - 1))
    assert group_by_prefix([[*short, n] for n in range(90, 100)]) == []
    assert group_by_prefix([[*range(LEAST_SAVING - 1), n] for n in (90, 91)]) == []
    assert group_by_prefix([[*range(LEAST_SAVING), n] for n in (90, 91)]) != []
