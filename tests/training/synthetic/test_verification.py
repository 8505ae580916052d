import sys

import pytest

from phiscope.errors import TrainingError
from phiscope.training.synthetic.verification import verify


def test_a_wrong_result_is_named():
    with pytest.raises(TrainingError, match=r"'double' of \(3,\) is 7 and not 6"):
        verify("def double(x):\n    return x * 2 + 1\n", "double", [((3,), 6)])


def test_a_result_of_another_type_is_wrong():
    with pytest.raises(TrainingError, match="is True and not 1"):
        verify("def one(x):\n    return True\n", "one", [((3,), 1)])


@pytest.mark.parametrize(
    "body",
    ["return 1 // 0", "import os", "open('file')", "return absent", "return ("],
)
def test_code_that_fails_or_reaches_out_is_an_error(body):
    with pytest.raises(TrainingError, match="exercise 'f' fails"):
        verify(f"def f(x):\n    {body}\n", "f", [((3,), 1)])


def test_code_that_does_not_end_is_stopped_and_the_trace_restored():
    before = sys.gettrace()
    with pytest.raises(TrainingError, match="has not ended after 2000 lines"):
        verify("def f(x):\n    while True:\n        x += 1\n", "f", [((3,), 1)])
    assert sys.gettrace() is before
