"""benchmarks/speed.py: its work and limits, its lineups, our runner's tokens, its picture."""

import sys
from pathlib import Path

import pytest
import torch

import phiscope
from phiscope.config import PRESETS

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FOLDERS = [str(BENCHMARKS / name) for name in ("runners", "peers")]
CONFIG = PRESETS["phi-2"]


@pytest.fixture(autouse=True)
def _paths(monkeypatch):
    """The scripts find each other by their folders, as they do where they are run."""
    for folder in FOLDERS:
        monkeypatch.syspath_prepend(folder)


def test_flops_of_a_token_are_two_for_each_weight():
    from cells import count_block_flops

    vectors = CONFIG.num_parameters - 2 * CONFIG.vocab_size * CONFIG.hidden_size
    weights = CONFIG.num_hidden_layers * count_block_flops(CONFIG) / 2
    assert weights == pytest.approx(vectors, rel=1e-3)


def test_a_step_reads_weights_once_and_each_sequences_cache():
    from cells import MEAN_CONTEXT, make_cells

    prefill, one, eight = make_cells(32)
    assert prefill.count_bytes(1000, 10) == 1000
    assert one.count_bytes(1000, 10) == 32 * (1000 + MEAN_CONTEXT * 10)
    assert eight.count_bytes(1000, 10) == 32 * (1000 + 8 * MEAN_CONTEXT * 10)
    assert eight.num_timed == 8 * one.num_timed == 8 * 32


def test_limit_is_the_slower_of_memory_and_arithmetic():
    from cells import Cell, Limits, Series

    cell = Cell(name="decode_1", num_sequences=1, num_prompt=4, num_steps=2)
    sizes = {"flops": 80.0, "attention_flops": 20.0, "bytes_read": 50.0}
    series = Series(cell, **sizes, arithmetic="fp32")
    answer = {"seconds": 4.0, "token_ids": [[7, 8, 9]]}
    series.add(answer, Limits(bandwidth=25.0, peaks={"fp32": 100.0}))
    series.add(answer, Limits(bandwidth=50.0, peaks={"fp32": 25.0}))
    assert series.limits == [2.0, 4.0]
    assert series.summarise()["share_of_limit"] == 0.75
    assert series.summarise()["tokens_per_second"] == 0.5


def test_attention_of_integers_counts_as_fp32():
    from cells import Cell, Limits, Series

    cell = Cell(name="prefill", num_sequences=1, num_prompt=4)
    sizes = {"flops": 80.0, "attention_flops": 20.0, "bytes_read": 0.0}
    series = Series(cell, **sizes, arithmetic="int8")
    peaks = {"fp32": 10.0, "int8": 40.0}
    series.add({"seconds": 8.0, "token_ids": [[7]]}, Limits(bandwidth=1.0, peaks=peaks))
    assert series.limits == [4.0]
    assert series.summarise()["flops"] == 100.0


def test_better_of_two_measurements_counts():
    from cells import Limits

    one, other = Limits(3.0, {"fp32": 5.0, "int8": 9.0}), Limits(4.0, {"fp32": 6.0, "int8": 8.0})
    assert one.best(other) == Limits(4.0, {"fp32": 6.0, "int8": 9.0})


def test_only_real_tokens_are_compared():
    from cells import NUM_TOKENS, count_same

    assert count_same([[1, 2], [3, 4]], [[1, 5], [NUM_TOKENS, 4]]) == (2, 3)


def test_lineups_fit_into_memory_and_share_their_bits():
    from entrants import ENTRANTS, estimate_memory, make_lineups

    room = 20e9
    lineups = make_lineups(ENTRANTS.values(), CONFIG.num_parameters, room)
    assert [x for lineup in lineups for x in lineup] == list(ENTRANTS.values())
    for lineup in lineups:
        assert len({x.bits for x in lineup}) == 1
        assert sum(estimate_memory(x, CONFIG.num_parameters) for x in lineup) <= room


@pytest.mark.parametrize("num_prompt", [5, 100])  # together within and beyond a step's budget
def test_our_runner_gives_the_tokens_of_generate(num_prompt):
    from phiscope_runner import PhiscopeRunner

    runner, phi = PhiscopeRunner("nano", "fp32-cpu", 1), phiscope.load("nano", mode="fp32-cpu")
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, 200, (8, num_prompt), generator=generator).tolist()
    expected = phi.generate(prompts, max_new_tokens=4, ignore_eos=True)
    timed = runner.decode(prompts, 3)
    assert timed.token_ids == [x.token_ids for x in expected]
    assert timed.seconds > 0
    assert runner.prefill(prompts[0]).token_ids == [expected[0].token_ids[:1]]


def test_a_step_reads_all_parameters_but_the_embeddings():
    from phiscope_runner import count_step_bytes

    model = phiscope.load("nano", mode="fp32-cpu").model
    parts = {name: 4 * x.numel() for name, x in model.named_parameters()}
    assert count_step_bytes(model) == sum(parts.values()) - parts["model.embed_tokens.weight"]


def test_runner_that_cannot_be_loaded_says_why():
    from crew import Crew
    from pipe import WorkerError

    script, crew = str(BENCHMARKS / "runners" / "phiscope_runner.py"), Crew()
    with pytest.raises(WorkerError, match="UnsupportedError: no mode 'int9-cpu'"):
        crew.start("ours", sys.executable, script, "ours", "1", "nano", "int9-cpu")
    assert crew.workers == {}


def test_roofline_places_a_point_by_its_work_and_time(monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from roofline import find_roofs, list_points

    row = {"bits": 8, "flops": 4e9, "bytes": 2e9, "median_seconds": 0.5}
    (point,) = list_points({"decode_1": {"phiscope int8-cpu": row}})
    assert (point.intensity, point.gflops) == (2.0, 8.0)
    limits = {"bandwidth_gb": [10, 30, 20], "peak_gflops": {"int8": [5, 4, 9]}}
    assert find_roofs(limits) == (20, {"int8": 5})
