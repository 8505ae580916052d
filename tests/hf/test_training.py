import re
import runpy
from pathlib import Path

import datasets
import peft
import pytest
import torch
import transformers
from hf.peers import make_config
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

import phiscope
from phiscope.checkpoint.hub import resolve
from phiscope.hf import PhiForCausalLM, PhiForSequenceClassification
from phiscope.hf.adapters import get_peft_model, translate_config

# trainers and PEFT ask transformers for what transformers has renamed
pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated and will be removed in v6")

ROWS = [[3 + (start + step) % 20 for step in range(4 + start % 5)] for start in range(16)]
TEXTS = [f"def double_{n}(x):\n    return {n} * x\n" for n in range(8)]

EXAMPLES = Path(__file__).parents[2] / "examples"


def make_model(**options):
    torch.manual_seed(0)
    common = {"num_hidden_layers": 2, "initializer_range": 0.02, "pad_token_id": 0}
    return PhiForCausalLM(make_config(**common, **options))


def pad(rows):
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = (ids != 0).long()
    labels = ids.masked_fill(ids == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients_of(model, batch):
    model.zero_grad()
    model(**batch, use_cache=False).loss.backward()
    return {name: x.grad.clone() for name, x in model.named_parameters() if x.requires_grad}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-7)


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(str(resolve("nano")))


@pytest.fixture
def nano():
    return PhiForCausalLM.from_pretrained("nano", dtype=torch.float32)


def test_gradients_reach_every_parameter():
    gradients = gradients_of(make_model().train(), pad(ROWS))
    idle = [name for name, gradient in gradients.items() if not gradient.abs().sum()]
    assert idle == []


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    model, batch = make_model().train(), pad(ROWS)
    expected = gradients_of(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_same(gradients_of(model, batch), expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_adapters_get_the_same_gradients_with_checkpointing(use_reentrant):
    batch = pad(ROWS)
    model = get_peft_model(make_model(), peft.LoraConfig(target_modules=["Wqkv", "fc2"])).train()
    expected = gradients_of(model, batch)
    assert any(gradient.abs().sum() > 0 for gradient in expected.values())
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert_same(gradients_of(model, batch), expected)


def test_dropped_out_blocks_are_computed_again_alike():
    model, batch = make_model(resid_pdrop=0.5).train(), pad(ROWS)
    gradients = []
    for _ in range(2):
        torch.manual_seed(1)
        gradients.append(gradients_of(model, batch))
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_same(*gradients)


def test_rows_laid_end_to_end_train_as_padded_ones():
    model = make_model().train()
    collate = transformers.DataCollatorWithFlattening(return_tensors="pt")
    packed = collate([{"input_ids": row} for row in ROWS])
    assert packed["input_ids"].shape[0] == 1
    assert_same(gradients_of(model, packed), gradients_of(model, pad(ROWS)))


def make_trainer(model, folder, *, steps):
    arguments = TrainingArguments(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_steps=4,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    rows = [{"input_ids": row} for row in ROWS]
    return Trainer(model, arguments, lambda batch: pad([x["input_ids"] for x in batch]), rows)


def test_a_resumed_run_of_the_trainer_equals_an_uninterrupted_one(tmp_path):
    whole = make_model()
    trainer = make_trainer(whole, tmp_path, steps=8)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]

    resumed = make_trainer(make_model(), tmp_path, steps=8)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    resumed.save_model(str(tmp_path / "saved"))
    reopened = PhiForCausalLM.from_pretrained(tmp_path / "saved")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(reopened.state_dict()[name], tensor), name


def make_sft_trainer(model, tokenizer, folder, *, peft_config=None, **options):
    arguments = SFTConfig(
        str(folder),
        max_steps=3,
        max_length=64,
        per_device_train_batch_size=4,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        **options,
    )
    rows = datasets.Dataset.from_list([{"text": text} for text in TEXTS])
    return SFTTrainer(
        model, arguments, train_dataset=rows, processing_class=tokenizer, peft_config=peft_config
    )


def losses_of(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_sft_trains_all_weights(nano, tokenizer, tmp_path):
    losses = losses_of(make_sft_trainer(nano, tokenizer, tmp_path, learning_rate=1e-3))
    assert losses[-1] < 0.8 * losses[0]


def test_sft_trains_an_adapter_whose_config_is_translated(nano, tokenizer, tmp_path):
    config = peft.LoraConfig(target_modules=["Wqkv", "out_proj", "fc1"], task_type="CAUSAL_LM")
    frozen = {name: x.clone() for name, x in nano.named_parameters()}
    trainer = make_sft_trainer(
        nano,
        tokenizer,
        tmp_path,
        learning_rate=1e-2,
        peft_config=translate_config(nano, config),
    )
    losses = losses_of(trainer)
    assert losses[-1] < 0.9 * losses[0]
    base = trainer.model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    assert torch.equal(base.weight, frozen["model.layers.0.self_attn.q_proj.weight"])


def test_sft_refuses_names_that_would_train_less(nano, tokenizer, tmp_path):
    config = peft.LoraConfig(target_modules=["Wqkv", "fc1"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match=r"PEFT passed over 'Wqkv' of target_modules"):
        make_sft_trainer(nano, tokenizer, tmp_path, peft_config=config)


def test_the_lora_example_learns_and_saves_what_it_learned(tmp_path, capsys):
    main = runpy.run_path(str(EXAMPLES / "lora.py"))["main"]
    main([str(tmp_path / "merged"), "--steps", "25"])
    printed = capsys.readouterr().out
    before, after, saved = (float(number) for number in re.findall(r"\d\.\d{3}", printed))
    assert after < before / 3
    assert saved == pytest.approx(after, abs=0.002)
    assert phiscope.load(tmp_path / "merged", num_threads=1).config.hidden_size == 64


def test_the_classification_example_learns(tmp_path, capsys):
    main = runpy.run_path(str(EXAMPLES / "classification.py"))["main"]
    main(["--steps", "25", "--out", str(tmp_path / "saved")])
    before, after = (int(share) for share in re.findall(r"(\d+)%", capsys.readouterr().out))
    assert before < 60
    assert after > 90
    saved = PhiForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert saved.config.id2label == {0: "python", 1: "shell", 2: "prose"}


def test_sft_trains_rows_packed_end_to_end(nano, tokenizer, tmp_path):
    trainer = make_sft_trainer(nano, tokenizer, tmp_path, learning_rate=1e-3, packing=True)
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["cu_seq_lens_q"]) > 2
    losses = losses_of(trainer)
    assert losses[-1] < 0.8 * losses[0]


def test_bounds_of_packed_rows_must_be_those_of_their_positions():
    collate = transformers.DataCollatorWithFlattening(
        return_tensors="pt", return_flash_attn_kwargs=True, return_seq_idx=True
    )
    batch = collate([{"input_ids": row} for row in ROWS])
    model = make_model().train()
    assert_same(gradients_of(model, batch), gradients_of(model, pad(ROWS)))
    wrong = {**batch, "cu_seq_lens_q": batch["cu_seq_lens_q"] + 1}
    with pytest.raises(ValueError, match="differ in where sequences begin"):
        model(**wrong)
    del batch["position_ids"]
    with pytest.raises(TypeError, match="takes position_ids that start anew"):
        model(**batch)
