"""Whether every CUDA mode computes what float64 does, and recorded steps what plain ones do.

States, logits and maps of a whole checkpoint against the same weights in float64 on the GPU; every
attention backend alone, with |q| about 300 as in Phi-2; every product of few rows; and decoding by
recorded steps, token for token, against the same steps unrecorded and against plain ones.

    python benchmarks/gpu_checks.py CHECKPOINT [--modes fp16-flash int8]
"""

import argparse
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from gpu_parts import GPU_MODES, Report, find_replay, open_model, read_arguments, relative_error
from precision import read_text_ids
from torch import Tensor

from phiscope.activations.capture import make_step_plan, plan_capture
from phiscope.activations.edits import Add
from phiscope.activations.inspection import make_inspection
from phiscope.activations.points import Point, resolve_points
from phiscope.attention import BACKENDS, DECODE_BACKENDS, eager
from phiscope.checkpoint import load_model
from phiscope.generation.engine import Engine
from phiscope.generation.options import GenerationOptions
from phiscope.model import PhiForCausalLM
from phiscope.packing import make_decodes, pack_lengths
from phiscope.quantized import FORMATS
from phiscope.runtime import exact_products
from phiscope.weight_only import WeightOnlyLinear, multiply_by_triton

STATES = "embeddings, resid_post.[:], final_norm, logits"
PROMPTS = (5, 200, 31, 77, 1, 130, 64, 12)
States = dict[str, Tensor]


def main() -> None:
    options = read_arguments("Check every CUDA mode.", GPU_MODES, "check_gpu")
    torch.set_grad_enabled(False)
    report = Report(options.name)
    for name in ("sdpa", "flash", "flex", "eager"):
        report.add(f"attention {name}", partial(check_backend, name, options.device))
    for name in DECODE_BACKENDS:
        report.add(f"decode attention {name}", partial(check_decoding, name, options.device))
    for name in (*FORMATS, "floats"):
        report.add(f"product {name}", partial(check_product, name, options.device))
    with exact_products():
        reference = read_reference(options)
        for name in options.modes:
            report.add(name, partial(check_mode, options, name, reference))


def check_backend(name: str, device: str) -> dict[str, float]:
    """Errors on fp16 numbers, of usual size and with |q| about 300."""
    packed = pack_lengths([200, 1, 333], device=device)
    found = {}
    for size in (1.0, 300.0):
        q, k, v = torch.randn(3, packed.num_tokens, 32, 80, device=device).half()
        q = q * size
        wanted = eager(q.double(), k.double(), v.double(), packed)
        found[f"|q| {size:g}"] = relative_error(BACKENDS[name](q, k, v, packed), wanted)
    return found


def check_decoding(name: str, device: str) -> dict[str, float]:
    """The same for single tokens in cache slots of 2048 places."""
    lengths = [1, 64, 500, 2047]
    slots = torch.tensor([3, 0, 4, 1], device=device)
    packed = make_decodes(slots, torch.tensor(lengths, device=device), 2048)
    definition = pack_lengths([1] * 4, starts=lengths, slots=slots.tolist(), device=device)
    found = {}
    for size in (1.0, 300.0):
        k, v = torch.randn(2, 5, 2048, 32, 80, device=device).half()
        q = torch.randn(4, 32, 80, device=device).half() * size
        wanted = eager(q.double(), k.double(), v.double(), definition)
        found[f"|q| {size:g}"] = relative_error(DECODE_BACKENDS[name](q, k, v, packed), wanted)
    return found


def check_product(name: str, device: str) -> dict[str, float]:
    """Errors of the Triton products on fp16 numbers."""
    from phiscope.kernels.triton_linear import multiply

    linear = torch.nn.Linear(2560, 7680, device=device, dtype=torch.float16)
    layer = None if name == "floats" else WeightOnlyLinear(FORMATS[name].of(linear))
    weight = (linear if layer is None else layer).weight.double()
    found = {}
    for rows in (1, 3, 8):
        x = torch.randn(rows, 2560, device=device).half()
        ours = (
            multiply(x, linear.weight, None, linear.bias)
            if layer is None
            else multiply_by_triton(layer, x)
        )
        wanted = F.linear(x.double(), weight, linear.bias.double())
        found[f"{rows} rows"] = relative_error(ours, wanted)
    return found


