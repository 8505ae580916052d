"""The generator: kind, template, labels and text of sample i, each drawn from the key of i."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from phiscope.training.synthetic.draws import Draw
from phiscope.training.synthetic.kinds import KINDS
from phiscope.training.synthetic.options import SyntheticOptions
from phiscope.training.synthetic.samples import Sample, Template, heldout_templates


def generate(options: SyntheticOptions, start: int, stop: int) -> Iterator[Sample]:
    """Samples `start` to `stop`, without `stop`; any range gives what it is in a longer one.

    Raises `ValueError` for a range that runs backwards or begins below 0.
    """
    if not 0 <= start <= stop:
        raise ValueError(f"samples are counted from 0 and upwards, got {start} to {stop}")
    pool = _Pool.of(options)
    return (_write(options, pool, index) for index in range(start, stop))


@dataclass(frozen=True)
class _Pool:
    """The templates to write with, and the names of those held out."""

    templates: dict[str, tuple[Template, ...]]
    heldout: frozenset[str]

    @classmethod
    def of(cls, options: SyntheticOptions) -> _Pool:
        shares = [
            heldout_templates(kind.templates, options.heldout_share) for kind in KINDS.values()
        ]
        heldout: frozenset[str] = frozenset().union(*shares)
        wanted = {"train": (False,), "heldout": (True,), "both": (False, True)}[options.split]
        templates = {
            name: tuple(one for one in kind.templates if (one.name in heldout) in wanted)
            for name, kind in KINDS.items()
        }
        return cls(templates, heldout)


def _write(options: SyntheticOptions, pool: _Pool, index: int) -> Sample:
    """The split is in the key, so that two splits of one seed do not share their words."""
    name = f"{options.split}-{options.seed}-{index}"
    draw = Draw(name)
    kind = draw.pick_weighted(options.mix)
    template = draw.pick(pool.templates[kind])
    labels = {
        "quality": "junk" if kind == "junk" else "textbook",
        **KINDS[kind].draw_labels(draw, options.strength),
    }
    return Sample(
        id=name,
        kind=kind,
        template=template.name,
        split="heldout" if template.name in pool.heldout else "train",
        text=template.write(draw, labels),
        labels=labels,
    )
