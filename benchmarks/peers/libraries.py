"""The peers: each library run as its users run it, all of them over the weights of one model.

A library that changes a model's modules gets a shell of its own: the same class and the same
parameters, which are in memory once.
"""

from collections.abc import Callable
from pathlib import Path

from outcome import Setting
from padded import ORDERS, Batch, States, make_settings
from sentences import make_sentences
from source import Source
from torch import Tensor, nn

LAYER = ("layer_pooled", "layer_tokens")
ALL = ("layer_pooled", "all_pooled", "layer_tokens")


def make_transformers(source: Source) -> list[Setting]:
    body = source.model.model

    def compute(batch: Batch) -> States:
        output = body(
            batch.ids, attention_mask=batch.mask, output_hidden_states=True, use_cache=False
        )
        return dict(enumerate(output.hidden_states))

    what = "output_hidden_states of the body, without the head; one forward serves all kinds"
    return make_settings(
        "transformers",
        compute,
        source,
        kinds=ALL,
        orders=list(ORDERS),
        takes_short=True,
        what=what,
    )


class Stopped(Exception):  # noqa: N818, nothing is wrong
    """Ends a forward."""


def make_hooks(source: Source) -> list[Setting]:
    body = source.model.model

    def compute(batch: Batch) -> States:
        kept: dict[int, Tensor] = {}

        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            kept[source.state] = output
            raise Stopped

        handle = body.layers[source.layer].register_forward_hook(keep)
        try:
            body(batch.ids, attention_mask=batch.mask, use_cache=False)
        except Stopped:
            return kept
        finally:
            handle.remove()
        raise AssertionError("the hook was not called")

    what = "transformers with a forward hook that keeps the layer's output and ends the forward"
    return make_settings("hooks", compute, source, kinds=LAYER, takes_short=True, what=what)


def make_wide(source: Source) -> list[Setting]:
    needed = 4.5 * sum(x.numel() for x in source.make_body().parameters())
    if needed > available_memory():
        raise MemoryError(f"fp32 weights need {needed / 1e9:.1f} GB")
    body = source.make_body().float()

    def compute(batch: Batch) -> States:
        output = body(batch.ids, attention_mask=batch.mask, use_cache=False)
        return {source.state: output.last_hidden_state}

    what = "transformers cut behind the layer, its weights widened to fp32 when it was loaded"
    return make_settings("transformers-fp32", compute, source, kinds=LAYER, what=what)


def make_lens(source: Source) -> list[Setting]:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        str(source.folder),
        hf_model=source.make_shell(),
        tokenizer=source.tokenizer,
        dtype=source.model.dtype,
        device=str(source.device),
    )

    def compute(batch: Batch) -> States:
        mask = {} if batch.mask is None else {"attention_mask": batch.mask}
        return {source.state: bridge(batch.ids, stop_at_layer=source.state, **mask)}

    what = "TransformerBridge with stop_at_layer, which needs eager attention"
    return make_settings("TransformerLens", compute, source, kinds=LAYER, what=what)


def make_interp(source: Source) -> list[Setting]:
    import interp_engine

    model = interp_engine.EagerModel(
        str(source.folder), hf_model=source.make_shell(), tokenizer=source.tokenizer
    )
    points = [
        "embeddings",
        *(f"resid_post.{i}" for i in range(source.num_layers - 1)),
        "final_norm",
    ]

    def compute(batch: Batch) -> States:
        cache = interp_engine.capture(model, batch.ids, points, attention_mask=batch.mask)
        return {number: cache[point] for number, point in enumerate(points)}

    what = "capture of all states by the eager backend, which runs the whole model and its head"
    return make_settings("interp-engine", compute, source, kinds=ALL, what=what)


def make_nnsight(source: Source) -> list[Setting]:
    import nnsight

    model = nnsight.NNsight(source.make_shell().model)
    layer = source.layer

    def compute(batch: Batch) -> States:
        with model.trace(batch.ids, attention_mask=batch.mask, use_cache=False) as tracer:
            output = model.layers[layer].output.save()
            tracer.stop()
        return {source.state: output}

    what = "a trace that saves the layer's output and stops"
    return make_settings("nnsight", compute, source, kinds=LAYER, what=what)


def available_memory() -> int:
    text = Path("/proc/meminfo").read_text()
    return int(text.split("MemAvailable:")[1].split()[0]) * 1024


LIBRARIES: dict[str, Callable[[Source], list[Setting]]] = {
    "transformers": make_transformers,
    "hooks": make_hooks,
    "sentence-transformers": make_sentences,
    "TransformerLens": make_lens,
    "interp-engine": make_interp,
    "nnsight": make_nnsight,
    "transformers-fp32": make_wide,
}
"""Last comes what needs memory of its own."""
