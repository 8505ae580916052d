"""Phi in sentence-transformers: a module that reads any layer, packed, and pools in the forward.

    phi = phiscope.load("microsoft/phi-2", layers=16)
    embedder = SentenceTransformer(modules=[PhiscopeEmbedder(phi, layer=16)])
    embedder.encode(texts)  # what phi.embed(texts, layer=16) gives

It embeds and does not train. To fine-tune, give sentence-transformers' own `Transformer` module a
checkpoint of `model_type` "phi-msft": it then builds `phiscope.hf.PhiModel` by itself.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

import phiscope
from phiscope.activations.points import resolve_points, transformers_state
from phiscope.activations.pooling import select_reducers
from phiscope.checkpoint import save_checkpoint
from phiscope.errors import HubError, MissingExtraError, UnsupportedError
from phiscope.texts import read_text

try:
    from sentence_transformers.base.modules import InputModule
except ModuleNotFoundError as error:
    raise MissingExtraError("sentences") from error


class PhiscopeEmbedder(InputModule):
    """Gives `phi.embed(texts, layer, pool=pool)` as sentence-transformers' `sentence_embedding`.

    `layer` counts as transformers counts, 0 to L; None is L, after the final LayerNorm. With
    `pool=None` it gives `token_embeddings`, for a `Pooling` of sentence-transformers behind it.
    `max_seq_length` cuts longer texts; None cuts none, and refuses those beyond the context.
    What `phi.steer` edits is edited here, too. Raises `PointError` for a layer that is not loaded.
    """

    config_file_name = "phiscope_embedder.json"
    save_in_root = False  # a checkpoint is written to a folder of its own

    def __init__(
        self,
        phi: "phiscope.Phi",
        layer: int | None = None,
        *,
        pool: str | None = "mean",
        max_seq_length: int | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        num_layers = phi.config.num_hidden_layers
        if pool is not None:
            select_reducers([pool])
        self.phi = phi
        self.model = phi.model  # so that the module is where its weights are
        self.tokenizer = phi.tokenizer
        self.layer = num_layers if layer is None else layer
        self.pool = pool
        self.max_seq_length = max_seq_length
        self._point = transformers_state(self.layer, num_layers)
        loaded = len(phi.model.model.layers) if phi.model.lm_head is None else None
        resolve_points(self._point, num_layers, loaded)  # refuses what was not loaded
        self.eval()

    @property
    def max_seq_length(self) -> int | None:
        """Tokens to which longer texts are cut; None refuses texts beyond the context."""
        return self._max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, length: int | None) -> None:
        limit = self.phi.config.max_position_embeddings
        if length is not None and not 1 <= length <= limit:
            raise ValueError(f"max_seq_length must be from 1 to {limit}, got {length}")
        self._max_seq_length = length

    def get_embedding_dimension(self) -> int:
        """The hidden size."""
        return self.phi.config.hidden_size

    def get_config_dict(self) -> dict[str, Any]:
        """The settings that are saved."""
        return {"layer": self.layer, "pool": self.pool, "max_seq_length": self.max_seq_length}

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **options: Any
    ) -> dict[str, Any]:
        """`input_ids` and `attention_mask` (texts, tokens) int64; the padding is never computed.

        `prompt` is put in front of each text. Raises `TypeError` for what is no string, and
        `ContextLengthError`.
        """
        options.pop("task", None)  # chooses among the routes of a `Router`, if there is one
        _refuse(options)
        wrong = [text for text in inputs if not isinstance(text, str)]
        if wrong:
            raise TypeError(f"a text is a string, got {wrong[0]!r}")
        rows = [torch.tensor(self._read((prompt or "") + text)) for text in inputs]
        features: dict[str, Any] = {
            "input_ids": pad_sequence(rows, batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(x) for x in rows], batch_first=True),
        }
        if prompt:
            features["prompt_length"] = len(self.phi.tokenizer.encode(prompt))
        return features

    def forward(self, features: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Add `sentence_embedding` (texts, hidden) fp32, or `token_embeddings` if nothing pools.

        Raises `UnsupportedError` in training mode: what it gives has no gradients.
        """
        if self.training:
            raise UnsupportedError(
                "PhiscopeEmbedder gives no gradients: call eval() to embed, and to train use"
                " sentence_transformers' Transformer with phiscope.hf.PhiModel"
            )
        ids, mask = features["input_ids"], features["attention_mask"].bool()
        texts = [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]
        states = self.phi.capture(texts, self._point, pool=self.pool)[str(self._point)]
        if self.pool is None:
            return {**features, "token_embeddings": _spread(states, mask)}
        return {**features, "sentence_embedding": states.to(ids.device)}

    def save(
        self, output_path: str, *args: Any, safe_serialization: bool = True, **kwargs: Any
    ) -> None:
        """Write checkpoint, tokenizer and settings into a new folder; `phiscope.load` opens it.

        Raises `UnsupportedError` for a model loaded with `layers=`, which is not whole.
        """
        if not safe_serialization or args or kwargs:
            raise ValueError("checkpoints are written as safetensors, without other options")
        save_checkpoint(self.phi.model, Path(output_path))
        self.phi.tokenizer.save(output_path)
        self.save_config(output_path)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> "PhiscopeEmbedder":
        """Open what `save` wrote; `model_kwargs` are those of `phiscope.load` (mode, layers ...).

        sentence-transformers imports a class that is not its own only when it is given
        `trust_remote_code=True`. Raises `ValueError` for options of other modules.
        """
        model_kwargs = kwargs.pop("model_kwargs", None) or {}
        _refuse({key: kwargs[key] for key in kwargs if kwargs[key] != _ALWAYS_GIVEN.get(key)})
        place = (model_name_or_path, subfolder, token, cache_folder, revision, local_files_only)
        folder = cls.load_dir_path(*place)
        if folder is None:
            raise HubError(f"{model_name_or_path!r} has no folder {subfolder!r}")
        settings = {**(init_defaults or {}), **cls.load_config(folder)}
        return cls(phiscope.load(folder, **model_kwargs), **settings)

    def _read(self, text: str) -> list[int]:
        tokenizer = self.phi.tokenizer
        if self._max_seq_length is not None:
            ids = tokenizer.encode(text) or [tokenizer.eos_token_id]
            return ids[: self._max_seq_length]
        return cast(list[int], read_text(text, tokenizer, self.phi.config))


_ALWAYS_GIVEN = {"backend": "torch", "trust_remote_code": True}
"""What sentence-transformers passes to every module, with the values that change nothing here."""


def _refuse(options: Mapping[str, Any]) -> None:
    named = [name for name, value in options.items() if value]
    if named:
        raise ValueError(f"{named[0]} means nothing to a PhiscopeEmbedder; leave it")


def _spread(rows: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Rows (tokens, hidden) of each text at its places of a mask (texts, tokens), else zeros."""
    flat = torch.cat(list(rows)).to(mask.device)
    places = flat.new_zeros(*mask.shape, flat.shape[-1])
    places[mask] = flat
    return places
