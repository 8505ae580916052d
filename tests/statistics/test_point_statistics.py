import json

import pytest
import torch
from safetensors import safe_open
from small_stores import make_text_store, make_token_store

from phiscope.errors import NonFiniteError, StoreError
from phiscope.statistics.moments import Moments
from phiscope.statistics.point_statistics import PointStatistics, measure_store, merge_statistics
from phiscope.store import Column
from phiscope.store.control_vector import export_control_vector

WIDTHS = {"resid_post.1.mean": 6, "mlp_out.0.last": 4}
JOB = {"model": {"weights": "1f2e"}, "points": ["resid_post.1", "mlp_out.0"]}


def make_statistics(begin, end, *, job=JOB, diagonal=False, seed=3):
    """Statistics of the input rows [begin, end) of 100."""
    moments = {name: Moments(width, diagonal=diagonal) for name, width in WIDTHS.items()}
    statistics = PointStatistics(moments, job)
    add_rows(statistics, begin, end, seed)
    return statistics


def add_rows(statistics, begin, end, seed=3):
    generator = torch.Generator().manual_seed(seed)
    rows = {name: torch.randn(100, width, generator=generator) for name, width in WIDTHS.items()}
    labels = ["calm" if i % 3 else "rude" for i in range(100)]
    statistics.update({name: each[begin:end] for name, each in rows.items()}, labels[begin:end])
    statistics.cover(begin, end)


def assert_equal(ours, theirs):
    assert (ours.job, ours.ranges) == (theirs.job, theirs.ranges)
    assert ours.columns.keys() == theirs.columns.keys()
    for name, moments in ours.columns.items():
        assert moments.class_counts == theirs[name].class_counts
        state = theirs[name].state()
        assert all(torch.equal(tensor, state[key]) for key, tensor in moments.state().items())


@pytest.mark.parametrize("diagonal", [False, True])
def test_a_later_process_resumes_bit_by_bit(tmp_path, diagonal):
    path = tmp_path / "statistics.safetensors"
    straight = make_statistics(0, 40, diagonal=diagonal)
    straight.save(path)
    resumed = PointStatistics.load(path)
    assert_equal(resumed, straight)
    for each in (straight, resumed):
        add_rows(each, 40, 100)
    assert_equal(resumed, straight)
    assert resumed.ranges == ((0, 100),)
    straight.save(path)
    resumed.save(tmp_path / "again.safetensors")
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_any_safetensors_reader_understands_the_file(tmp_path):
    path = tmp_path / "statistics.safetensors"
    statistics = make_statistics(0, 100)
    statistics.save(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        count = int(file.get_tensor("mlp_out.0.last/count"))
        scatter = file.get_tensor("mlp_out.0.last/scatter")
        means = file.get_tensor("mlp_out.0.last/class_means")
    assert torch.equal(scatter / (count - 1), statistics["mlp_out.0.last"].covariance)
    classes = json.loads(metadata["columns"])["mlp_out.0.last"]
    assert torch.equal(
        means[classes.index("calm")], statistics["mlp_out.0.last"].class_means["calm"]
    )
    assert json.loads(metadata["job"]) == JOB
    assert json.loads(metadata["ranges"]) == [[0, 100]]


def test_files_of_parts_merge_to_the_whole_in_any_order(tmp_path):
    paths = [tmp_path / f"part-{i}.safetensors" for i in range(3)]
    for path, (begin, end) in zip(paths, [(0, 10), (60, 100), (10, 60)], strict=True):
        make_statistics(begin, end).save(path)
    whole = make_statistics(0, 100)
    for order in (paths, paths[::-1]):
        merged = merge_statistics(order)
        assert merged.ranges == ((0, 100),)
        for name, moments in merged.columns.items():
            assert torch.allclose(moments.covariance, whole[name].covariance, rtol=0, atol=1e-7)
            assert torch.allclose(moments.variance, whole[name].variance, rtol=1e-10)
            assert moments.class_counts == {"rude": 34, "calm": 66}
            for label, mean in moments.class_means.items():
                assert torch.allclose(mean, whole[name].class_means[label], rtol=1e-10)


def test_merging_in_memory_equals_merging_files(tmp_path):
    make_statistics(0, 30).save(tmp_path / "a")
    make_statistics(30, 100).save(tmp_path / "b")
    merged = make_statistics(0, 30)
    merged.merge(make_statistics(30, 100))
    assert_equal(merged, merge_statistics([tmp_path / "a", tmp_path / "b"]))


def test_input_rows_are_counted_once(tmp_path):
    statistics = make_statistics(10, 40)
    make_statistics(30, 50).save(tmp_path / "b")
    before = {key: each.clone() for key, each in statistics["mlp_out.0.last"].state().items()}
    with pytest.raises(StoreError, match="b: input rows 30 to 40 would be counted twice"):
        statistics.merge_file(tmp_path / "b")
    with pytest.raises(StoreError, match="input rows 10 to 11 would be counted twice"):
        statistics.merge(make_statistics(0, 11))
    after = statistics["mlp_out.0.last"].state()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())


