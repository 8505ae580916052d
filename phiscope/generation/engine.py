"""Engine: the one decoding loop. Text, streams, servers and evaluation are written on top of it.

Each step is one forward over a packed batch that mixes decodes with chunks of prompts, so requests
come and go at any time, and what one of them gets does not depend on the others.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from phiscope.errors import NonFiniteError, UnsupportedError
from phiscope.generation.completion import CompletionJob
from phiscope.generation.logprobs import TokenLogprob, read_logprobs
from phiscope.generation.options import GenerationOptions
from phiscope.generation.request import Request
from phiscope.generation.runner import ChunkOf, ChunkResult, PlanMaker, Runner
from phiscope.generation.sampling import choose_tokens
from phiscope.generation.scheduler import Scheduler
from phiscope.generation.task import Inspect, Limits
from phiscope.model import PhiForCausalLM, refuse_dropout
from phiscope.tokenizer import Tokenizer


class Engine:
    """Runs requests on a model, `num_slots` completions at a time.

    `context` is the largest number of tokens of prompt and completion together (the model's own
    limit if None), `token_budget` the most tokens one step runs, and `num_tokens` how many ids are
    tokens (the tokenizer's, else all): those after them are never sampled. `make_plan` serves what
    requests inspect. Not for use from several threads at once.
    """

    def __init__(
        self,
        model: PhiForCausalLM,
        tokenizer: Tokenizer | None = None,
        *,
        num_slots: int = 8,
        context: int | None = None,
        token_budget: int = 512,
        num_tokens: int | None = None,
        make_plan: PlanMaker | None = None,
    ) -> None:
        if model.lm_head is None:
            raise UnsupportedError("a model loaded with layers= cannot generate; load it whole")
        self.tokenizer = tokenizer
        self.limits = Limits(
            config=model.config,
            context=_check_context(model, context),
            num_tokens=_count_ids(model, tokenizer, num_tokens),
            tokenizer=tokenizer,
            makes_plans=make_plan is not None,
        )
        self.scheduler: Scheduler[CompletionJob] = Scheduler(num_slots, token_budget)
        self._runner = Runner(
            model, num_slots=num_slots, num_places=self.limits.context, make_plan=make_plan
        )

    def submit(
        self,
        prompt: Sequence[int] | Tensor,
        options: GenerationOptions | None = None,
        *,
        inspect: Inspect | None = None,
    ) -> Request:
        """Queue a prompt: token ids, or embeddings (T, hidden).

        Everything is checked now: `ContextLengthError` gives both counts, `ValueError` says what
        else cannot be. Nothing runs before `step`, `run`, or the request is read.
        """
        refuse_dropout(self._runner.model)
        task = self.limits.make_task(prompt, options or GenerationOptions(), inspect)
        request = Request(
            task,
            self,
            tokenizer=self.tokenizer,
            num_ids=self.limits.num_tokens,
            device=self._runner.device,
        )
        for job in request.jobs:
            self.scheduler.add(job)
        return request

    def run(self) -> None:
        """Run until no request is left."""
        while self.step():
            pass

    @torch.inference_mode()  # always: what one step makes the next one writes into
    def step(self) -> bool:
        """Advance every running request by one forward, and say whether work is left.

        A step raises nothing: what fails is kept on its request. An interrupt cancels what runs.
        """
        try:
            self._start()
            self._run(self.scheduler.plan())
        except Exception as error:
            for job in self.scheduler.running:
                self._fail(job, error)
        except BaseException:
            for job in self.scheduler.running:
                self.cancel(_request(job))
            raise
        return not self.scheduler.is_idle

    def cancel(self, request: Request) -> None:
        """End a request at once and free its slots; one that is done stays as it is."""
        if not request.is_done:
            self.scheduler.drop(request)
            request.close("cancelled")

    def _start(self) -> None:
        """Give free slots to jobs; those whose prompt has run already choose their first token."""
        for admission in self.scheduler.admit():
            job = admission.job
            if admission.source is not None and job.slot is not None:
                self._runner.cache.copy(admission.source, job.slot, job.num_prompt)
        ready = [job for job in self.scheduler.running if not job.num_pending]
        self._sample([(job, _prompt_logits(job)) for job in ready])

    def _run(self, chunks: Sequence[ChunkOf]) -> None:
        """Run chunks and act on the results.

        If the forward fails each chunk is tried alone: what one request does to the model, or its
        size, fails only that request.
        """
        if not chunks:
            return
        try:
            results = self._runner.run(chunks)
        except Exception as error:
            if len(chunks) == 1:
                self._fail(chunks[0].job, error)
            else:
                for chunk in chunks:
                    self._run([chunk] if chunk.job.slot is not None else [])
            return
        self._act(results)

    def _act(self, results: Sequence[ChunkResult]) -> None:
        """Keep what came of each chunk and choose the tokens that are due."""
        for result in results:
            job = result.chunk.job
            try:
                if job.slot is not None:
                    self._absorb(result)
            except Exception as error:
                self._fail(job, error)
        self._sample(
            [
                (result.chunk.job, result.logits[-1])
                for result in results
                if not (result.chunk.job.has_ended or result.chunk.job.num_pending)
            ]
        )

    def _absorb(self, result: ChunkResult) -> None:
        chunk, job = result.chunk, result.chunk.job
        request = _request(job)
        if not result.is_finite:
            raise NonFiniteError(
                f"the logits of tokens up to {chunk.start + chunk.length - 1} have a NaN or an"
                " infinity: check weights and edits, and try fp32 if this is fp16"
            )
        request.keep_rows(job, result.read_rows(), chunk.length)
        if job.is_prefilling and job.task.scores_prompt:
            request.prompt_logprobs += self._score_prompt(result)
        job.num_cached += chunk.length
        if chunk.start < job.num_prompt == job.num_cached:
            self._end_prompt(request, job, result.logits)
        self._retire_if_complete(job)

    def _end_prompt(self, request: Request, job: CompletionJob, logits: Tensor) -> None:
        if job.task.options.n > 1:
            request.prompt_logits = logits[-1].clone()
        if job.task.options.max_new_tokens == 0:
            request.tell(job.end("length"))

    def _score_prompt(self, result: ChunkResult) -> list[TokenLogprob]:
        """Logprobs of the prompt's tokens that a chunk predicts; its first token has None."""
        chunk, task = result.chunk, result.chunk.job.task
        ids, num_top = task.prompt.ids, task.options.logprobs
        assert ids is not None, "make_task refuses to score embeddings"
        assert num_top is not None, "prompts are scored only with logprobs"
        first = [] if chunk.start else [TokenLogprob(ids[0], None, [])]
        targets = ids[chunk.start + 1 : chunk.start + chunk.length + 1]
        if not targets:
            return first
        logits, tops = result.logits[: len(targets)], [num_top] * len(targets)
        return first + read_logprobs(logits, targets, tops, self.limits.num_tokens)

    def _sample(self, due: Sequence[tuple[CompletionJob, Tensor]]) -> None:
        """Choose a token for each job from its logits (V,)."""
        if not due:
            return
        jobs = [job for job, _ in due]
        logits = torch.stack([row for _, row in due])
        ids, is_possible = choose_tokens(
            logits, [job.sampling for job in jobs], self.limits.num_tokens
        )
        token_ids, flags = torch.stack((ids, is_possible.to(ids))).tolist()  # one wait for a GPU
        logprobs = self._logprobs(jobs, logits, token_ids)
        choices = zip(jobs, token_ids, flags, logprobs, strict=True)
        for job, token_id, possible, logprob in choices:
            if job.slot is not None:
                self._take(job, token_id if possible else None, logprob)

    def _take(self, job: CompletionJob, token_id: int | None, logprob: TokenLogprob | None) -> None:
        try:
            if token_id is None:
                raise ValueError("bias and penalties leave no token to sample, or overflow")
            _request(job).tell(job.take(token_id, logprob))
        except Exception as error:
            self._fail(job, error)
        else:
            self._retire_if_complete(job)

    def _logprobs(
        self, jobs: Sequence[CompletionJob], logits: Tensor, token_ids: list[int]
    ) -> list[TokenLogprob | None]:
        tops = [
            (row, n) for row, job in enumerate(jobs) if (n := job.task.options.logprobs) is not None
        ]
        found: list[TokenLogprob | None] = [None] * len(jobs)
        if tops:
            rows = [row for row, _ in tops]
            chosen = [token_ids[row] for row in rows]
            logprobs = read_logprobs(
                logits[rows], chosen, [n for _, n in tops], self.limits.num_tokens
            )
            for row, logprob in zip(rows, logprobs, strict=True):
                found[row] = logprob
        return found

    def _retire_if_complete(self, job: CompletionJob) -> None:
        if job.is_complete:
            job.is_closed = True
            self.scheduler.finish(job)

    def _fail(self, job: CompletionJob, error: Exception) -> None:
        request = _request(job)
        if not request.is_done:
            self.scheduler.drop(request)
            request.close("error", error)


def _request(job: CompletionJob) -> Request:
    assert isinstance(job.family, Request), "the family of a completion is its request"
    return job.family


def _prompt_logits(job: CompletionJob) -> Tensor:
    logits = _request(job).prompt_logits
    assert logits is not None, "a prompt of several completions keeps its logits"
    return logits


def _check_context(model: PhiForCausalLM, context: int | None) -> int:
    limit = model.config.max_position_embeddings
    if context is None:
        return limit
    if not 1 <= context <= limit:
        raise ValueError(f"context must be 1 to {limit}, the model's own, got {context}")
    return context


def _count_ids(model: PhiForCausalLM, tokenizer: Tokenizer | None, num_tokens: int | None) -> int:
    limit = model.config.vocab_size
    if num_tokens is None:
        num_tokens = limit if tokenizer is None else min(tokenizer.num_tokens, limit)
    if not 1 <= num_tokens <= limit:
        raise ValueError(f"num_tokens must be 1 to {limit}, the rows of the head, got {num_tokens}")
    return num_tokens
