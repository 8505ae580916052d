"""Time our transformers classes beside transformers' own, on the same weights in one process.

Both classes hold the very same tensors, so that a full-size fp32 model fits once; with `--prepack`
a copy of ours with prepacked weights runs, too. Measured are a padded batch with a real length mix,
the same with all hidden states, and greedy generation from one prompt; each with the memory it
takes beyond what was held before. (The script is not called transformers.py, for that would hide
the package from every script beside it.)

    python benchmarks/hf.py CHECKPOINT --dtypes bfloat16 --prepack [--repeats 3] [--threads N]
"""

import argparse
import gc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import transformers
from measure import interleave, median, peak_memory_of, write_result
from torch import Tensor

import phiscope.hf

LENGTHS = (20, 27, 35, 46, 60, 79, 110, 190)  # of a lognormal mix: median 53, sigma 0.75
PROMPT = 32
NEW_TOKENS = 24
Task = Callable[[], object]
Models = dict[str, transformers.PreTrainedModel]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prepack", action="store_true", help="takes the weights a second time")
    parser.add_argument("--name", default="hf")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    figures = {}
    for name in options.dtypes:
        dtype = getattr(torch, name)
        models = load_all(options.checkpoint, dtype, options.device, options.prepack)
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


def load_all(folder: Path, dtype: torch.dtype, device: str, prepack: bool) -> Models:
    """The classes by name, over the same tensors."""
    theirs = transformers.PhiForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
    models: Models = {"theirs": theirs, "ours": share(theirs, folder)}
    if prepack:
        models["ours_prepacked"] = share(theirs, folder).prepack()
    return models


def share(theirs: transformers.PhiForCausalLM, folder: Path) -> phiscope.hf.PhiForCausalLM:
    config = phiscope.hf.PhiConfig.from_pretrained(folder)
    config._attn_implementation = theirs.config._attn_implementation
    with torch.device("meta"):
        ours = phiscope.hf.PhiForCausalLM(config)
    ours.load_state_dict(theirs.state_dict(), assign=True)
    return ours.eval()


def measure(models: Models, repeats: int) -> dict:
    batch = make_batch(models["ours"])
    prompt = batch["input_ids"][-1:, :PROMPT]
    makers = {
        "first_token": lambda model: partial(generate, model, prompt, 1),
        "generate": lambda model: partial(generate, model, prompt, NEW_TOKENS),
        "forward": lambda model: partial(model, **batch, use_cache=False),
        "hidden_states": lambda model: partial(
            model, **batch, use_cache=False, output_hidden_states=True
        ),
    }
    figures: dict = {"equality": compare(models, batch, prompt)}
    print(figures, flush=True)
    for name, make in makers.items():
        tasks = {key: make(model) for key, model in models.items()}
        figures[name] = summarise(interleave(tasks, repeats=repeats), tasks)
        print(name, figures[name], flush=True)
    return figures | {"decode": count_decode(figures)}


def make_batch(model: transformers.PreTrainedModel) -> dict[str, Tensor]:
    """Rows of these lengths, padded on the right."""
    generator = torch.Generator().manual_seed(0)
    shape = (len(LENGTHS), max(LENGTHS))
    ids = torch.randint(0, model.config.vocab_size, shape, generator=generator)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return {
        "input_ids": ids.to(model.device),
        "attention_mask": mask.long().to(model.device),
    }


def generate(model, prompt: Tensor, count: int) -> Tensor:
    return model.generate(
        prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0
    )


def compare(models: Models, batch: dict[str, Tensor], prompt: Tensor) -> dict:
    """How far the logits of real tokens differ from theirs, and how many new tokens are theirs."""
    real = batch["attention_mask"].bool()
    logits = {
        name: model(**batch, use_cache=False).logits[real].float() for name, model in models.items()
    }
    texts = {name: generate(model, prompt, NEW_TOKENS)[0] for name, model in models.items()}
    size = logits["theirs"].norm()
    return {
        name: {
            "relative_difference_of_logits": float((logits[name] - logits["theirs"]).norm() / size),
            "same_new_tokens": int((texts[name] == texts["theirs"])[PROMPT:].cumprod(0).sum()),
        }
        for name in models
        if name != "theirs"
    }


def summarise(seconds: dict[str, list[float]], tasks: dict[str, Task]) -> dict:
    memory = {name: round(peak_memory_of(task) / 1e9, 3) for name, task in tasks.items()}
    rounded = {name: [round(x, 4) for x in times] for name, times in seconds.items()}
    medians = {name: median(times) for name, times in seconds.items()}
    return {"seconds": rounded, "times_faster": compare_with_theirs(medians), "memory_gb": memory}


def count_decode(figures: dict) -> dict:
    """Seconds of one token after the first."""
    first, whole = figures["first_token"]["seconds"], figures["generate"]["seconds"]
    each = {name: (median(whole[name]) - median(first[name])) / (NEW_TOKENS - 1) for name in whole}
    rounded = {name: round(x, 4) for name, x in each.items()}
    return {"seconds_per_token": rounded, "times_faster": compare_with_theirs(each)}


def compare_with_theirs(seconds: dict[str, float]) -> dict[str, float]:
    return {
        name: round(seconds["theirs"] / x, 2) for name, x in seconds.items() if name != "theirs"
    }


if __name__ == "__main__":
    main()