def read_reference(options: argparse.Namespace) -> States:
    """In float64, with the definition's attention."""
    model = load_model(options.checkpoint, dtype=torch.float32, device=options.device).double()
    model.set_attention("eager")
    return read_states(model, options)


def read_states(model: PhiForCausalLM, options: argparse.Namespace) -> States:
    """Of one text, with maps of the first, a middle and the last block."""
    ids, layers = read_text_ids(options.tokens).to(options.device), model.config.num_hidden_layers
    maps = [f"attn_probs.{layer}" for layer in sorted({0, layers // 2, layers - 1})]
    points = resolve_points([STATES, *maps], layers)
    packed = pack_lengths([len(ids)], device=options.device)
    plan = plan_capture(packed, points)
    model(ids, packed, plan=plan)
    return plan.rows(0)


def check_mode(options: argparse.Namespace, name: str, reference: States) -> dict[str, Any]:
    with open_model(options, name) as (model, mode):
        found = read_states(model, options)
        errors = {point: relative_error(found[point], x) for point, x in reference.items()}
        hidden = [e for point, e in errors.items() if point.startswith(("resid", "final"))]
        best = [x["logits"].argmax(-1).cpu() for x in (found, reference)]
        return {
            "worst_hidden_state": max(hidden),
            "logits": errors["logits"],
            "maps": {p: e for p, e in errors.items() if p.startswith("attn")},
            "same_top_token": float((best[0] == best[1]).double().mean()),
            "decoding": check_steps(model, mode, options),
        }


def check_steps(model: PhiForCausalLM, mode: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Eight prompts, one of them steered and two of them read, decoded in three ways."""
    recorded = run_engine(model, find_replay(model, mode), options)
    fixed = run_engine(model, find_replay(model, mode, is_recorded=False), options)
    plain = run_engine(model, None, options)
    return {
        "decode_attention": model.model.layers[0].self_attn.decode_backend.__name__,
        "tokens": sum(len(c.token_ids) for c in recorded),
        "recorded_as_unrecorded": count_same(recorded, fixed),
        "recorded_as_plain": count_same(recorded, plain),
        "states_over_plain": compare_states(recorded, plain),
    }


def run_engine(model: PhiForCausalLM, replay: Any, options: argparse.Namespace) -> list[Any]:
    engine = Engine(
        model, num_slots=8, make_plan=make_step_plan, replay=replay, reuses_prefixes=False
    )
    draw, config = torch.Generator().manual_seed(0), model.config
    vector = torch.randn(config.hidden_size, generator=draw)
    requests = []
    for row, length in enumerate(PROMPTS):
        ids = torch.randint(config.vocab_size, (length,), generator=draw).tolist()
        points = "resid_post.0, q_rot.1, final_norm" if row in (1, 4) else ()
        edits = [Add(Point("resid_post", 1), vector)] if row in (2, 4) else []
        inspect = None
        if points or edits:
            inspect = make_inspection(config, points, edits, prompt_length=length)
        given = GenerationOptions(max_new_tokens=8 + 8 * row, ignore_eos=True)
        requests.append(engine.submit(ids, given, inspect=inspect))
    completions = [request.result()[0] for request in requests]
    if replay is not None and not (engine.fixed_steps.is_on and engine.fixed_steps.num_runs > 60):
        raise RuntimeError("the steps were not run from fixed buffers")
    return completions


def count_same(some: list[Any], others: list[Any]) -> int:
    """Tokens before the first difference of each completion."""
    pairs = [zip(a.token_ids, b.token_ids, strict=True) for a, b in zip(some, others, strict=True)]
    same = [[x == y for x, y in pair] for pair in pairs]
    return sum((*row, False).index(False) for row in same)


def compare_states(some: list[Any], others: list[Any]) -> dict[str, float]:
    """The worst relative difference of rows kept, as far as the tokens are the same."""
    worst: dict[str, float] = {}
    for a, b in zip(some, others, strict=True):
        same = count_same([a], [b]) + len(a.labels) - len(a.token_ids)
        for name, rows in a.states.items():
            error = relative_error(rows[:same], b.states[name][:same])
            worst[name] = max(error, worst.get(name, 0.0))
    return worst


if __name__ == "__main__":
    main()
