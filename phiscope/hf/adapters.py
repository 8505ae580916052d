"""LoRA and its kin by PEFT, with target names of any layout, none of which is ignored.

PEFT passes over a name that fits no module as long as another one fits, and then trains a part of
what was meant without a word. Here a name of another layout is translated, a fused one to each of
q, k and v, and a name that is of no layout is refused.
"""

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from phiscope.checkpoint.layouts import LAYOUTS, find_pieces
from phiscope.hf.configuration import read_shape

TARGETS = ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")
"""Every linear layer of a block; the head is `lm_head`, or `score`."""

_NAMES = ("target_modules", "exclude_modules", "modules_to_save", "feedforward_modules")
"""Fields of PEFT's configs that name modules: the whole name or its last parts, or a pattern."""
_PATTERNS = ("rank_pattern", "alpha_pattern")
"""Fields with a number for each name or pattern."""
_BY_PEFT = ("classifier", "score", "qa_outputs")
"""What PEFT itself adds to `modules_to_save`, whether the model has it or not."""
_WORDS = ("all-linear", "dummy-target-modules")
"""What stands for modules in PEFT and is no pattern."""
_LEGACY = ((".mlp.fc1", ".mlp.fc_in"), (".mlp.fc2", ".mlp.fc_out"), (".mlp.fc", ".mlp.mlp.fc"))
_NUMBER = re.compile(r"(^|\.)\d+\.")


def get_peft_model(model: Any, peft_config: Any, *args: Any, **kwargs: Any) -> Any:
    """Wrap a model for training as `peft.get_peft_model` does, with target names of any layout.

    The other arguments are PEFT's; the config that is given stays as it is. Raises `ValueError` for
    a name that fits nothing and `ImportError` where PEFT is not installed.
    """
    try:
        import peft
    except ModuleNotFoundError as error:
        raise ImportError("get_peft_model needs PEFT: pip install peft") from error
    return peft.get_peft_model(model, translate_config(model, peft_config), *args, **kwargs)


def translate_config(model: Any, peft_config: Any) -> Any:
    """A copy of one of PEFT's configs in which the model's own names stand for those of any layout.

    This is what to give to trainers with a `peft_config` argument. Raises `ValueError` for a name
    that fits nothing.
    """
    config = copy.copy(peft_config)
    _check_layers(model, config)
    for field in _NAMES:
        names = getattr(config, field, None)
        if names:
            setattr(config, field, _translate_field(model, field, names))
    for field in _PATTERNS:
        values = getattr(config, field, None)
        if values:
            setattr(config, field, _translate_patterns(model, values))
    return config


def translate_targets(model: Any, names: str | Iterable[str]) -> str | set[str]:
    """The model's own names for `target_modules` of any layout; "all-linear" and patterns stay.

    Raises `ValueError` for a name that fits no module, with those that do; for a pattern with a
    name of another layout; and for blocks that are numbered by several layouts.
    """
    if isinstance(names, str):
        _check_pattern(model, names)
        return names
    wanted = sorted(set(names))
    foreign = [name for name in wanted if not _fits(model, name)]
    if not foreign:
        return set(wanted)
    read = _read_layouts(model)
    found = {name: _find(model, read, name) for name in foreign}
    wrong = [name for name in foreign if not found[name]]
    if wrong:
        raise ValueError(
            f"no module of the model is named {_join(wrong)};"
            f" {_advice(model)}, or names of another layout"
        )
    _check_numbers(wanted, found)
    return set(wanted).difference(foreign).union(*found.values())


class AdapterNames:
    """Mixed into our models before transformers' class: adapters with names that fit nothing raise.

    PEFT sets `peft_config` on every model that it has changed, whoever called it.
    """

    def add_adapter(self, adapter_config: Any, adapter_name: str | None = None) -> None:
        """Add a new adapter, as transformers does, with target names of any layout.

        Raises `ValueError` for a name that fits nothing.
        """
        config = translate_config(self, adapter_config)
        super().add_adapter(config, adapter_name)  # type: ignore[misc]

    def train(self, mode: bool = True) -> Any:
        """Set training mode, as torch does; `ValueError` if an adapter's names fit nothing."""
        if mode:
            _check_configs(self, self.__dict__.get("peft_config", {}))
        return super().train(mode)  # type: ignore[misc]

    @property
    def peft_config(self) -> dict[str, Any]:
        """The configs of the adapters by their names; `AttributeError` while there is none."""
        if "peft_config" not in self.__dict__:
            raise AttributeError("the model has no adapter")
        configs: dict[str, Any] = self.__dict__["peft_config"]
        return configs

    @peft_config.setter
    def peft_config(self, configs: dict[str, Any]) -> None:
        _check_configs(self, configs)
        self.__dict__["peft_config"] = configs

    @peft_config.deleter
    def peft_config(self) -> None:
        del self.__dict__["peft_config"]


