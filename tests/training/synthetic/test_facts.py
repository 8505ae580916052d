import re

from phiscope.training.synthetic.knowledge import RELATIONS

SUM = re.compile(r"(\d+) plus (\d+) (?:equals|is|makes) (\d+)\.")
CAPITAL = re.compile(r"(\w+) is the capital of (\w+)\.")


def is_true(sample):
    return sample.labels["truth"] == "true"


def select(samples, template):
    chosen = [sample for sample in samples if sample.template == template]
    assert len(chosen) > 20
    return chosen


def test_a_sum_is_right_exactly_where_the_label_says_so(by_kind):
    for sample in select(by_kind["fact"], "fact/sum_equals"):
        a, b, value = map(int, SUM.search(sample.text).groups())
        assert (a + b == value) == is_true(sample)


def test_a_capital_is_right_exactly_where_the_label_says_so(by_kind):
    for sample in select(by_kind["fact"], "fact/capital_of"):
        city, country = CAPITAL.search(sample.text).groups()
        assert (RELATIONS["capital"][country] == city) == is_true(sample)


def test_an_order_is_right_exactly_where_the_label_says_so(by_kind):
    for sample in select(by_kind["fact"], "fact/order_numbers"):
        first, second = map(int, re.findall(r"\d+", sample.text.split("esson")[-1])[-2:])
        assert (first > second) == is_true(sample)


def test_right_answers_are_given_to_questions(by_kind):
    for sample in select(by_kind["qa"], "qa/add"):
        a, b, value = map(int, re.findall(r"\d+", sample.text.partition("Output:")[2]))
        assert a + b == value
