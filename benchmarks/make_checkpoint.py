"""Write a random Phi checkpoint of any size, in any layout and dtype, within seconds.

Numbers come from one block of random normals, read at a seeded place for each tensor and repeated
where the tensor is larger; its length shares no factor with any row, so no two rows are equal. The
scales keep activations sane at any size: matrices 1/sqrt(inputs), the two that write to the
residual stream divided by sqrt(2 * layers), norms about one, small biases.

    python benchmarks/make_checkpoint.py OUT                                  # all of phi-2
    python benchmarks/make_checkpoint.py OUT --layout B --dtype bfloat16
    python benchmarks/make_checkpoint.py OUT --set num_hidden_layers=4 hidden_size=512 ...
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, product
from pathlib import Path

import torch
from torch import Tensor

from phiscope.checkpoint import SHARD_SIZE, TOKENIZER_FILES, write_checkpoint
from phiscope.checkpoint.layouts import LAYOUTS, our_shapes
from phiscope.config import DTYPES, PRESETS, PhiConfig
from phiscope.errors import PhiscopeError
from phiscope.tokenizer import tokenizer_from_merges
from phiscope.tokenizer_files import byte_symbols

BLOCK = 16_777_213  # a prime
NUM_MERGES = 50_000


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parse(arguments)
    begin = time.perf_counter()
    try:
        config = replace(PRESETS[options.preset], **dict(options.set))
        dtype = getattr(torch, options.dtype)
        source = RandomTensors(config, dtype, options.seed)
        write_checkpoint(
            options.out,
            config,
            dict.fromkeys(our_shapes(config), dtype),
            source.make,
            layout=options.layout,
            max_shard_size=options.max_shard_size,
        )
    except PhiscopeError as error:
        print(f"make_checkpoint: {error}", file=sys.stderr)
        return 1
    write_tokenizer(options.out, options.tokenizer, config)
    seconds = time.perf_counter() - begin
    print(f"{config.num_parameters:,} parameters in {seconds:.1f} s: {options.out}")
    return 0


def write_tokenizer(out: Path, source: Path | None, config: PhiConfig) -> None:
    """Copy a folder's tokenizer; without one, and where the ids fit, make a stand-in of Phi's size.

    The stand-in has Phi's special ids, but its 50,000 merges are pairs of bytes, not GPT-2's: texts
    become about half as many tokens as they have bytes.
    """
    if source is None:
        pairs = islice(product(byte_symbols(), repeat=2), NUM_MERGES)
        tokenizer = tokenizer_from_merges(f"{first} {second}" for first, second in pairs)
        if tokenizer.num_tokens <= config.vocab_size:
            tokenizer.save(out)
        return
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)


@dataclass
class RandomTensors:
    """Makes the parameters of a model by name, the same for the same seed."""

    config: PhiConfig
    dtype: torch.dtype
    seed: int
    _blocks: dict[float, Tensor] = field(default_factory=dict)

    def make(self, name: str) -> Tensor:
        shape = our_shapes(self.config)[name]
        block = self._scaled(self._spread(name, shape))
        begin = self._offset(name)
        result = torch.empty(shape, dtype=self.dtype)
        flat, done = result.view(-1), 0
        while done < flat.numel():
            part = block[begin : begin + flat.numel() - done]
            flat[done : done + part.numel()] = part
            begin, done = 0, done + part.numel()
        return result.add_(1.0) if name.endswith("layernorm.weight") else result

    def _spread(self, name: str, shape: tuple[int, ...]) -> float:
        if name.endswith(".bias") or len(shape) == 1 or name.endswith("embed_tokens.weight"):
            return 0.02
        writes = name.endswith(("dense.weight", "fc2.weight"))
        paths = 2 * self.config.num_hidden_layers if writes else 1
        return float((shape[1] * paths) ** -0.5)

    @cached_property
    def _normals(self) -> Tensor:
        return torch.randn(BLOCK, generator=torch.Generator().manual_seed(self.seed))

    def _scaled(self, spread: float) -> Tensor:
        if spread not in self._blocks:
            self._blocks[spread] = (self._normals * spread).to(self.dtype)
        return self._blocks[spread]

    def _offset(self, name: str) -> int:
        place = list(our_shapes(self.config)).index(name)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + place)
        return int(torch.randint(BLOCK, (1,), generator=generator))


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--preset", choices=list(PRESETS), default="phi-2")
    parser.add_argument("--layout", choices=LAYOUTS, default="D")
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-shard-size", type=int, default=SHARD_SIZE, metavar="BYTES")
    parser.add_argument("--tokenizer", type=Path, help="folder whose tokenizer files to copy")
    parser.add_argument(
        *("--set",),
        nargs="+",
        default=[],
        type=_setting,
        metavar="NAME=INTEGER",
        help="fields of PhiConfig, such as num_hidden_layers=4",
    )
    return parser.parse_args(arguments)


def _setting(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    if name not in PhiConfig.__dataclass_fields__:
        raise argparse.ArgumentTypeError(f"PhiConfig has no field {name!r}")
    return name, int(value)


if __name__ == "__main__":
    sys.exit(main())
