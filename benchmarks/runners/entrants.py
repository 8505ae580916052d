"""Who takes part in the speed benchmark, at how many bits, and who is in memory together."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A process with one model; it may run it in several ways."""

    name: str
    bits: int
    """Of a weight: entrants are compared with those of the same bits."""
    arithmetic: str
    """What its matrix products are computed in, by the names of the measured peaks."""
    script: str
    arguments: tuple[str, ...]
    """Of the script after name and threads; `{checkpoint}` and `{models}` are folders."""
    is_peer: bool = False
    """Whether it needs the peers' Python."""

    def command(self, places: Mapping[str, str]) -> list[str]:
        return [argument.format(**places) for argument in self.arguments]


def make_ours(mode: str, bits: int, arithmetic: str) -> Entrant:
    return Entrant(
        name=f"phiscope {mode}",
        bits=bits,
        arithmetic=arithmetic,
        script="phiscope_runner.py",
        arguments=("{checkpoint}", mode),
    )


def make_transformers(short: str, bits: int, dtype: str) -> Entrant:
    return Entrant(
        name=f"transformers {short}",
        bits=bits,
        arithmetic=short,
        script="transformers_runner.py",
        arguments=("{checkpoint}", dtype, "sdpa", "eager", "static"),
    )


def make_llama(kind: str, bits: int, arithmetic: str) -> Entrant:
    return Entrant(
        name=f"llama.cpp {kind}",
        bits=bits,
        arithmetic=arithmetic,
        script="llama_cpp_runner.py",
        arguments=(f"{{models}}/{kind}.gguf",),
        is_peer=True,
    )


def make_openvino(kind: str, bits: int, backend: str) -> Entrant:
    return Entrant(
        name=f"OpenVINO {kind} {backend}",
        bits=bits,
        arithmetic="int8",
        script="openvino_runner.py",
        arguments=(f"{{models}}/openvino-{kind}", backend),
        is_peer=True,
    )


CTRANSLATE2 = Entrant(
    name="CTranslate2 int8",
    bits=8,
    arithmetic="int8",
    script="ctranslate2_runner.py",
    arguments=("{models}/ctranslate2-int8",),
    is_peer=True,
)
ENTRANTS: dict[str, Entrant] = {
    entrant.name: entrant
    for entrant in (
        make_ours("fp32-cpu", 32, "fp32"),
        make_transformers("fp32", 32, "float32"),
        make_ours("bf16-cpu", 16, "bf16"),
        make_transformers("bf16", 16, "bfloat16"),
        make_llama("F16", 16, "fp32"),
        make_ours("bf16-fp32-cpu", 16, "fp32"),
        make_ours("int8-cpu", 8, "int8"),
        make_llama("Q8_0", 8, "int8"),
        make_openvino("int8", 8, "stateful"),
        make_openvino("int8", 8, "paged"),
        CTRANSLATE2,
        make_ours("int4-cpu", 4, "int8"),
        make_llama("Q4_0", 4, "int8"),
        make_openvino("int4", 4, "stateful"),
        make_openvino("int4", 4, "paged"),
    )
}
"""Of the same bits stand together, ours first: who is named first is in memory together."""

GROUND = 1.5e9
"""Bytes of a process beside its weights: libraries, caches, activations."""


def estimate_memory(entrant: Entrant, num_parameters: int) -> float:
    """Bytes; 4-bit models have parts of more bits."""
    return GROUND + num_parameters * max(entrant.bits, 6) / 8


def make_lineups(
    entrants: Iterable[Entrant], num_parameters: int, room: float
) -> list[Sequence[Entrant]]:
    """Entrants of the same bits that fit into memory together; one that is too large is alone."""
    lineups: list[Sequence[Entrant]] = []
    for _, group in groupby(entrants, key=lambda entrant: entrant.bits):
        lineup: list[Entrant] = []
        left = room
        for entrant in group:
            need = estimate_memory(entrant, num_parameters)
            if lineup and need > left:
                lineups.append(lineup)
                lineup, left = [], room
            lineup.append(entrant)
            left -= need
        lineups.append(lineup)
    return lineups
