"""Decoding, prefill and extraction on a GPU beside what the GPU allows, and beside transformers.

Decoding is compared with the time in which its bytes can be copied, prefill with the matrix
products alone, extraction with prefill; transformers decodes in the same run with a static cache
and a compiled step, on random weights of the same shapes.

    python benchmarks/gpu_speed.py CHECKPOINT --part decode|prefill|peer
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from gpu_parts import (
    Report,
    find_replay,
    measure_copy_bandwidth,
    measure_peak,
    open_model,
    read_arguments,
    rounded,
    time_task,
)
from measure import median

from phiscope.activations.capture import make_step_plan, plan_capture
from phiscope.activations.edits import Add
from phiscope.activations.inspection import make_inspection
from phiscope.activations.keeping import Keep
from phiscope.activations.points import Point, resolve_points
from phiscope.cache import KVCache
from phiscope.config import read_config
from phiscope.evaluation.speed import measure_speed
from phiscope.generation.engine import Engine
from phiscope.generation.options import GenerationOptions
from phiscope.model import PhiForCausalLM
from phiscope.packing import Packed, pack_lengths
from phiscope.quantized import FORMATS
from phiscope.weight_only import WeightOnlyLinear, multiply_by_triton

DECODED = ("fp16-flash", "bf16-flash", "fp16", "int8", "int4", "fp32")
PREFILLED = ("fp16-flash", "bf16-flash", "fp16", "fp16-flex", "int8", "fp32")
ALL = "embeddings, resid_post.[:], final_norm"
BATCH = 8
SHAPES = {"qkv": (2560, 7680), "dense": (2560, 2560), "fc1": (2560, 10240), "fc2": (10240, 2560)}


def main() -> None:
    part = sys.argv.pop(sys.argv.index("--part") + 1)
    sys.argv.remove("--part")
    modes, run = PARTS[part]
    options = read_arguments(__doc__.splitlines()[0], modes, f"{part}_gpu")
    torch.set_grad_enabled(False)
    is_small = options.device == "cpu"
    report = Report(options.name)
    bandwidth = measure_copy_bandwidth(options.device, 2**20 if is_small else 2**31)
    peak = measure_peak(options.device, torch.bfloat16, 128 if is_small else 8192)
    report.add("limits", lambda: rounded({"copy_bytes_per_s": bandwidth, "bf16_flops": peak}))
    run(options, report, bandwidth, peak)


def run_decode(options: argparse.Namespace, report: Report, bandwidth: float, peak: float) -> None:
    for name in (*FORMATS, "floats"):
        report.add(f"products {name}", partial(time_products, name, options))
    for name in options.modes:
        report.add(name, partial(time_decode, options, name, bandwidth))
    report.add("access", partial(time_access, options, options.modes[0]))


def time_products(name: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Bytes of weights per second, of our kernels and of torch's fp16 product."""
    return {
        f"{shape}, {rows} rows": time_product(name, *sizes, rows, options)
        for shape, sizes in SHAPES.items()
        for rows in (1, 8)
    }


def time_product(
    name: str, width: int, outs: int, rows: int, options: argparse.Namespace
) -> dict[str, float]:
    from phiscope.kernels.triton_linear import multiply

    like: dict[str, Any] = {"device": options.device, "dtype": torch.float16}
    linears = [torch.nn.Linear(width, outs, **like) for _ in range(4)]  # beyond the L2 cache
    x = torch.randn(rows, width, **like)
    if name == "floats":
        weights = [linear.weight for linear in linears]
        ways = {"ours": lambda i: multiply(x, weights[i], None, linears[i].bias)}
        ways["torch"] = lambda i: F.linear(x, weights[i], linears[i].bias)
        num_bytes = 2 * width * outs
    else:
        layers = [WeightOnlyLinear(FORMATS[name].of(linear)) for linear in linears]
        ways = {"ours": lambda i: multiply_by_triton(layers[i], x)}
        num_bytes = sum(b.nbytes for b in layers[0].buffers())
    return rounded({way: num_bytes / time_many(call) for way, call in ways.items()})


