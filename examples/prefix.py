"""Teach a language model that never changes to name what is in pictures.

Pictures of 16 x 16 pixels show a circle, square, triangle or cross in one of four colours. There is
no vision model: a picture's pixels, end to end, are its features, and a projector of two layers
turns them into four embeddings in front of the caption. The projector alone is trained, through the
frozen model, on pictures that are drawn as it goes; new ones are then named by greedy generation.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import phiscope
from phiscope.heads.prefix import interleave, text_loss
from phiscope.heads.projector import Projector, save_projector

SIDE = 16
NUM_TOKENS = 4
"""Embeddings that a picture becomes."""
BATCH = 32
LEARNING_RATE = 3e-3
Plane = NDArray[np.float64]
COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "yellow": (1, 1, 0)}
SHAPES: dict[str, Callable[[Plane, Plane, float], NDArray[np.bool_]]] = {
    "circle": lambda x, y, r: x**2 + y**2 <= r**2,
    "square": lambda x, y, r: np.maximum(abs(x), abs(y)) <= 0.9 * r,
    "triangle": lambda x, y, r: (2 * abs(x) - r <= y) & (y <= 0.9 * r),
    "cross": lambda x, y, r: (
        (np.minimum(abs(x), abs(y)) <= 0.3 * r) & (np.maximum(abs(x), abs(y)) <= r)
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(arguments)
    torch.manual_seed(options.seed)
    phi = phiscope.load(options.model, mode="fp32-cpu", num_threads=options.threads)
    phi.model.requires_grad_(False)
    projector = Projector(
        3 * SIDE**2, phi.config.hidden_size, num_tokens=NUM_TOKENS, width=options.width
    )
    num_weights = sum(weights.numel() for weights in projector.parameters())
    print(f"a projector of {num_weights:,} weights for {options.model}, which stays as it is")
    begin = time.perf_counter()
    for step, loss in enumerate(train(phi, projector, options.steps, options.seed), start=1):
        if step == 1 or step % 50 == 0 or step == options.steps:
            print(
                f"step {step:4}  loss {loss:.3f}  {time.perf_counter() - begin:.0f} s", flush=True
            )
    judge(phi, projector, np.random.default_rng((options.seed, 1)), options.held_out)
    if options.out is not None:
        save_projector(options.out, projector, phi.model, model_name=options.model)
        print(f"saved as {options.out}")


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Teach a frozen model to name pictures.")
    parser.add_argument("--model", default="tiny", help="a name, a folder or a hub id")
    parser.add_argument("--steps", type=int, default=300, help=f"each of {BATCH} new pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=512, help="of the projector's middle layer")
    parser.add_argument("--held-out", type=int, default=200, help="pictures to be named at the end")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a file for the projector")
    return parser.parse_args(arguments)


def train(phi: phiscope.Phi, projector: Projector, steps: int, seed: int) -> Iterator[float]:
    """Train the projector, giving the loss of one step after the other."""
    rng = np.random.default_rng((seed, 0))
    end = phi.tokenizer.eos_token
    optimizer = torch.optim.AdamW(projector.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    for _ in range(steps):
        features, captions = draw_batch(rng, BATCH)
        prompts = [
            interleave(phi.model, [prefix, caption + end], tokenizer=phi.tokenizer)
            for prefix, caption in zip(projector(features), captions, strict=True)
        ]
        loss = text_loss(phi.model, prompts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        yield loss.item()


def judge(
    phi: phiscope.Phi, projector: Projector, rng: np.random.Generator, num_pictures: int
) -> None:
    """Print how many new pictures are named rightly, and what some are called."""
    features, captions = draw_batch(rng, num_pictures)
    named = name_pictures(phi, projector, features)
    print(f"\n{'called':24} what it is")
    for name, caption in list(zip(named, captions, strict=True))[:10]:
        print(f"{name!r:24} {caption!r}")
    rights = [name == caption for name, caption in zip(named, captions, strict=True)]
    print(f"accuracy {np.mean(rights):.3f}: {sum(rights)} of {len(rights)} new pictures")


def name_pictures(phi: phiscope.Phi, projector: Projector, features: Tensor) -> list[str]:
    """What the model says of pictures (n, 1, pixels), word for word."""
    with torch.no_grad():
        prefixes = list(projector(features))  # n of (NUM_TOKENS, hidden)
    return [completion.text for completion in phi.generate(prefixes, max_new_tokens=12)]


def draw_batch(rng: np.random.Generator, num_pictures: int) -> tuple[Tensor, list[str]]:
    """Features (n, 1, pixels) of new pictures, and their captions."""
    pictures, captions = zip(*(draw(rng) for _ in range(num_pictures)), strict=True)
    return torch.from_numpy(np.stack(pictures)).flatten(1)[:, None], list(captions)


def draw(rng: np.random.Generator) -> tuple[NDArray[np.float32], str]:
    """A picture (SIDE, SIDE, 3) with a shape at some place, in some size, and its caption."""
    colour, shape = rng.choice(list(COLOURS)), rng.choice(list(SHAPES))
    radius = rng.uniform(4.5, 6.5)
    x0, y0 = rng.uniform(radius, SIDE - 1 - radius, size=2)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    inside = SHAPES[shape](x - x0, y - y0, radius)
    light = rng.uniform(0.7, 1.0)
    picture = inside[..., None] * light * np.array(COLOURS[colour])
    picture += rng.normal(0, 0.05, picture.shape)
    return picture.astype(np.float32), f"a {colour} {shape}"


def _rate(step: int, steps: int) -> float:
    """A line up over the first tenth, and one down to nothing."""
    rise = max(1, steps // 10)
    return min((step + 1) / rise, (steps - step) / max(1, steps - rise))


if __name__ == "__main__":
    main()
