"""CUDA graphs: what a GPU was told to do once, done again without telling it anew.

A recorded function must do the same work at the same addresses every time: it reads and writes
tensors that stay where they are, allocates nothing outside of the graph's own memory, and never
waits for the GPU.
"""

from collections.abc import Callable
from typing import Any

import torch

Work = Callable[[], None]
Recorder = Callable[[Work], Work]
"""Gives a function that does the same work again; the work is done at least once before that."""


class CudaGraphs:
    """A `Recorder`. Its graphs share their memory, so they are replayed one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        self._pool: Any = None

    def __call__(self, work: Work) -> Work:
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            try:
                return self._record(work)
            finally:
                torch.cuda.set_stream(before)  # a recording that fails does not give it back

    def _record(self, work: Work) -> Work:
        stream = self._warm_up(work)
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # Other threads may go on copying: only what this one does is recorded.
        with torch.cuda.graph(
            graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"
        ):
            work()
        return graph.replay

    def _warm_up(self, work: Work) -> torch.cuda.Stream:
        """Do the work on the stream that is recorded: libraries make their workspaces there."""
        if self._stream is None:
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return self._stream