def time_many(call: Callable[[int], object], turns: int = 40) -> float:
    """Seconds of a call, recorded many times over where there is a GPU: no launch is waited for."""

    def work() -> None:
        for turn in range(turns):
            call(turn % 4)

    if not torch.cuda.is_available():
        return median(time_task(work, 3)) / turns
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return median(time_task(graph.replay, 10)) / turns


def time_decode(options: argparse.Namespace, name: str, bandwidth: float) -> dict[str, Any]:
    """Tokens/s by recorded steps and, for one sequence, by plain ones."""
    with open_model(options, name) as (model, mode):
        given: dict[str, Any] = {
            "prompt_tokens": min(512, options.length // 2),
            "new_tokens": options.new_tokens,
            "batch": BATCH,
            "repeats": options.repeats,
        }
        measure_speed(model, replay=find_replay(model, mode), **{**given, "repeats": 1})
        speed = measure_speed(model, replay=find_replay(model, mode), **given)
        plain = measure_speed(model, **{**given, "repeats": 1, "batch": 1, "new_tokens": 32})
        num_bytes = speed.bytes_per_token
        return rounded(
            {
                "batch_1_tokens_per_s": speed.decode,
                "batch_1_share_of_limit": speed.decode * num_bytes / bandwidth,
                "batch_8_tokens_per_s": speed.batch_decode,
                "batch_8_share_of_limit": speed.batch_decode / BATCH * num_bytes / bandwidth,
                "prompt_tokens_per_s": speed.prefill,
                "bytes_per_token": num_bytes,
                "plain_batch_1_tokens_per_s": plain.decode,
            }
        )


def time_access(options: argparse.Namespace, name: str) -> dict[str, float]:
    """Seconds of recorded steps with capture and with steering, over bare ones, batch 1."""
    with open_model(options, name) as (model, mode):
        engine = Engine(
            model,
            num_slots=1,
            make_plan=make_step_plan,
            replay=find_replay(model, mode),
            reuses_prefixes=False,
        )
        vector = torch.randn(model.config.hidden_size)
        middle = Point("resid_post", model.config.num_hidden_layers // 2)
        ways: dict[str, tuple[Any, list[Any]]] = {
            "bare": ((), []),
            "one point": (str(middle), []),
            "all hidden states": (ALL, []),
            "steered": ((), [Add(middle, vector)]),
        }
        tasks = {way: partial(decode, engine, *asked, options) for way, asked in ways.items()}
        for task in tasks.values():
            task()
        turns = [{way: time_task(t, 1)[0] for way, t in tasks.items()} for _ in range(5)]
        over = {way: median([turn[way] / turn["bare"] for turn in turns]) for way in ways}
        return rounded({**over, "bare_seconds": median([turn["bare"] for turn in turns])})


def decode(engine: Engine, points: Any, edits: list[Any], options: argparse.Namespace) -> None:
    prompt = [1, 2, 3, 4]
    inspect = None
    if points or edits:
        config = engine.limits.config
        inspect = make_inspection(config, points, edits, prompt_length=len(prompt))
    given = GenerationOptions(max_new_tokens=options.new_tokens, ignore_eos=True)
    engine.submit(prompt, given, inspect=inspect).result()


def run_prefill(options: argparse.Namespace, report: Report, bandwidth: float, peak: float) -> None:
    for name in options.modes:
        report.add(name, partial(time_prefill, options, name, peak))


def time_prefill(options: argparse.Namespace, name: str, peak: float) -> dict[str, float]:
    """Eight prompts to their last logits, with and without a cache, and three extractions."""
    with open_model(options, name) as (model, _):
        length = min(options.length, model.config.max_position_embeddings)
        packed = pack_lengths([length] * BATCH, device=options.device)
        ids = torch.randint(model.config.vocab_size, (packed.num_tokens,), device=options.device)
        tasks = {
            "prefill": partial(prefill, model, ids, packed),
            "prefill_with_cache": fill_cache(model, ids, length),
            "one_point": partial(extract, model, ids, packed, "resid_post.-1", ("mean",)),
            "all_pooled": partial(extract, model, ids, packed, ALL, ("mean",)),
            "one_point_tokens": partial(extract, model, ids, packed, "resid_post.-1", ()),
        }
        times = {task: median(time_task(run, options.repeats)) for task, run in tasks.items()}
        flops = count_flops(model, length) * BATCH
        return rounded(
            {
                **{f"{task}_seconds": seconds for task, seconds in times.items()},
                "prefill_tokens_per_s": packed.num_tokens / times["prefill"],
                "prefill_share_of_bf16_peak": flops / times["prefill"] / peak,
                "extraction_over_prefill": times["all_pooled"] / times["prefill"],
            }
        )


@torch.inference_mode()
def prefill(model: PhiForCausalLM, ids: torch.Tensor, packed: Packed) -> None:
    model(ids, packed, rows=packed.last_rows)


def fill_cache(model: PhiForCausalLM, ids: torch.Tensor, length: int) -> Callable[[], None]:
    cache = KVCache(
        model.config,
        num_slots=BATCH,
        num_places=length,
        dtype=model.model.hidden_dtype,
        device=ids.device,
    )
    packed = pack_lengths([length] * BATCH, slots=range(BATCH), device=ids.device)

    @torch.inference_mode()
    def run() -> None:
        model(ids, packed, cache=cache, rows=packed.last_rows)

    return run


@torch.inference_mode()
def extract(
    model: PhiForCausalLM, ids: torch.Tensor, packed: Packed, spec: str, reducers: tuple[str, ...]
) -> None:
    """As extraction does: states end in the CPU's memory."""
    points = resolve_points(spec, model.config.num_hidden_layers)
    plan = plan_capture(packed, points, keep=Keep(reducers=reducers))
    model.model(ids, packed, plan=plan)
    if reducers:
        plan.pooled()
    else:
        plan.flat()


def count_flops(model: PhiForCausalLM, length: int) -> float:
    """Of the blocks' products and causal attention for one sequence; the head runs once."""
    config = model.config
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    inner = config.num_attention_heads * config.head_dim
    block = config.hidden_size * (heads * config.head_dim + inner + 2 * config.intermediate_size)
    attention = 2 * inner * length  # scores and values, each over half of the pairs
    head = 2 * config.hidden_size * config.vocab_size
    return 2 * config.num_hidden_layers * length * (block + attention / 2) + head


def run_peer(options: argparse.Namespace, report: Report, bandwidth: float, peak: float) -> None:
    for batch in (1, BATCH):
        for compiled in (True, False):
            words = f"transformers static cache, {'compiled' if compiled else 'plain'}, {batch}"
            report.add(words, partial(time_transformers, options, batch, compiled))
    for name in options.modes:
        report.add(name, partial(time_decode, options, name, bandwidth))


def time_transformers(options: argparse.Namespace, batch: int, compiled: bool) -> dict[str, float]:
    """Tokens/s of `generate` in fp16 after its first token, all sequences together."""
    import transformers

    raw = read_config(options.checkpoint).to_dict()
    config = transformers.PhiConfig(**raw, attn_implementation="sdpa")
    with torch.device(options.device):
        model = transformers.PhiForCausalLM(config).half().eval()
    ids = torch.randint(config.vocab_size, (batch, 64), device=options.device)
    given: dict[str, Any] = {
        "attention_mask": torch.ones_like(ids),
        "cache_implementation": "static",
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
        "disable_compile": not compiled,
    }

    def generate(count: int) -> None:
        total = 1 + options.new_tokens  # one size of cache, so that one step is compiled
        model.generate(ids, **given, max_new_tokens=count if count == 1 else total)

    seconds = [median(time_task(partial(generate, n), 3)) for n in (1, 2)]
    if torch._dynamo.utils.counters["frames"]["ok"] == 0 and compiled:
        raise RuntimeError("transformers compiled nothing")
    return rounded({"tokens_per_s": batch * options.new_tokens / (seconds[1] - seconds[0])})


PARTS = {
    "decode": (DECODED, run_decode),
    "prefill": (PREFILLED, run_prefill),
    "peer": (("fp16-flash",), run_peer),
}


if __name__ == "__main__":
    main()
