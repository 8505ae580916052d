"""transformers' pipelines and AutoTokenizer, over our classes and our folders."""

import pytest
import torch
from hf.first_releases import split_tokenizer
from transformers import AutoTokenizer, pipeline

import phiscope
from phiscope.checkpoint import convert
from phiscope.checkpoint.hub import resolve
from phiscope.hf import (
    PhiForCausalLM,
    PhiForSequenceClassification,
    PhiForTokenClassification,
    PhiModel,
)

NANO = resolve("nano")
TEXTS = ["def add(a, b):\n    return", "import os", "class Stack:\n    def push(self, item):"]
HARD_TEXTS = [
    "",
    "  x",
    "def f(x):\n        return x\n\t\tif  a",
    "one<|endoftext|>two \u00e9\U0001f600\r\n\n",
    "don't  stop ",
]


@pytest.fixture
def tokenizer():
    """Without a spare row, the end token pads: nothing is trained here."""
    return AutoTokenizer.from_pretrained(NANO, pad_token="<|endoftext|>", padding_side="left")


def load(kind, **settings):
    torch.manual_seed(0)
    return kind.from_pretrained("nano", dtype=torch.float32, **settings).eval()


def test_text_generation_continues_as_phiscope_does(tokenizer):
    generate = pipeline("text-generation", model=load(PhiForCausalLM), tokenizer=tokenizer)
    phi = phiscope.load("nano", mode="fp32-cpu")
    for batch_size in (1, 3):
        found = generate(
            TEXTS, max_new_tokens=12, do_sample=False, batch_size=batch_size, return_full_text=False
        )
        expected = [completion.text for completion in phi.generate(TEXTS, max_new_tokens=12)]
        assert [row[0]["generated_text"] for row in found] == expected


def test_text_generation_samples_the_same_with_the_same_seed(tokenizer):
    model = load(PhiForCausalLM)
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    options = {"max_new_tokens": 12, "do_sample": True, "temperature": 0.9}
    torch.manual_seed(1)
    found = generate(TEXTS[0], return_tensors=True, **options)
    torch.manual_seed(1)
    direct = model.generate(**tokenizer(TEXTS[0], return_tensors="pt"), **options)
    assert found[0]["generated_token_ids"] == direct[0].tolist()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_feature_extraction_gives_the_last_hidden_state(batch_size, tokenizer):
    extract = pipeline("feature-extraction", model=load(PhiModel), tokenizer=tokenizer)
    phi = phiscope.load("nano", mode="fp32-cpu")
    for text, found in zip(TEXTS, extract(TEXTS, batch_size=batch_size), strict=True):
        expected = phi.capture(text, "final_norm")["final_norm"][0]
        rows = torch.tensor(found)[0][-len(expected) :]  # the rows of padding come first
        torch.testing.assert_close(rows, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_text_classification_gives_the_scores_of_each_text_alone(batch_size, tokenizer):
    model = load(PhiForSequenceClassification, num_labels=3)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None)
    for text, found in zip(TEXTS, classify(TEXTS, batch_size=batch_size), strict=True):
        with torch.no_grad():
            scores = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(0)
        assert {row["label"]: row["score"] for row in found} == pytest.approx(
            {f"LABEL_{label}": float(score) for label, score in enumerate(scores)}, abs=1e-5
        )


@pytest.mark.parametrize("batch_size", [1, 3])
def test_token_classification_gives_a_label_to_each_token(batch_size, tokenizer):
    model = load(PhiForTokenClassification, num_labels=3)
    classify = pipeline("token-classification", model=model, tokenizer=tokenizer, ignore_labels=[])
    for text, found in zip(TEXTS, classify(TEXTS, batch_size=batch_size), strict=True):
        inputs = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            scores, labels = model(**inputs).logits[0].softmax(-1).max(-1)
        assert [row["entity"] for row in found] == [f"LABEL_{label}" for label in labels.tolist()]
        assert [row["score"] for row in found] == pytest.approx(scores.tolist(), abs=1e-5)
        assert [text[row["start"] : row["end"]] for row in found] == [
            tokenizer.decode(token) for token in inputs["input_ids"][0]
        ]


@pytest.mark.parametrize("layout", ["A", "B", "C", "D"])
def test_auto_tokenizer_encodes_a_folder_of_each_layout_as_phiscope_does(layout, tmp_path):
    convert(NANO, tmp_path / "model", layout=layout)
    assert_same_tokenizer(tmp_path / "model")


@pytest.mark.parametrize("kind", ["CodeGenTokenizer", "CodeGenTokenizerFast", "GPT2Tokenizer"])
@pytest.mark.parametrize("layout", ["A", "B"])
def test_auto_tokenizer_reads_the_files_of_the_first_releases(layout, kind, tmp_path):
    folder = tmp_path / "model"
    convert(NANO, folder, layout=layout)
    split_tokenizer(folder, kind)
    assert_same_tokenizer(folder)


def assert_same_tokenizer(folder):
    ours, theirs = phiscope.load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    assert theirs.eos_token_id == ours.eos_token_id
    for text in (*TEXTS, *HARD_TEXTS):
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
