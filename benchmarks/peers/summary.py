"""Figures from seconds: tokens/s of real tokens, what was aimed at, and the table of it all."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from corpus import Corpus
from outcome import KINDS

Seconds = Mapping[str, Mapping[str, Mapping[int, float]]]
"""By setting, kind and number of the block."""
STOPPING = ("hooks", "sentence-transformers", "TransformerLens", "nnsight")
WIDENED = "transformers-fp32"


def speeds(tokens: Sequence[int], seconds: Mapping[int, float]) -> dict[str, Any]:
    """Tokens/s: the median over blocks, all blocks together, and each by its number."""
    blocks = {number: tokens[number] / passed for number, passed in seconds.items()}
    total = sum(tokens[number] for number in seconds) / sum(seconds.values())
    return {
        "median": round(statistics.median(blocks.values()), 2),
        "total": round(total, 2),
        "blocks": {number: round(speed, 1) for number, speed in blocks.items()},
        "seconds": {number: round(passed, 3) for number, passed in seconds.items()},
    }


def all_speeds(corpus: Corpus, seconds: Seconds) -> dict[str, dict[str, Any]]:
    return {
        name: {kind: speeds(corpus.block_tokens, values) for kind, values in kinds.items()}
        for name, kinds in seconds.items()
    }


def describe_products(
    flops: Sequence[Mapping[str, float]], token_flops: int, num_blocks: int
) -> dict[str, dict[str, float]]:
    """Of each dtype: the median of the measurements, and the tokens/s they would allow."""
    medians = {name: statistics.median(row[name] for row in flops) for name in flops[0]}
    return {
        name: {
            "gflops_per_second": round(value / 1e9, 1),
            "tokens_per_second": round(value / (num_blocks * token_flops), 1),
            "all_gflops_per_second": [round(row[name] / 1e9, 1) for row in flops],
        }
        for name, value in medians.items()
    }


class Comparison:
    """One mode of phiscope beside the peers, paired by blocks."""

    def __init__(
        self,
        name: str,
        arithmetic: str,
        settings: Mapping[str, Mapping[str, Any]],
        lognormal: Mapping[str, Any],
        short: Mapping[str, Any],
        products: Mapping[str, Mapping[str, float]],
    ) -> None:
        self._name = name
        self._arithmetic = arithmetic
        self._settings = settings
        self._lognormal = lognormal
        self._short = short
        self._products = products

    def figures(self) -> dict[str, Any]:
        """Each ratio with what it is a ratio to; those that cannot be had are None."""
        limit = self._products[self._arithmetic]["tokens_per_second"]
        ours = self._ours("layer_pooled")
        return {
            "layer_pooled_over_transformers_as_the_texts_come": self._over(
                "transformers, batches of 8 as the texts come"
            ),
            "layer_pooled_over_transformers_at_its_best": self._over(self._best("transformers")),
            "layer_pooled_over_best_peer_that_stops": self._over(self._best(*STOPPING)),
            "layer_pooled_over_transformers_widened_to_fp32": self._over(self._best(WIDENED)),
            "layer_pooled_share_of_product_peak": ours and round(ours["total"] / limit, 3),
            "all_pooled_seconds_over_prefill": self._divide("prefill", "all_pooled"),
            "layer_pooled_seconds_over_prefill": self._divide("prefill", "layer_pooled"),
            "short_over_lognormal": self._short_ratio(),
        }

    def _ours(self, kind: str) -> dict[str, Any] | None:
        return self._lognormal.get(self._name, {}).get(kind)

    def _best(self, *groups: str) -> str | None:
        names = [
            name
            for name, kinds in self._lognormal.items()
            if self._settings[name]["group"] in groups and "layer_pooled" in kinds
        ]
        speed = {name: self._lognormal[name]["layer_pooled"]["total"] for name in names}
        return max(speed, key=speed.__getitem__, default=None)

    def _over(self, name: str | None) -> dict[str, Any] | None:
        ours, theirs = self._ours("layer_pooled"), self._lognormal.get(name or "")
        if ours is None or theirs is None:
            return None
        return {"of": name, **ratio(ours, theirs["layer_pooled"])}

    def _divide(self, above: str, below: str) -> dict[str, Any] | None:
        """Seconds of one over those of the other: their speeds the other way round."""
        first, second = self._ours(above), self._ours(below)
        return None if first is None or second is None else ratio(first, second)

    def _short_ratio(self) -> float | None:
        ours, short = self._ours("layer_pooled"), self._short.get(self._name)
        if ours is None or short is None:
            return None
        return round(short["layer_pooled"]["total"] / ours["total"], 3)


def ratio(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, float]:
    """How many times as fast as the second the first is, on the blocks that both have run."""
    ours, theirs = first["seconds"], second["seconds"]
    both = sorted(ours.keys() & theirs.keys())
    return {
        "total": round(sum(theirs[n] for n in both) / sum(ours[n] for n in both), 3),
        "median_of_blocks": round(statistics.median(theirs[n] / ours[n] for n in both), 3),
    }


def make_table(figures: Mapping[str, Any]) -> str:
    """The settings as Markdown: tokens/s of all blocks together, and errors of what (c) gives."""
    kinds = list(KINDS)
    heads = ["", *(KINDS[kind] for kind in kinds), "short texts", "max error", "relative error"]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for name, row in figures["settings"].items():
        long, short = row["tokens_per_second"], row["short_tokens_per_second"]
        cells = [f"{long[kind]['total']:.0f}" if kind in long else "" for kind in kinds]
        cells.append(f"{next(iter(short.values()))['total']:.0f}" if short else "")
        lines.append([name, *cells, *error_cells(row["errors"])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def error_cells(errors: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Of the tokens where a setting gives them, else of what it gives."""
    if not errors:
        return ["", ""]
    error = errors.get("layer_tokens") or next(iter(errors.values()))
    return [f"{error['max_absolute']:.2g}", f"{error['relative']:.2g}"]
