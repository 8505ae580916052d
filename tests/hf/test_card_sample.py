import sys
from pathlib import Path

import pytest
import torch

import phiscope
from phiscope.checkpoint.hub import resolve

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def card_sample():
    sys.path.insert(0, str(EXAMPLES))
    yield pytest.importorskip("card_sample")
    sys.path.remove(str(EXAMPLES))


@pytest.mark.parametrize("layout", ["A", "B", "D"])
def test_cards_sample_prints_what_our_own_engine_generates(card_sample, tmp_path, layout):
    folder = tmp_path / layout
    phiscope.convert(resolve("tiny"), folder, layout=layout)
    phi = phiscope.load(folder, mode="fp32-cpu")
    prompt = phi.tokenizer.encode(card_sample.PROMPT)
    completion = phi.generate(card_sample.PROMPT, max_new_tokens=12)
    text = card_sample.run_sample(str(folder), card_sample.MODES["4"], len(prompt) + 12)
    assert text == card_sample.PROMPT + completion.text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_modes_that_need_a_gpu_say_so(card_sample, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["card_sample.py", "anywhere", "--mode", "1"])
    with pytest.raises(SystemExit):
        card_sample.main()
    assert "mode 1 needs a CUDA device" in capsys.readouterr().err
