"""EleutherAI's evaluation harness (lm-eval), over our model object and a task in memory."""

import pytest
import torch
from transformers import AutoTokenizer

import phiscope
from phiscope.checkpoint.hub import resolve
from phiscope.hf import PhiForCausalLM

DOCUMENTS = [
    {"question": "import os\nprint(os.path.", "choices": ["join(a, b))", "((((", "def"], "gold": 0},
    {"question": "def add(a, b):\n    return", "choices": [" a + b", " import"], "gold": 0},
    {"question": "class Stack:\n    def __init__(", "choices": ["self):", "7"], "gold": 1},
]


def make_task(datasets):
    return {
        "task": "next_words",
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(DOCUMENTS)},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }


def score_by_hand(phi, question, choice):
    """The log-likelihood of a choice, and whether each of its tokens is the likeliest."""
    ids, prompt = phi.tokenizer.encode(question + choice), phi.tokenizer.encode(question)
    logits = phi.capture(ids, "logits")["logits"][0][len(prompt) - 1 : -1]
    new = torch.tensor(ids[len(prompt) :])
    return sum(phi.score(ids).logprobs[-len(new) :]), bool((logits.argmax(-1) == new).all())


def test_harness_finds_the_log_likelihoods_that_phiscope_scores():
    lm_eval = pytest.importorskip("lm_eval")
    datasets = pytest.importorskip("datasets")
    from lm_eval.models.huggingface import HFLM

    model = PhiForCausalLM.from_pretrained("nano", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(resolve("nano"))
    phi = phiscope.load("nano", mode="fp32-cpu")
    results = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=3),
        tasks=[make_task(datasets)],
        task_manager=lm_eval.tasks.TaskManager(include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    samples = results["samples"]["next_words"]
    assert [sample["doc"] for sample in samples] == DOCUMENTS
    for sample in samples:
        question, choices = sample["doc"]["question"], sample["doc"]["choices"]
        expected = [score_by_hand(phi, question, choice) for choice in choices]
        found = [response[0] for response in sample["resps"]]
        assert [value for value, _ in found] == pytest.approx([x for x, _ in expected], abs=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    correct = [sample["acc"] for sample in samples]
    assert results["results"]["next_words"]["acc,none"] == sum(correct) / len(correct)
