"""Request: a prompt handed to the engine; read its pieces, wait for its result, or cancel it."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from phiscope.generation.completion import (
    Completion,
    CompletionJob,
    FinishReason,
    Piece,
    Rows,
    join_rows,
    label_tokens,
)
from phiscope.generation.logprobs import TokenLogprob
from phiscope.generation.stopping import CompletionText
from phiscope.generation.task import Task
from phiscope.tokenizer import Tokenizer

BAR_DELAY = 2.0
"""Seconds before a bar is shown."""


class Driver(Protocol):
    """The engine, as its requests see it."""

    def step(self) -> bool: ...

    def cancel(self, request: "Request") -> None: ...


class Request:
    """One prompt with its n completions, on their way or done. Made by `Engine.submit`."""

    def __init__(
        self,
        task: Task,
        driver: Driver,
        *,
        tokenizer: Tokenizer | None,
        num_ids: int,
        device: torch.device,
    ) -> None:
        self.task = task
        self.error: Exception | None = None
        """Why the request failed, if it did."""
        self.prompt_text = ""
        if task.options.echo and tokenizer is not None:
            self.prompt_text = tokenizer.decode(task.prompt.ids or ())
        self.prompt_logprobs: list[TokenLogprob] = []
        self.prompt_logits: Tensor | None = None
        """(V,): of the prompt's last token, kept for completions that have yet to start."""
        self.prompt_rows: Rows = {}
        self.num_prompt_rows = 0
        self.jobs = [
            CompletionJob(
                family=self,
                num_prompt=len(task.prompt),
                num_tokens=len(task.prompt),
                index=index,
                task=task,
                prefix_key=task.prefix_key,
                num_ids=num_ids,
                device=device,
                text=_make_text(task, tokenizer),
                untold=self.prompt_text,
            )
            for index in range(task.options.n)
        ]
        self._pieces: deque[Piece] = deque()
        self._driver = driver

    @property
    def seed(self) -> int:
        """The seed in use, also where none was given: with it the request can be repeated."""
        return self.task.seed

    @property
    def is_done(self) -> bool:
        """Whether nothing more will come: completed, cancelled or failed."""
        return all(job.is_closed for job in self.jobs)

    @property
    def completions(self) -> list[Completion]:
        """All completions as they are by now."""
        return [self._completion(job) for job in self.jobs]

    @property
    def num_new_tokens(self) -> int:
        """Tokens sampled so far, of all completions."""
        return sum(len(job.token_ids) for job in self.jobs)

    def advance(self) -> None:
        """Run one step of the engine, of which this request and the others have their share."""
        self._driver.step()

    def result(self) -> list[Completion]:
        """Run the engine until the request is done and give its completions.

        Raises what made the request fail, such as `NonFiniteError`; a cancelled request gives what
        it has. An interrupt cancels it.
        """
        try:
            while not self.is_done:
                self._driver.step()
        except BaseException:
            self.cancel()
            raise
        if self.error is not None:
            raise self.error
        return self.completions

    def pieces(self) -> Iterator[Piece]:
        """Run the engine and give each piece of text when it is certain.

        Raises what made the request fail. Leaving the iterator early cancels the request.
        """
        try:
            while self._pieces or not self.is_done:
                while self._pieces:
                    yield self._pieces.popleft()
                if not self.is_done:
                    self._driver.step()
            if self.error is not None:
                raise self.error
        finally:
            self.cancel()

    def texts(self) -> Iterator[str]:
        """The text of the pieces that have some; otherwise as `pieces`."""
        try:
            for piece in self.pieces():
                if piece.text:
                    yield piece.text
        finally:
            self.cancel()

    def take_pieces(self) -> list[Piece]:
        """The pieces that are there and not yet read, for a reader that runs the engine itself."""
        pieces = list(self._pieces)
        self._pieces.clear()
        return pieces

    def cancel(self) -> None:
        """Stop at once and free what the request holds; what it has so far stays."""
        self._driver.cancel(self)

    def tell(self, piece: Piece | None) -> None:
        """Keep a piece for the reader; the engine's to call."""
        if piece is not None:
            self._pieces.append(piece)

    def close(self, reason: FinishReason, error: Exception | None = None) -> None:
        """End all completions that are on their way; the engine's to call."""
        self.error = error
        self.prompt_logits = None
        for job in self.jobs:
            if not job.is_closed:
                job.is_closed = True
                if job.has_ended:
                    job.finish_reason = reason
                else:
                    self.tell(job.abandon(reason))

    def keep_rows(self, job: CompletionJob, rows: Mapping[str, Tensor], length: int) -> None:
        """Add the rows of `length` tokens of a completion, or of the prompt that all share."""
        if job.is_prefilling:
            self.num_prompt_rows += length
        else:
            job.num_rows += length
        kept = self.prompt_rows if job.is_prefilling else job.rows
        for name, x in rows.items():
            kept.setdefault(name, []).append(x)

    def _completion(self, job: CompletionJob) -> Completion:
        options = self.task.options
        states = self._states(job)
        num_rows = self.num_prompt_rows + job.num_rows
        return Completion(
            index=job.index,
            text=self.prompt_text + (job.text.text if job.text else ""),
            token_ids=list(job.token_ids),
            finish_reason=job.finish_reason,
            stop_reason=job.stop_reason,
            logprobs=None if options.logprobs is None else list(job.logprobs),
            prompt_logprobs=list(self.prompt_logprobs) if self.task.scores_prompt else None,
            states=states,
            labels=label_tokens(self.task, job.token_ids)[:num_rows],
            num_drafted=job.num_drafted,
            num_accepted=job.num_accepted,
            num_reused=max(job.num_reused for job in self.jobs),
        )

    def _states(self, job: CompletionJob) -> dict[str, Tensor]:
        return {
            name: join_rows(name, rows + job.rows.get(name, []))
            for name, rows in self.prompt_rows.items()
        }


def finish(requests: Sequence[Request], *, progress: bool = False) -> list[Completion]:
    """Run requests to their end and give all their completions; with `progress`, a bar on stderr.

    Raises what made one of them fail. The others are then cancelled, as they are by an interrupt.
    """
    total = sum(request.task.options.max_new_tokens * len(request.jobs) for request in requests)
    try:
        with tqdm(total=total, unit="token", delay=BAR_DELAY, disable=not progress) as bar:
            for request in requests:
                while not request.is_done:
                    request.advance()
                    bar.update(sum(request.num_new_tokens for request in requests) - bar.n)
            return [completion for request in requests for completion in request.result()]
    finally:
        for request in requests:
            request.cancel()


def _make_text(task: Task, tokenizer: Tokenizer | None) -> CompletionText | None:
    return None if tokenizer is None else CompletionText(task.options, tokenizer.detokenizer())
