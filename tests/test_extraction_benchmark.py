"""benchmarks/extraction.py: its texts, its float64 reference, its errors, and its processes."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from oracle import make_model, make_peer

from phiscope.activations.capture import plan_capture
from phiscope.activations.points import resolve_points
from phiscope.config import PhiConfig
from phiscope.packing import pack

FOLDER = Path(__file__).parents[1] / "benchmarks" / "peers"
ANSWERER = f"""
import os, sys
sys.path.append({str(FOLDER)!r})
from pipe import serve
def fail(): raise ValueError("no such text")
def double(x): print("words of a library"); return 2 * x
serve({{"double": double, "fail": fail, "die": lambda: os._exit(3)}})
"""


def load(name):
    spec = importlib.util.spec_from_file_location(f"extraction_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    return module


accuracy, corpus, pipe, reference = map(load, ("accuracy", "corpus", "pipe", "reference"))


def sizes_of_batches(order, texts):
    return [[len(texts[row]) for row in rows] for rows in order(texts)]


def test_sorting_a_block_gives_batches_of_all_texts_sorted():
    blocks = corpus.make_lognormal(256, 8).blocks
    everything = [text for block in blocks for text in block]
    whole = sizes_of_batches(corpus.sorted_by_length, everything)
    parts = [batch for x in blocks for batch in sizes_of_batches(corpus.sorted_by_length, x)]
    assert sorted(parts) == sorted(whole)


def test_blocks_are_alike_and_lengths_stay_in_bounds():
    texts = corpus.make_lognormal(256, 8)
    tokens = texts.block_tokens
    assert max(tokens) < 1.3 * min(tokens)
    assert 15_000 < sum(tokens) < 18_000
    lengths = [len(text) for block in texts.blocks for text in block]
    assert min(lengths) == 20
    assert max(lengths) <= 512


def test_same_seed_makes_the_same_texts():
    assert corpus.make_short(32, 2).blocks == corpus.make_short(32, 2).blocks
    assert corpus.make_short(32, 2).blocks != corpus.make_short(32, 2, seed=7).blocks


@pytest.mark.parametrize("key_heads", [4, 2])
def test_reference_equals_the_model_in_float64(key_heads):
    config = PhiConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=key_heads,
        vocab_size=97,
        rotary_dim=8,
    )
    model = make_model(config)
    texts = [[5, 17, 3, 96, 0, 8], [1], [9, 9, 2]]
    peer = make_peer(model)
    theirs = list(reference.compute_states(peer.state_dict(), peer.config, texts))
    inputs, packed = pack(texts)
    points = resolve_points(["embeddings", "resid_post.[:]", "final_norm"], 3)
    plan = plan_capture(packed, points)
    model.model(inputs, packed, plan=plan)
    for number, point in enumerate(points):
        for text in range(len(texts)):
            ours = plan.rows(text)[str(point)]
            # The model's tables of angles are fp32, and so are its attention's products.
            torch.testing.assert_close(ours, theirs[number][text], rtol=1e-5, atol=1e-5)


def test_errors_are_of_numbers_and_of_rows():
    exact = torch.tensor([[3.0, 4.0], [0.0, 10.0]], dtype=torch.float64)
    errors = accuracy.compare(exact.float() + torch.tensor([[0.0, 0.5], [0.0, 0.0]]), exact)
    assert errors == {"max_absolute": 0.5, "max_relative": 0.1, "relative": 0.0447}


def test_worker_answers_and_says_why_it_cannot():
    worker = pipe.Worker("one", [sys.executable, "-c", ANSWERER])
    assert worker.ask("double", x=21) == 42
    with pytest.raises(pipe.WorkerError, match="ValueError: no such text"):
        worker.ask("fail")
    assert worker.ask("double", x=1) == 2
    with pytest.raises(pipe.WorkerError, match="the process one died with 3"):
        worker.ask("die")
    assert not worker.is_alive
    worker.close()
