"""KV cache: slots of keys and values, one slot for each running sequence.

The whole cache is reserved at once and costs memory only where it is written. Who owns which slot
is the scheduler's business.
"""

import torch
from torch import Tensor

from phiscope.config import PhiConfig
from phiscope.packing import Packed


class KVCache:
    """`data` is (layer, 2, slot, place, kv_head, head_dim); a place is a token's position."""

    def __init__(
        self,
        config: PhiConfig,
        *,
        num_slots: int,
        num_places: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (
            config.num_hidden_layers,
            2,
            num_slots,
            num_places,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.data = torch.empty(shape, dtype=dtype, device=device)
        self.num_slots = num_slots
        self.num_places = num_places

    @staticmethod
    def count_slot_bytes(config: PhiConfig, num_places: int, dtype: torch.dtype) -> int:
        """The memory of one slot."""
        width = config.num_key_value_heads * config.head_dim
        return 2 * config.num_hidden_layers * num_places * width * dtype.itemsize

    def write(self, layer: int, k: Tensor, v: Tensor, packed: Packed) -> tuple[Tensor, Tensor]:
        """Store the new keys and values (N, kv_heads, head_dim) of a batch at their places.

        Returns this layer's keys and values, each (slot, place, kv_head, head_dim).
        """
        keys, values = self.data[layer]
        where = (packed.token_slots, packed.positions)
        keys[where] = k.to(keys.dtype)
        values[where] = v.to(values.dtype)
        return keys, values

    def copy(self, source: int, target: int, length: int) -> None:
        """Give slot `target` the first `length` tokens of slot `source`: a reused prefix."""
        self.data[:, :, target, :length] = self.data[:, :, source, :length]
