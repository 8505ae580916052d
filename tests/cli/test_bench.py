import json

from phiscope.evaluation.speed import count_read_bytes

SMALL = ("--model", "nano", "--prompt-tokens", "20", "--new-tokens", "2", "--repeats", "1")


def test_bench_prints_a_row_for_each_mode_and_the_limit(run):
    code, out, _ = run("bench", *SMALL, "--batch", "2", "--modes", "fp32-cpu", "int8-cpu")
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert [row[:2] for row in rows[1:3]] == [["phiscope", "fp32-cpu"], ["phiscope", "int8-cpu"]]
    assert all(float(cell) > 0 for row in rows[1:3] for cell in row[2:6])
    assert "memory was read at" in out


def test_bench_times_transformers_on_the_same_weights(run):
    code, out, _ = run("bench", *SMALL, "--mode", "fp32-cpu", "--peers", "--json")
    ours, *peers = json.loads(out)
    assert code == 0
    assert [row["name"] for row in peers] == ["transformers float32", "transformers bfloat16"]
    assert all(row[name] > 0 for row in peers for name in ("prefill", "decode", "batch_decode"))
    keys = ours["bytes_per_token"] - peers[0]["bytes_per_token"]
    assert 0 < keys < 100_000  # the same weights; ours counts the cache, too


def test_prompts_beyond_the_context_are_refused(run):
    code, _, err = run("bench", "--model", "nano", "--prompt-tokens", "5000")
    assert code != 0
    assert "context" in err


def test_a_step_reads_the_weights_but_the_embeddings(run):
    import phiscope

    model = phiscope.load("nano", mode="fp32-cpu", num_threads=1).model
    weights = sum(x.nbytes for x in model.parameters()) - model.model.embed_tokens.weight.nbytes
    assert count_read_bytes(model, 0) == weights
    assert count_read_bytes(model, 1) > weights
