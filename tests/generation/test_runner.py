import pytest
import torch

from phiscope.generation.options import GenerationOptions
from phiscope.generation.runner import Runner
from phiscope.generation.scheduler import Chunk

PROMPT = [72, 101, 108, 108, 111]


@pytest.fixture
def runner(model):
    return Runner(model, num_slots=3, num_places=16, make_plan=None)


@pytest.fixture
def make_job(engine):
    def make(slot, prompt=PROMPT, **options):
        (job,) = engine.submit(prompt, GenerationOptions(max_new_tokens=4, **options)).jobs
        job.slot = slot
        return job

    return make


def test_head_runs_only_for_rows_that_are_wanted(runner, make_job):
    plain, scored, decoding = make_job(0), make_job(1, echo=True, logprobs=0), make_job(2)
    runner.run([Chunk(decoding, 0, 5)])
    decoding.num_cached = 5
    decoding.take(7, None)
    results = runner.run([Chunk(decoding, 5, 1), Chunk(plain, 0, 3), Chunk(scored, 0, 3)])
    assert [len(result.logits) for result in results] == [1, 0, 3]
    plain.num_cached = 3
    decoding.num_cached = 6
    decoding.take(8, None)
    decoding.end("stop")
    results = runner.run([Chunk(decoding, 6, 1), Chunk(plain, 3, 2)])
    assert [len(result.logits) for result in results] == [0, 1]


def test_chunks_equal_the_whole_forward(runner, make_job, whole_logits):
    job, neighbour = make_job(1), make_job(2, prompt=[3, 4])
    runner.run([Chunk(neighbour, 0, 2), Chunk(job, 0, 2)])
    job.num_cached = 2
    (result,) = runner.run([Chunk(job, 2, 3)])
    torch.testing.assert_close(result.logits[0], whole_logits(PROMPT)[-1])


def test_embeddings_and_ids_run_in_one_batch(model, runner, make_job, whole_logits):
    embeddings = model.model.embed_tokens.weight[PROMPT]
    chunks = [Chunk(make_job(0, prompt=embeddings), 0, 5), Chunk(make_job(1), 0, 5)]
    for result in runner.run(chunks):
        torch.testing.assert_close(result.logits[0], whole_logits(PROMPT)[-1])


def test_one_row_that_is_not_finite_is_told_from_the_others(model, runner, make_job):
    spoilt = model.model.embed_tokens.weight[PROMPT]
    chunks = [Chunk(make_job(0, prompt=spoilt), 0, 5), Chunk(make_job(1), 0, 5)]
    chunks[0].job.task.prompt.embeddings[2] = float("nan")
    assert [result.is_finite for result in runner.run(chunks)] == [False, True]


def test_cache_takes_the_dtype_of_the_model_and_is_made_once(model, engine, runner):
    assert engine._runner._cache is None
    assert runner.cache is runner.cache
    assert runner.cache.data.dtype == model.model.embed_tokens.weight.dtype
