import hashlib
import subprocess
import sys
import time

import pytest

from phiscope.training.synthetic import KINDS, SyntheticOptions, generate

OPTIONS = SyntheticOptions(seed=7)
DIGEST = "f0c7e8bfd858675e5ec355868c4d07a0dce07df52534ea276a229388139754a6"
SPLITS = ("train", "heldout")


def digest(samples):
    whole = hashlib.sha256()
    for sample in samples:
        labels = sorted(sample.labels.items())
        fields = (sample.id, sample.kind, sample.template, sample.split, sample.text, labels)
        whole.update(repr(fields).encode())
    return whole.hexdigest()


def test_the_first_samples_are_the_same_on_every_machine():
    assert digest(generate(OPTIONS, 0, 200)) == DIGEST


def test_a_range_gives_what_it_is_in_a_longer_one():
    whole = list(generate(OPTIONS, 0, 60))
    parts = [*generate(OPTIONS, 45, 60), *generate(OPTIONS, 0, 10), *generate(OPTIONS, 10, 45)]
    assert parts == whole[45:] + whole[:45]
    assert list(generate(OPTIONS, 5, 5)) == []


def test_seeds_and_splits_share_no_ids_and_few_texts():
    runs = [
        list(generate(options, 0, 300))
        for options in (
            OPTIONS,
            SyntheticOptions(seed=8),
            SyntheticOptions(seed=7, split="train"),
            SyntheticOptions(seed=7, split="heldout"),
        )
    ]
    ids = {sample.id for run in runs for sample in run}
    stories = [sample.text for run in runs for sample in run if sample.kind == "story"]
    assert len(ids) == 1200
    assert len(set(stories)) == len(stories)


def test_held_out_templates_are_of_no_training_sample(samples):
    templates = {split: {one.template for one in samples if one.split == split} for split in SPLITS}
    assert not templates["train"] & templates["heldout"]
    assert len(templates["train"] | templates["heldout"]) == sum(
        len(kind.templates) for kind in KINDS.values()
    )


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_alone_is_written_with_its_own_templates(split, samples):
    alone = list(generate(SyntheticOptions(split=split), 0, 3000))
    assert {one.split for one in alone} == {split}
    assert {one.template for one in alone} == {
        one.template for one in samples if one.split == split
    }


def test_every_class_of_every_label_is_held_out_and_trained_on_in_every_kind(samples):
    seen = {split: set() for split in SPLITS}
    for sample in samples:
        seen[sample.split] |= {(sample.kind, *pair) for pair in sample.labels.items()}
    assert seen["train"] == seen["heldout"]


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.99])
def test_each_kind_holds_out_its_share_at_least_one_and_not_all(share):
    options = SyntheticOptions(heldout_share=share)
    found = list(generate(options, 0, 6000))
    for name, kind in KINDS.items():
        count = len(kind.templates)
        held = {one.template for one in found if one.kind == name and one.split == "heldout"}
        assert len(held) == min(max(1, round(share * count)), count - 1)


def test_a_mix_without_a_kind_writes_none_of_it():
    options = SyntheticOptions(mix={"story": 3, "fact": 1, "junk": 0})
    kinds = [sample.kind for sample in generate(options, 0, 2000)]
    assert set(kinds) == {"story", "fact"}
    assert kinds.count("story") == pytest.approx(1500, abs=100)


def test_a_range_that_is_none_is_refused_at_the_call():
    with pytest.raises(ValueError, match="from 0 and upwards, got 5 to 3"):
        generate(OPTIONS, 5, 3)


def test_five_thousand_samples_take_less_than_a_second():
    begin = time.process_time()
    assert sum(1 for _ in generate(OPTIONS, 0, 5000)) == 5000
    assert time.process_time() - begin < 1


def test_generating_needs_neither_torch_nor_numpy():
    code = (
        "import sys; from phiscope.training.synthetic import SyntheticOptions, generate; "
        "list(generate(SyntheticOptions(), 0, 50)); print({'torch', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