def _check_configs(model: Any, configs: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a name that PEFT passed over."""
    for config in configs.values():
        _check_layers(model, config)
        for field in _NAMES:
            _check_injected(model, field, getattr(config, field, None) or ())


def _check_injected(model: Any, field: str, names: str | Iterable[str]) -> None:
    """The adapter is in the model by now: what was passed over can only be refused."""
    if isinstance(names, str):
        _check_pattern(model, names)
        return
    wrong = [name for name in names if name not in _BY_PEFT and not _fits(model, name)]
    if wrong:
        raise ValueError(
            f"PEFT passed over {_join(wrong)} of {field}, which no module is named, and adapted the"
            " rest: load the model again and use phiscope.hf.get_peft_model, which reads names of"
            f" every layout, or {_advice(model)}"
        )


def _check_layers(model: Any, config: Any) -> None:
    """PEFT passes over numbers of blocks, too."""
    given = getattr(config, "layers_to_transform", None)
    numbers = [given] if isinstance(given, int) else given or []
    last = model.config.num_hidden_layers - 1
    wrong = [number for number in numbers if not 0 <= number <= last]
    if wrong:
        raise ValueError(f"layers_to_transform has {wrong[0]}; blocks are numbered 0 to {last}")


def _translate_field(model: Any, field: str, names: str | Iterable[str]) -> Any:
    if field != "modules_to_save" or isinstance(names, str):
        return translate_targets(model, names)
    by_peft = [name for name in names if name in _BY_PEFT]
    named = translate_targets(model, [name for name in names if name not in _BY_PEFT])
    return [*sorted(named), *by_peft]


def _translate_patterns(model: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """A number for each of the model's own names; those that are given by them come first."""
    matches = {key: re.compile(rf"(.*\.)?({key})").fullmatch for key in values}
    modules = _list_modules(model)
    own = {key: values[key] for key in values if any(map(matches[key], modules))}
    rest = [key for key in values if key not in own]
    translated = {name: values[key] for key in rest for name in translate_targets(model, [key])}
    return own | {name: value for name, value in translated.items() if name not in own}


def _fits(model: Any, name: str) -> bool:
    return any(_is_named(module, name) for module, _ in model.named_modules())


def _is_named(module: str, name: str) -> bool:
    """As PEFT reads names."""
    return module == name or module.endswith(f".{name}")


def _find(model: Any, read: Mapping[str, set[str]], name: str) -> set[str]:
    """The shortest names of the modules that another layout calls by this name."""
    modules = _list_modules(model)
    ours = {own for module in read if _is_named(module, name) for own in read[module]}
    found = {module for module in modules if any(_is_named(module, own) for own in ours)}
    short = {module.rpartition(".")[2] for module in found}
    reached = {module for module in modules if module.rpartition(".")[2] in short}
    return short if reached == found and not _NUMBER.search(name) else found


def _list_modules(model: Any) -> list[str]:
    return [name for name, _ in model.named_modules()]


def _read_layouts(model: Any) -> dict[str, set[str]]:
    """Each module's name in the other layouts, and its names here below the base model."""
    shape = read_shape(model.config)
    plain = replace(shape, qk_layernorm=False, num_key_value_heads=shape.num_attention_heads)
    native = find_pieces(plain, "D")
    read: dict[str, set[str]] = {}
    for layout in LAYOUTS:
        for name, pieces in find_pieces(plain, layout).items():
            ours = {piece.name.rpartition(".")[0].removeprefix("model.") for piece in native[name]}
            module = pieces[0].name.rpartition(".")[0]
            for spelling in _spell(module) if layout in "AB" else (module,):
                read.setdefault(spelling, set()).update(ours)
    return read


def _spell(module: str) -> set[str]:
    """A module's name as it stands, and as the earliest files have it."""
    return {module, *(module.replace(new, old) for new, old in _LEGACY)}


def _check_numbers(names: Iterable[str], found: Mapping[str, set[str]]) -> None:
    """Layout A counts blocks from 1: its numbers must not be taken for ours."""
    numbered = [name for name in names if _NUMBER.search(name)]
    theirs = [name for name in numbered if name in found]
    several = [name for name in theirs if len(set(map(_read_number, found[name]))) > 1]
    if several or 0 < len(theirs) < len(numbered):
        raise ValueError(
            f"{_join(several or numbered)} number blocks as several layouts do, from 0 or from 1;"
            " give whole names of one layout"
        )


def _read_number(module: str) -> str:
    number = _NUMBER.search(module)
    return number[0] if number else ""


def _check_pattern(model: Any, pattern: str) -> None:
    """Refuse a pattern that fits nothing, and one with a name that only other layouts have."""
    if pattern.lower() in _WORDS:
        return
    modules = _list_modules(model)
    known = {part for module in modules for part in module.split(".")}
    foreign = {name.rpartition(".")[2] for name in _read_layouts(model)} - known
    words = sorted(foreign.intersection(re.findall(r"\w+", pattern)))
    if words:
        raise ValueError(
            f"the pattern {pattern!r} has {_join(words)} of another layout; {_advice(model)}"
        )
    if not any(map(re.compile(pattern).fullmatch, modules)):
        raise ValueError(f"the pattern {pattern!r} fits no module; {_advice(model)}")


def _advice(model: Any) -> str:
    heads = [name for name in ("lm_head", "score") if hasattr(model, name)]
    return f"choose from {', '.join([*TARGETS, *heads])}"


def _join(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
