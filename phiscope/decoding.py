"""The engine of a model in its mode: its slots, its plans, and whether its steps are recorded."""

from collections.abc import Sequence
from typing import Any, cast

from phiscope.activations.capture import CapturePlan, make_step_plan
from phiscope.activations.fixed_plan import FixedPlans
from phiscope.cache import KVCache
from phiscope.generation.engine import Engine
from phiscope.generation.fixed_step import Replay
from phiscope.generation.task import Inspect
from phiscope.graphs import CudaGraphs
from phiscope.model import PhiForCausalLM
from phiscope.packing import Packed
from phiscope.runtime import Mode, fit_slots
from phiscope.tokenizer import Tokenizer


def make_engine(model: PhiForCausalLM, tokenizer: Tokenizer | None, mode: Mode) -> Engine:
    """An engine with as many slots of the model's context as there is room for, up to eight."""
    context = model.config.max_position_embeddings
    slot_bytes = KVCache.count_slot_bytes(model.config, context, mode.compute_dtype)
    return Engine(
        model,
        tokenizer,
        num_slots=fit_slots(slot_bytes, mode.device),
        make_plan=_plan_step,
        replay=make_replay(model, mode),
    )


def make_replay(model: PhiForCausalLM, mode: Mode) -> Replay | None:
    """How steps are recorded in a mode; None if they are not."""
    if not mode.uses_graphs:
        return None
    graphs = CudaGraphs(model.model.embed_tokens.weight.device)
    return Replay(record=graphs, plans=cast(Any, FixedPlans()))


def _plan_step(
    packed: Packed, inspections: Sequence[Inspect | None], logit_rows: Sequence[int]
) -> CapturePlan:
    """What the engine calls for each forward; it passes on the inspections made elsewhere."""
    return make_step_plan(packed, cast(Any, inspections), logit_rows=logit_rows)