def test_statistics_of_another_job_are_not_merged(tmp_path):
    statistics = make_statistics(0, 10)
    make_statistics(10, 20, job={**JOB, "points": []}).save(tmp_path / "other")
    with pytest.raises(StoreError, match=r"other: cannot merge .* job 'points' is .* and .* there"):
        statistics.merge_file(tmp_path / "other")
    with pytest.raises(StoreError, match=r"column 'mlp_out\.0\.last' is a covariance of 4 columns"):
        statistics.merge(make_statistics(10, 20, diagonal=True))


def test_a_nan_in_one_column_adds_to_none():
    statistics = make_statistics(0, 10)
    rows = {name: torch.zeros(2, width) for name, width in WIDTHS.items()}
    rows["mlp_out.0.last"][1] = float("inf")
    with pytest.raises(NonFiniteError, match=r"mlp_out\.0\.last: row 1 has a NaN or an infinity"):
        statistics.update(rows)
    assert [moments.count for moments in statistics.columns.values()] == [10, 10]


def test_class_differences_are_those_of_the_rows():
    statistics = make_statistics(0, 100)
    differences = statistics.class_differences("rude", "calm")
    for name, difference in differences.items():
        means = statistics[name].class_means
        assert torch.equal(difference, means["rude"] - means["calm"])
    with pytest.raises(StoreError, match="no rows of the class 'kind'; its classes: rude, calm"):
        statistics.class_differences("kind", "calm")


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
def test_a_store_is_measured_as_its_rows_are(tmp_path, dtype):
    column = Column(name="z.2.mean", dtype=dtype, shape=(2, 3))
    store = make_text_store(tmp_path / "store", [column], list("abcdefghi"))
    labels = {"a": "low", "b": "low", "i": "high", "not there": "low"}
    moments = measure_store(store, labels=labels, diagonal=False)["z.2.mean"]
    rows = store.tensor("z.2.mean").double().flatten(1)
    assert torch.allclose(moments.covariance, rows.T.cov(), rtol=1e-6)
    assert torch.equal(moments.class_means["high"], rows[8])
    assert torch.equal(moments.class_means["low"], rows[:2].mean(0))


def test_a_control_vector_is_made_of_a_labelled_store(tmp_path):
    gguf = pytest.importorskip("gguf")
    columns = [
        Column(name=f"resid_post.{layer}.mean", dtype="float32", shape=(32,)) for layer in (1, 2)
    ]
    store = make_text_store(tmp_path / "store", columns, list("abcd"))
    statistics = measure_store(store, labels={"a": "-", "b": "-", "c": "+", "d": "+"})
    export_control_vector(statistics.class_differences("+", "-"), tmp_path / "v.gguf")
    tensors = {each.name: each.data for each in gguf.GGUFReader(tmp_path / "v.gguf").tensors}
    rows = store["resid_post.2.mean"].numpy()
    expected = rows[2:].mean(axis=0) - rows[:2].mean(axis=0)
    assert tensors["direction.2"].tolist() == pytest.approx(expected.tolist())


def test_labels_belong_to_texts(tmp_path):
    column = Column(name="z.2", dtype="float32", shape=(3,))
    store = make_token_store(tmp_path / "store", [column], [("a", [1, 2, 3]), ("b", [4])])
    assert measure_store(store)["z.2"].count == 4
    with pytest.raises(ValueError, match="has one row per token; labels belong to texts"):
        measure_store(store, labels={"a": "x"})


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(StoreError, match=r"no statistics of 'q\.0'; there are resid_post\.1\.mean"):
        make_statistics(0, 10).update({"q.0": torch.ones(1, 3)})


def test_a_failed_write_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "statistics.safetensors"
    make_statistics(0, 10).save(path)
    before = path.read_bytes()
    statistics = make_statistics(0, 20)
    statistics.job["broken"] = object()
    with pytest.raises(TypeError):
        statistics.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "statistics.safetensors"
    make_statistics(0, 10).save(path)
    whole = path.read_bytes()
    faults = {
        "cut": (whole[:-8], "cut short"),
        "other": (whole.replace(b"phiscope-statistics", b"phiscope-sta7istics"), "no statistics"),
        "class": (whole.replace(rb"\"calm\"", rb"\"calm, "), "damaged statistics"),
        "tensor": (whole.replace(b"mlp_out.0.last/mean", b"mlp_out.0.last/bean"), "damaged"),
        "text": (b"not a tensor in sight", "claims a header"),
    }
    for name, (data, message) in faults.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(StoreError, match=message):
            PointStatistics.load(tmp_path / name)
    with pytest.raises(StoreError, match="cannot open"):
        PointStatistics.load(tmp_path / "absent")
