"""Time our transformers classes beside transformers' own, on the same weights in one process.

Both classes hold the very same tensors, so that a full-size fp32 model fits once. Measured are a
padded batch with a real length mix, the same with all hidden states, and greedy generation from
one prompt; each with the memory it takes beyond what was held before. (The script is not called
transformers.py, for that would hide the package from every script beside it.)

    python benchmarks/hf.py CHECKPOINT [--dtypes bfloat16 float32] [--repeats 3] [--threads N]
"""

import argparse
import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers
from measure import interleave, median, write_result
from torch import Tensor

import phiscope.hf

LENGTHS = (20, 27, 35, 46, 60, 79, 110, 190)  # of a lognormal mix: median 53, sigma 0.75
PROMPT = 32
NEW_TOKENS = 24
Task = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="hf")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    figures = {}
    for name in options.dtypes:
        models = load_both(options.checkpoint, getattr(torch, name), options.device)
        figures[name] = measure(models, options.repeats)
        print(name, figures[name], flush=True)
        del models
        gc.collect()
    write_result(
        options.name,
        {
            "transformers": transformers.__version__,
            "lengths": LENGTHS,
            "prompt_tokens": PROMPT,
            "new_tokens": NEW_TOKENS,
            "dtypes": figures,
        },
    )


@dataclass(frozen=True)
class Models:
    """Two classes over the same tensors."""

    ours: phiscope.hf.PhiForCausalLM
    theirs: transformers.PhiForCausalLM


def load_both(folder: Path, dtype: torch.dtype, device: str) -> Models:
    theirs = transformers.PhiForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    config = phiscope.hf.PhiConfig.from_pretrained(folder)
    config._attn_implementation = theirs.config._attn_implementation
    with torch.device("meta"):
        ours = phiscope.hf.PhiForCausalLM(config)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    return Models(ours.eval(), theirs)


def measure(models: Models, repeats: int) -> dict:
    batch = make_batch(models.ours.device)
    prompt = batch["input_ids"][-1:, :PROMPT]
    makers = {
        "forward": lambda model: partial(model, **batch, use_cache=False),
        "hidden_states": lambda model: partial(
            model, **batch, use_cache=False, output_hidden_states=True
        ),
        "first_token": lambda model: partial(generate, model, prompt, 1),
        "generate": lambda model: partial(generate, model, prompt, NEW_TOKENS),
    }
    figures: dict = {"equality": compare(models, batch, prompt)}
    for name, make in makers.items():
        tasks = {"theirs": make(models.theirs), "ours": make(models.ours)}
        seconds = interleave(tasks, repeats=repeats)
        figures[name] = summarise(seconds, tasks)
        print(name, figures[name], flush=True)
    return figures | {"decode": count_decode(figures)}


def make_batch(device: torch.device) -> dict[str, Tensor]:
    """Rows of these lengths, padded on the right."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 50257, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return {"input_ids": ids.to(device), "attention_mask": mask.long().to(device)}


def generate(model, prompt: Tensor, count: int) -> Tensor:
    return model.generate(
        prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
    )


def compare(models: Models, batch: dict[str, Tensor], prompt: Tensor) -> dict:
    """How far the logits of real tokens differ, and how many new tokens are the same."""
    real = batch["attention_mask"].bool()
    ours, theirs = (m(**batch, use_cache=False).logits[real].float() for m in vars(models).values())
    texts = [generate(m, prompt, NEW_TOKENS)[0, PROMPT:] for m in vars(models).values()]
    return {
        "relative_difference_of_logits": float((ours - theirs).norm() / theirs.norm()),
        "same_new_tokens": int((texts[0] == texts[1]).cumprod(0).sum()),
    }


def summarise(seconds: dict[str, list[float]], tasks: dict[str, Task]) -> dict:
    medians = {name: median(times) for name, times in seconds.items()}
    return {
        "seconds": {name: [round(x, 3) for x in times] for name, times in seconds.items()},
        "times_faster": round(medians["theirs"] / medians["ours"], 2),
        "memory_gb": {name: round(measure_memory(task) / 1e9, 3) for name, task in tasks.items()},
    }


def count_decode(figures: dict) -> dict:
    """Seconds of one token after the first."""
    each = {
        name: (
            median(figures["generate"]["seconds"][name])
            - median(figures["first_token"]["seconds"][name])
        )
        / (NEW_TOKENS - 1)
        for name in ("theirs", "ours")
    }
    rounded = {name: round(x, 4) for name, x in each.items()}
    return rounded | {"times_faster": round(each["theirs"] / each["ours"], 2)}


def measure_memory(task: Task) -> int:
    """Bytes held at most while a task runs, beyond those held before it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        task()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")
    before = read_status("VmRSS")
    task()
    return read_status("VmHWM") - before


def read_status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
