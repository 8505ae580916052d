"""Teach a model to tell kinds of text apart: a new head on its last token, and all its weights.

    python examples/classification.py

trains `PhiForSequenceClassification` on the embedded model `nano`: is a line Python, a command of
the shell, or prose? The lines are put together as it goes, and those it is tested on have names
that it never saw in training.
"""

import argparse
import random
import time
from collections.abc import Sequence

import torch
from torch import Tensor

import phiscope
from phiscope.checkpoint.hub import resolve
from phiscope.hf import PhiForSequenceClassification

FORMS = {  # of each kind of text
    "python": ("{a} = read({b})", "for {a} in {b}:", "def {a}({b}):", "return {a} + {b}"),
    "shell": ("cp {a} {b}", "cat {a} | grep {b}", "cd {a} && ls {b}", "mv -f {a} /tmp/{b}"),
    "prose": ("The {a} is near the {b}.", "Where did {a} see {b}?", "My {a} has no {b}.", "{a}!"),
}
NAMES = ("data", "box", "house", "value", "names", "tree", "file", "river", "key", "table")
UNSEEN = ("count", "bird", "lines", "garden")
BATCH = 24
LEARNING_RATE = 1e-3
Example = tuple[str, int]
"""A text and the number of its kind."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(arguments)
    torch.manual_seed(0)
    folder = resolve(options.model)
    tokenizer = phiscope.load_tokenizer(folder)
    model = PhiForSequenceClassification.from_pretrained(
        folder,
        dtype=torch.float32,
        id2label=dict(enumerate(FORMS)),
        label2id={kind: number for number, kind in enumerate(FORMS)},
    )
    test, begin = write_examples(random.Random(0), UNSEEN, 96), time.perf_counter()
    print(f"accuracy before training: {judge(model, tokenizer, test):.0%}")
    train(model, tokenizer, options.steps)
    accuracy = judge(model, tokenizer, test)
    seconds = time.perf_counter() - begin
    print(f"accuracy after {options.steps} steps: {accuracy:.0%}, {seconds:.0f} s")
    if options.out is not None:
        model.save_pretrained(options.out)
        print(f"saved as {options.out}")


def write_examples(order: random.Random, names: Sequence[str], num_examples: int) -> list[Example]:
    kinds = [index % len(FORMS) for index in range(num_examples)]
    forms = [order.choice(list(FORMS.values())[kind]) for kind in kinds]
    texts = [form.format(a=order.choice(names), b=order.choice(names)) for form in forms]
    return list(zip(texts, kinds, strict=True))


def train(model: PhiForSequenceClassification, tokenizer: phiscope.Tokenizer, steps: int) -> None:
    order = random.Random(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    model.train()
    for _ in range(steps):
        examples = write_examples(order, NAMES, BATCH)
        labels = torch.tensor([kind for _, kind in examples])
        loss = model(**make_batch(tokenizer, examples), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def judge(
    model: PhiForSequenceClassification, tokenizer: phiscope.Tokenizer, examples: list[Example]
) -> float:
    """The share of texts whose kind is found."""
    scores = model.eval()(**make_batch(tokenizer, examples)).logits  # (texts, kinds)
    kinds = torch.tensor([kind for _, kind in examples])
    return float((scores.argmax(dim=1) == kinds).float().mean())


def make_batch(tokenizer: phiscope.Tokenizer, examples: list[Example]) -> dict[str, Tensor]:
    """A batch (texts, width); the mask says where each text ends, whose last token is scored."""
    rows = [tokenizer.encode(text) for text, _ in examples]
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    }


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a classifier of lines of text.")
    parser.add_argument("--model", default="nano", help="a name, a folder or a hub id")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", help="a new folder for the classifier")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
