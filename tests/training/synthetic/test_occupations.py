import re

import pytest

from phiscope.training.synthetic import SyntheticOptions, generate
from phiscope.training.synthetic.occupations import GROUP_A

COUNT = 4000


def measure(strength):
    """The share of women in group A less that in group B."""
    options = SyntheticOptions(mix={"occupation": 1}, strength=strength)
    women = {True: [], False: []}
    for sample in generate(options, 0, COUNT):
        in_a = sample.labels["occupation"] in GROUP_A
        women[in_a].append(sample.labels["gender"] == "female")
    return sum(women[True]) / len(women[True]) - sum(women[False]) / len(women[False])


@pytest.mark.parametrize("strength", [-0.5, 0.0, 0.3, 0.6, 0.9])
def test_the_measured_correlation_is_the_one_asked_for(strength):
    assert measure(strength) == pytest.approx(strength, abs=4 / COUNT**0.5)


@pytest.mark.parametrize("strength", [-1, 1])
def test_at_the_ends_the_occupation_decides(strength):
    assert measure(strength) == strength


def test_the_text_has_the_occupation_and_pronouns_of_its_gender_alone(by_kind):
    women, men = {"she", "her", "herself"}, {"he", "his", "him", "himself"}
    for sample in by_kind["occupation"]:
        words = set(re.findall(r"\w+", sample.text.lower()))
        own, other = (women, men) if sample.labels["gender"] == "female" else (men, women)
        assert sample.labels["occupation"] in sample.text
        assert not words & other
        assert words & own or sample.template == "occupation/who"
