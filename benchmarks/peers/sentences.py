"""sentence-transformers: its `encode`, over a model that is there and texts that are token ids."""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import transformers
from outcome import Outcome, Setting
from source import Source

PAD = "<pad>"


def make_sentences(source: Source) -> list[Setting]:
    """Texts are ids written as words, for a tokenizer whose words are ids."""
    whole, body = source.make_shell().model, source.make_body()
    models = {
        "layer_pooled": (body, source.state, "the model cut behind the layer"),
        "final_pooled": (
            whole,
            source.num_layers,
            "the model as it is, which gives the last state",
        ),
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
) -> Callable[[list[list[int]], tuple[str, ...]], Outcome]:
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
        modules=[transformer, Pooling(hidden, ("mean", "lasttoken"))], device=str(source.device)
    )

    def run(texts: list[list[int]], kinds: tuple[str, ...]) -> Outcome:
        outcome = Outcome(device=source.device)
        words = [" ".join(map(str, text)) for text in texts]
        with outcome.time(kind):
            vectors = encoder.encode(
                words, batch_size=8, convert_to_tensor=True, show_progress_bar=False
            )
        outcome.pooled[kind] = {state: vectors.cpu().unflatten(-1, (2, hidden))}
        return outcome

    return run


def write_tokenizer(folder: Path, config: transformers.PhiConfig) -> None:
    """A tokenizer for texts such as "17 4093": each word is the number of a token.

    Padding is the last, a spare one, and no number: special words are cut out of others.
    """
    vocabulary = {str(index): index for index in range(config.vocab_size - 1)}
    vocabulary[PAD] = config.vocab_size - 1
    definition = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": PAD},
    }
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": PAD}
    config.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
