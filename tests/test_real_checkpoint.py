"""Published outputs of the real weights: these run where PHISCOPE_REAL_CHECKPOINT names a folder
with phi-1, phi-1.5 or phi-2. The values and their sources are in tests/data/golden_outputs.json."""

import json
import os
from pathlib import Path

import pytest
import torch

import phiscope
from phiscope.packing import pack

FOLDER = os.environ.get("PHISCOPE_REAL_CHECKPOINT")
GOLDEN = json.loads((Path(__file__).parent / "data" / "golden_outputs.json").read_text())
LOGITS = GOLDEN["logits"]
pytestmark = pytest.mark.skipif(
    FOLDER is None, reason="needs real weights: PHISCOPE_REAL_CHECKPOINT names no folder"
)


@pytest.fixture(scope="module")
def phi():
    return phiscope.load(FOLDER, mode="fp32" if torch.cuda.is_available() else "fp32-cpu")


def is_phi_2(phi):
    return phi.config.hidden_size == 2560


def test_logits_equal_the_published_ones(phi):
    ids = LOGITS["input_ids"][0]
    assert phi.tokenizer.encode(LOGITS["text"]) == ids
    with torch.inference_mode():
        ours = phi.model(*pack([ids], device=phi.mode.device))[:2, :30].cpu()
    names = ["phi-2"] if is_phi_2(phi) else ["phi-1", "phi-1_5"]
    matches = [
        torch.allclose(
            ours,
            torch.tensor(LOGITS[name]["values"]),
            atol=LOGITS[name]["atol"],
            rtol=LOGITS[name]["rtol"],
        )
        for name in names
    ]
    assert any(matches), ours[0, :6]


def test_greedy_text_equals_the_published_one(phi):
    golden = GOLDEN["generation"][0]
    if not is_phi_2(phi):
        pytest.skip("the published text is phi-2's")
    completion = phi.generate(golden["prompt"], max_new_tokens=30, ignore_eos=True)
    assert golden["full_text"].startswith(golden["prompt"])
    assert golden["prompt"] + completion.text == golden["full_text"]


def test_greedy_tokens_and_logprobs_equal_the_published_ones(phi):
    golden = GOLDEN["generation"][1]
    if not is_phi_2(phi):
        pytest.skip("the published tokens are phi-2's")
    completion = phi.generate(golden["prompt_ids"], max_new_tokens=10, logprobs=0)
    assert completion.token_ids == golden["new_ids"]
    ours = [step.logprob for step in completion.logprobs]
    assert ours == pytest.approx(golden["new_logprobs"], abs=0.02)  # theirs are fp16


def test_half_precision_stays_finite_on_the_overflow_prompt(phi):
    golden = GOLDEN["fp16_overflow_regression"]
    mode = "fp16" if torch.cuda.is_available() else "bf16-cpu"
    half = phiscope.load(FOLDER, mode=mode)
    completion = half.generate(
        golden["prompt_ids"], max_new_tokens=1, points=["attn_probs.[:]", "logits"]
    )
    assert all(state.isfinite().all() for state in completion.states.values())
