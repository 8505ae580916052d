"""The peers: each library run as its users run it, all of them over the weights of one model.

A library that changes a model's modules gets a shell of its own: the same class and the same
parameters, which are in memory once.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import transformers
from outcome import Outcome, Setting
from padded import ORDERS, SINGLE, SORTED, Batch, States, make_settings
from torch import Tensor, nn

LAYER = ("layer_pooled", "layer_tokens")
ALL = ("layer_pooled", "all_pooled", "layer_tokens")


@dataclass(frozen=True)
class Source:
    """The model that all peers share, and the layer whose output is wanted."""

    folder: Path
    model: transformers.PhiForCausalLM
    layer: int

    @property
    def state(self) -> int:
        """The number of the layer's output among the hidden states."""
        return self.layer + 1

    @property
    def num_layers(self) -> int:
        return self.model.config.num_hidden_layers

    @property
    def tokenizer(self) -> transformers.PreTrainedTokenizerBase:
        return transformers.AutoTokenizer.from_pretrained(self.folder)

    def make_shell(self) -> transformers.PhiForCausalLM:
        config = copy.deepcopy(self.model.config)
        with torch.device("meta"):
            shell = type(self.model)(config)
        shell.load_state_dict(self.model.state_dict(), assign=True)
        shell.model.rotary_emb = type(self.model.model.rotary_emb)(config)
        return shell.eval().requires_grad_(False)

    def make_body(self) -> transformers.PhiModel:
        """The embeddings and the blocks up to the layer; what it returns is the layer's output."""
        body = self.make_shell().model
        body.layers = body.layers[: self.state]
        body.config.num_hidden_layers = self.state
        body.final_layernorm = nn.Identity()
        return body


def load_source(folder: Path) -> Source:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    return Source(folder, model.eval().requires_grad_(False), model.config.num_hidden_layers // 2)


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
        kinds=ALL,
        state=source.state,
        orders=list(ORDERS),
        takes_short=True,
        what=what,
    )


class Stop(Exception):
    """Ends a forward."""


def make_hooks(source: Source) -> list[Setting]:
    body = source.model.model

    def compute(batch: Batch) -> States:
        kept: dict[int, Tensor] = {}

        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            kept[source.state] = output
            raise Stop

        handle = body.layers[source.layer].register_forward_hook(keep)
        try:
            body(batch.ids, attention_mask=batch.mask, use_cache=False)
        except Stop:
            return kept
        finally:
            handle.remove()
        raise AssertionError("the hook was not called")

    what = "transformers with a forward hook that keeps the layer's output and ends the forward"
    return make_settings(
        "hooks", compute, kinds=LAYER, state=source.state, takes_short=True, what=what
    )


def make_wide(source: Source) -> list[Setting]:
    needed = 4.5 * sum(x.numel() for x in source.make_body().parameters())
    if needed > available_memory():
        raise MemoryError(f"fp32 weights need {needed / 1e9:.1f} GB")
    body = source.make_body().float()

    def compute(batch: Batch) -> States:
        output = body(batch.ids, attention_mask=batch.mask, use_cache=False)
        return {source.state: output.last_hidden_state}

    what = "transformers cut behind the layer, its weights widened to fp32 when it was loaded"
    return make_settings("transformers-fp32", compute, kinds=LAYER, state=source.state, what=what)


def make_lens(source: Source) -> list[Setting]:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        str(source.folder),
        hf_model=source.make_shell(),
        tokenizer=source.tokenizer,
        dtype=torch.bfloat16,
        device="cpu",
    )

    def compute(batch: Batch) -> States:
        mask = {} if batch.mask is None else {"attention_mask": batch.mask}
        return {source.state: bridge(batch.ids, stop_at_layer=source.state, **mask)}

    what = "TransformerBridge with stop_at_layer, which needs eager attention"
    return make_settings("TransformerLens", compute, kinds=LAYER, state=source.state, what=what)


def make_interp(source: Source) -> list[Setting]:
    import interp_engine

    model = interp_engine.EagerModel(
        str(source.folder), hf_model=source.make_shell(), tokenizer=source.tokenizer
    )
    points = ["embeddings", *(f"resid_post.{i}" for i in range(source.num_layers - 1)), "final_norm"]

    def compute(batch: Batch) -> States:
        cache = interp_engine.capture(model, batch.ids, points, attention_mask=batch.mask)
        return {number: cache[point] for number, point in enumerate(points)}

    what = "capture of the eager backend, which always runs the whole model and its head; one serves"
    what += " all kinds"
    return make_settings("interp-engine", compute, kinds=ALL, state=source.state, what=what)


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
    return make_settings("nnsight", compute, kinds=LAYER, state=source.state, what=what)


def make_sentences(source: Source) -> list[Setting]:
    """Texts are ids written as words, for a tokenizer whose words are ids."""
    whole, body = source.make_shell().model, source.make_body()
    models = {
        "layer_pooled": (body, source.state, "the model cut behind the layer"),
        "final_pooled": (whole, source.num_layers, "the model as it is, which gives the last state"),
    }
    return [
        Setting(
            name=f"sentence-transformers, {what.split(',')[0]}",
            group="sentence-transformers",
            what=f"encode with batch_size=8, which sorts by length; {what}",
            kinds=(kind,),
            run=encoder(model, source, kind, state),
            takes_short=kind == "layer_pooled",
        )
        for kind, (model, state, what) in models.items()
    ]


def encoder(
    model: transformers.PhiModel, source: Source, kind: str, state: int
) -> Callable[[list[list[int]]], Outcome]:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    class GivenTransformer(Transformer):
        """Takes a model that is there instead of loading one."""

        def _load_model(self, *args: object, **kwargs: object) -> transformers.PhiModel:
            return model

    with TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), model.config)
        transformer = GivenTransformer(folder)
    hidden = model.config.hidden_size
    encoder = SentenceTransformer(
        modules=[transformer, Pooling(hidden, ("mean", "lasttoken"))], device="cpu"
    )

    def run(texts: list[list[int]]) -> Outcome:
        outcome = Outcome()
        words = [" ".join(map(str, text)) for text in texts]
        with outcome.time(kind):
            vectors = encoder.encode(
                words, batch_size=8, convert_to_tensor=True, show_progress_bar=False
            )
        outcome.pooled[kind] = {state: vectors.unflatten(-1, (2, hidden))}
        return outcome

    return run


def write_tokenizer(folder: Path, config: transformers.PhiConfig) -> None:
    """A tokenizer for texts such as "17 4093": each word is the number of a token."""
    vocabulary = {str(index): index for index in range(config.vocab_size)}
    definition = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "0"},
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "0"}
    config.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


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
