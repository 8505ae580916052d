"""Measure each mode's error against float64 on a whole checkpoint, and equality with transformers.

The float64 reference runs block by block on a copy of one block at a time, so that a 2.78B model
fits beside it. Errors are relative, of all tokens together: |ours - reference| / |reference|.

    python benchmarks/precision.py CHECKPOINT [--modes fp32-cpu bf16-cpu] [--peer]
"""

import argparse
import copy
import gc
import json
from pathlib import Path

import torch
from measure import peak_memory, write_result
from torch import Tensor

from phiscope.activations.capture import plan_capture
from phiscope.activations.points import resolve_points
from phiscope.checkpoint import load_model
from phiscope.config import read_config
from phiscope.model import Pass, PhiForCausalLM
from phiscope.packing import Packed, pack_lengths
from phiscope.runtime import MODES, describe_machine, find_obstacle

TEXTS = Path(__file__).parents[1] / "tests" / "data" / "golden_encodings.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--modes", nargs="+", default=usable_modes(), choices=list(MODES))
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--peer", action="store_true", help="also run transformers in fp32")
    parser.add_argument("--name", default="precision")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    config = read_config(options.checkpoint)
    ids = read_text_ids(options.tokens)
    model = load_model(options.checkpoint, dtype=torch.float32)
    reference = run_in_float64(model, ids)
    difference = compare_with_peer(model, ids) if options.peer else None
    figures = {}
    del model
    for name in options.modes:
        gc.collect()
        figures[name] = measure_mode(options.checkpoint, name, ids, reference)
        print(name, figures[name], flush=True)
    write_result(
        options.name,
        {
            "parameters": config.num_parameters,
            "stored_dtype": config.dtype,
            "tokens": options.tokens,
            "relative_error_against_float64": figures,
            "fp32_cpu_against_transformers_fp32": difference,
            "peak_memory_gb": round(peak_memory() / 1e9, 2),
        },
    )


def read_text_ids(count: int) -> Tensor:
    """The first ids of the golden texts, in the published tokenizer's numbers."""
    texts = json.loads(TEXTS.read_text())
    ids = [index for text in texts for index in text["ids"]]
    return torch.tensor((ids * (1 + count // len(ids)))[:count])


def usable_modes() -> list[str]:
    machine = describe_machine()
    return [name for name, mode in MODES.items() if find_obstacle(mode, machine) is None]


def run_in_float64(model: PhiForCausalLM, ids: Tensor) -> list[Tensor]:
    """The embeddings, the output of each block, the final norm and the logits, in float64."""
    packed = pack_lengths([len(ids)])
    cos, sin = model.model._rotations(packed.positions)
    run = Pass(packed, cos, sin, None, None)
    states = [model.model.embed_tokens(ids).double()]
    for block in model.model.layers:
        states.append(copy.deepcopy(block).double()(states[-1], run))
    states.append(copy.deepcopy(model.model.final_layernorm).double()(states[-1]))
    states.append(states[-1] @ model.lm_head.weight.double().T + model.lm_head.bias.double())
    return states


def measure_mode(checkpoint: Path, name: str, ids: Tensor, reference: list[Tensor]) -> dict:
    mode = MODES[name]
    model = load_model(checkpoint, dtype=mode.dtype, device=mode.device)
    model.set_attention(mode.attention)
    return summarise(states_of(model, ids, mode.device), reference)


def states_of(model: PhiForCausalLM, ids: Tensor, device: str) -> list[Tensor]:
    packed: Packed = pack_lengths([len(ids)], device=device)
    layers = model.config.num_hidden_layers
    points = resolve_points(["embeddings", "resid_post.[:]", "final_norm", "logits"], layers)
    plan = plan_capture(packed, points)
    model(ids.to(device), packed, plan=plan)
    rows = plan.rows(0)
    return [rows[str(point)] for point in points]


def compare_with_peer(model: PhiForCausalLM, ids: Tensor) -> dict:
    """transformers' class on the same weights, shared so that they are in memory once."""
    import transformers

    raw = transformers.PhiConfig(**model.config.to_dict(), attn_implementation="sdpa")
    with torch.device("meta"):
        peer = transformers.PhiForCausalLM(raw)
    rotary = type(peer.model.rotary_emb)(raw)  # its tables are left empty on "meta"
    peer.model.rotary_emb = rotary
    peer.load_state_dict(shared_weights(model), assign=True)
    output = peer.eval()(ids[None], output_hidden_states=True)
    theirs = [state[0] for state in output.hidden_states] + [output.logits[0]]
    ours = states_of(model, ids, "cpu")
    del ours[-3]  # the last block before the final norm, which transformers does not give
    return summarise(ours, theirs)


def shared_weights(model: PhiForCausalLM) -> dict[str, Tensor]:
    config = model.config
    heads = (config.num_attention_heads, *[config.num_key_value_heads] * 2)
    rows = [count * config.head_dim for count in heads]
    weights = {}
    for name, tensor in model.state_dict().items():
        if "qkv_proj" not in name:
            weights[name] = tensor
            continue
        for part, piece in zip("qkv", tensor.split(rows), strict=True):
            weights[name.replace("qkv_proj", f"{part}_proj")] = piece
    return weights


def summarise(ours: list[Tensor], reference: list[Tensor]) -> dict:
    errors = [
        float((x.cpu().double() - y.double()).norm() / y.double().norm())
        for x, y in zip(ours, reference, strict=True)
    ]
    agree = (ours[-1].cpu().argmax(-1) == reference[-1].argmax(-1)).double().mean()
    return {
        "by_state": [float(f"{error:.3g}") for error in errors[:-1]],
        "worst_hidden_state": max(errors[:-1]),
        "final_norm": errors[-2],
        "logits": errors[-1],
        "same_top_token": float(agree),
    }


if __name__ == "__main__":
    main()
