import pytest

from phiscope.training.corpora.options import CorpusOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_bytes": 0}, "at least 1"),
        ({"shard_tokens": 0}, "at least 1"),
        ({"nul": "keep"}, "'keep'"),
        ({"near_duplicates": 1.1}, "1.1"),
        ({"near_duplicates": 0.0}, "0.0"),
        ({"heldout_share": 1.0}, "1.0"),
        ({"seed": -1}, "-1"),
    ],
)
def test_options_that_cannot_be_are_refused_by_value(options, message):
    with pytest.raises(ValueError, match=message):
        CorpusOptions(**options)
