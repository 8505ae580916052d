"""Statistics of a corpus in one pass: those of the states that extract would have stored."""

import signal

import numpy as np
import pytest

import phiscope
from phiscope import Fields, PointError, StoreError
from phiscope.statistics import measuring
from phiscope.statistics.point_statistics import PointStatistics, merge_statistics

LABELLED = Fields(label="label")


@pytest.fixture(scope="module")
def phi():
    return phiscope.load("nano")


@pytest.fixture
def rows():
    texts = [f"number {i} and a few more words " * (i % 4 + 1) for i in range(50)]
    return [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts)]


def measure(phi, rows, out, **settings):
    settings = {"points": "resid_post.[:2]", "pool": "mean", "shard_size": 16, **settings}
    return phi.extract_statistics(rows, out, fields=LABELLED, **settings)


def test_statistics_are_those_of_the_stored_states(phi, rows, tmp_path):
    measured = measure(phi, rows, tmp_path / "s.safetensors")
    phi.extract(rows, tmp_path / "store", points="resid_post.[:2]", pool="mean", dtype="float32")
    store, statistics = phiscope.open_store(tmp_path / "store"), PointStatistics.load(measured.out)
    assert (measured.num_rows, measured.is_finished) == (50, True)
    for name in store.columns:
        states = store[name].numpy().astype(np.float64)
        np.testing.assert_allclose(statistics[name].mean, states.mean(0), atol=1e-6)
        np.testing.assert_allclose(statistics[name].covariance, np.cov(states.T), atol=1e-6)
        odd = states[1::2].mean(0)
        np.testing.assert_allclose(statistics[name].class_means["b"], odd, atol=1e-6)


def test_tokens_are_counted_one_by_one_with_the_label_of_their_text(phi, rows, tmp_path):
    measured = measure(phi, rows, tmp_path / "s.safetensors", pool=None, diagonal=True)
    moments = PointStatistics.load(measured.out)["resid_post.1"]
    assert moments.count == measured.num_tokens == sum(moments.class_counts.values())


def test_a_killed_job_goes_on_with_the_same_bits(phi, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "_SAVE_SECONDS", 0.0)

    def dying():
        yield from rows[:40]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(phi, dying(), tmp_path / "killed.safetensors")
    measure(phi, rows, tmp_path / "killed.safetensors")
    monkeypatch.undo()
    measure(phi, rows, tmp_path / "whole.safetensors")
    killed, whole = (tmp_path / f"{name}.safetensors" for name in ("killed", "whole"))
    assert killed.read_bytes() == whole.read_bytes()


def test_other_rows_or_another_job_are_refused_on_resume(phi, rows, tmp_path):
    out = tmp_path / "s.safetensors"
    measure(phi, rows, out)
    with pytest.raises(StoreError, match="measured on other rows"):
        measure(phi, [{"text": "other", "label": "a"}, *rows[1:]], out)
    with pytest.raises(StoreError, match=r"reading\.points"):
        measure(phi, rows, out, points="resid_post.2")
    with pytest.raises(StoreError, match="diagonal"):
        measure(phi, rows, out, diagonal=True)


def test_bad_rows_are_left_out_and_written_beside_the_file(phi, rows, tmp_path):
    measured = measure(phi, [*rows, {"text": "", "label": "a"}], tmp_path / "s.safetensors")
    assert (measured.num_rows, measured.num_bad_rows) == (50, 1)
    assert '"index": 50' in (tmp_path / "s.safetensors.errors.jsonl").read_text()


def test_statistics_of_parts_merge_to_those_of_the_whole(phi, rows, tmp_path):
    measure(phi, rows, tmp_path / "whole.safetensors")
    for part in (0, 1):
        measure(phi, rows, tmp_path / f"{part}.safetensors", part=(part, 2))
    merged = merge_statistics([tmp_path / "0.safetensors", tmp_path / "1.safetensors"])
    whole = PointStatistics.load(tmp_path / "whole.safetensors")
    assert merged.ranges == whole.ranges
    ours, theirs = merged["resid_post.1.mean"], whole["resid_post.1.mean"]
    np.testing.assert_allclose(ours.covariance, theirs.covariance, rtol=1e-9, atol=1e-12)


def test_parts_that_are_not_the_whole_are_no_statistics_of_it(phi, rows, tmp_path):
    parts = [tmp_path / f"{part}.safetensors" for part in (0, 1, 2)]
    for number, part in enumerate(parts):
        measure(phi, rows, part, part=(number, 3))
    with pytest.raises(StoreError, match="input rows 32 to 47 are missing"):
        merge_statistics(parts[:2])
    with pytest.raises(StoreError, match="input rows 16 to 47 are missing"):
        PointStatistics.load(parts[0]).check_whole(parts[0])
    merged = merge_statistics(parts)
    merged.save(tmp_path / "whole.safetensors")
    PointStatistics.load(tmp_path / "whole.safetensors").check_whole(tmp_path)
    parts[2].unlink()
    with pytest.raises(StoreError, match="was interrupted"):
        merge_statistics([*parts[:2], interrupt(phi, rows, parts[2], part=(2, 3))])


def interrupt(phi, rows, out, **settings):
    """A count that ends, by Ctrl-C, with the first shard it sees."""

    def interrupted():
        yield from rows[:17]
        signal.raise_signal(signal.SIGINT)
        yield from rows[17:]

    assert not measure(phi, interrupted(), out, **settings).is_finished
    return out


def test_errors_are_those_of_the_rows_that_count(phi, rows, tmp_path):
    bad = [{"text": "", "label": "a"}]
    rows, out = [*bad, *rows, *bad], tmp_path / "s.safetensors"
    errors = tmp_path / "s.safetensors.errors.jsonl"
    interrupt(phi, rows, out)
    first = errors.read_text()
    assert '"index": 0' in first
    with errors.open("a") as file:
        file.write("what a killed job had written behind it")
    assert measure(phi, rows, out).num_bad_rows == 2
    assert errors.read_text().startswith(first)
    assert '"index": 51' in errors.read_text().splitlines()[1]
    errors.unlink()
    with pytest.raises(StoreError, match="has lost rows"):
        measure(phi, rows, out)
    out.unlink()
    errors.write_text("of an input that was mended")
    measure(phi, rows[1:-1], out)
    assert not errors.exists()


def test_ids_of_likely_tokens_have_no_statistics(phi, rows, tmp_path):
    with pytest.raises(PointError, match="int32"):
        measure(phi, rows, tmp_path / "s.safetensors", points="logits", pool="last", top_k=3)
