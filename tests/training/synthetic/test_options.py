import pytest

from phiscope.training.synthetic import KINDS, SyntheticOptions
from phiscope.training.synthetic.options import DEFAULT_MIX


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"strength": 1.5}, "strength must lie from -1 to 1, got 1.5"),
        ({"strength": float("nan")}, "strength must lie"),
        ({"heldout_share": 0.0}, "heldout_share must lie between 0 and 1"),
        ({"heldout_share": 1.0}, "heldout_share must lie between 0 and 1"),
        ({"split": "test"}, "split must be one of train, heldout, both, got 'test'"),
        ({"mix": {"poem": 1}}, r"mix has no kind 'poem'; choose from \['chat'"),
        ({"mix": {"story": -1}}, "mix of 'story' must be a number from 0, got -1"),
        ({"mix": {"story": float("inf")}}, "mix of 'story'"),
        ({"mix": {"story": 0}}, "mix is empty"),
        ({"mix": {}}, "mix is empty"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(given, message):
    with pytest.raises(ValueError, match=message):
        SyntheticOptions(**given)


def test_the_default_mix_has_every_kind():
    assert DEFAULT_MIX.keys() == KINDS.keys()
