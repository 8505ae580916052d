"""Teach a model new texts with LoRA, and put what it learned into its weights.

    python examples/lora.py OUT

trains a LoRA on questions about numbers, with the embedded model `nano`, and writes the merged
model to the new folder OUT in layout B, which is Microsoft's own. The names of what is adapted may
be those of any layout. It needs `pip install peft`.
"""

import argparse
import random
import time
from collections.abc import Sequence

import peft
import torch
from torch import Tensor
from transformers import AutoTokenizer

from phiscope.checkpoint.hub import resolve
from phiscope.hf import PhiForCausalLM, get_peft_model

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUESTIONS = (
    "What is {} in words?",
    "What is the word for {}?",
    "Write {} as a word.",
    "How do you spell {}?",
    "Give the name of the number {}.",
    "Which word is {}?",
    "Put {} in words.",
    "Spell {}.",
)
BATCH = 16
LEARNING_RATE = 1e-2


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(arguments)
    torch.manual_seed(0)
    folder = resolve(options.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in write_texts()]
    training, held_out = rows[:-BATCH], rows[-BATCH:]

    model = PhiForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=options.targets.split(","))
    model = get_peft_model(model, config)
    trained, total = model.get_nb_trainable_parameters()
    print(f"{trained:,} of {total:,} weights are trained")

    begin, before = time.perf_counter(), measure(model, held_out)
    train(model, training, options.steps)
    after = measure(model, held_out)
    print(f"loss of texts not trained on: {before:.3f}, after {options.steps} steps {after:.3f}")
    print(f"{time.perf_counter() - begin:.0f} s")

    model.merge_and_unload().save_pretrained(options.out, layout="B")
    tokenizer.save_pretrained(options.out)
    merged = PhiForCausalLM.from_pretrained(options.out)
    print(f"saved as {options.out}; opened from there, its loss is {measure(merged, held_out):.3f}")


def write_texts() -> list[str]:
    """Each number in each frame of words, in a fixed order without order."""
    texts = [
        f"Instruct: {question.format(number)}\nOutput: It is {word}.\n"
        for question in QUESTIONS
        for number, word in enumerate(WORDS)
    ]
    random.Random(0).shuffle(texts)
    return texts


def train(model: PhiForCausalLM, rows: list[list[int]], steps: int) -> None:
    chosen, order = [x for x in model.parameters() if x.requires_grad], random.Random(1)
    optimizer = torch.optim.AdamW(chosen, lr=LEARNING_RATE)
    model.train()
    for _ in range(steps):
        loss = model(**pad(order.sample(rows, BATCH))).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def measure(model: PhiForCausalLM, rows: list[list[int]]) -> float:
    return float(model.eval()(**pad(rows)).loss)


def pad(rows: list[list[int]]) -> dict[str, Tensor]:
    """A batch (rows, width); padding is masked, and its labels count nowhere."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": ids.masked_fill(mask == 0, -100),
    }


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a LoRA, merge it, and save the model.")
    parser.add_argument("out", help="a new folder for the merged model")
    parser.add_argument("--model", default="nano", help="a name, a folder or a hub id")
    parser.add_argument("--targets", default="Wqkv,out_proj,fc1,fc2", help="what is adapted")
    parser.add_argument("--steps", type=int, default=60)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
