"""Engine: the one decoding loop. Text, streams, servers and evaluation are written on top of it.

Each step is one forward over a packed batch that mixes decodes with chunks of prompts, so requests
come and go at any time, and what one of them gets does not depend on the others. A decode runs its
last token, and draft tokens behind it if the request has a draft. What a slot holds stays when its
request is done, and a prompt that begins with the same tokens, under equal edits, starts from it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from phiscope.errors import NonFiniteError, UnsupportedError
from phiscope.generation.choice import Choice, Due, choose
from phiscope.generation.chunks import ChunkOf, ChunkResult
from phiscope.generation.completion import CompletionJob, FinishReason, cut_rows
from phiscope.generation.draft_model import DraftChoice, DraftModel
from phiscope.generation.drafting import PROMPT_LOOKUP, Draft, DraftAsk, Drafter, PromptLookup
from phiscope.generation.fixed_step import FixedSteps, Replay
from phiscope.generation.logprobs import TokenLogprob, read_logprobs
from phiscope.generation.model_state import ModelState, read_state
from phiscope.generation.options import GenerationOptions
from phiscope.generation.request import Request
from phiscope.generation.runner import PlanMaker, Runner
from phiscope.generation.scheduler import Chunk, Scheduler
from phiscope.generation.task import Inspect, Limits
from phiscope.model import PhiForCausalLM, refuse_dropout
from phiscope.tokenizer import Tokenizer


class Engine:
    """Runs requests on a model, `num_slots` completions at a time.

    `context` is the largest number of tokens of prompt and completion together (the model's own
    limit if None), `token_budget` the most tokens one step runs, and `num_tokens` how many ids are
    tokens (the tokenizer's, else all): those after them are never sampled. `make_plan` serves what
    requests inspect. With `replay`, steps that only decode are recorded and replayed. Not for use
    from several threads at once.

    With `reuses_prefixes`, which may be set at any time, the model is looked at whenever a request
    starts, and what was computed before a change of its weights is forgotten. Not every change can
    be seen: after writing to few numbers of a weight through `.data` or numpy, call
    `forget_prefixes`.
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
        reuses_prefixes: bool = True,
        replay: Replay | None = None,
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
            most_draft_tokens=token_budget // num_slots - 1 if num_slots > 0 else 0,
        )
        self.scheduler: Scheduler[CompletionJob] = Scheduler(num_slots, token_budget)
        fixed = None
        if replay is not None:
            fixed = FixedSteps(model, replay, num_tokens=self.limits.num_tokens)
        self._runner = Runner(
            model,
            num_slots=num_slots,
            num_places=self.limits.context,
            make_plan=make_plan,
            fixed=fixed,
        )
        self.prompt_lookup = PromptLookup(self.limits.num_tokens)
        """Drafts from what the text has said before."""
        self._draft_model: DraftModel | None = None
        self.reuses_prefixes = reuses_prefixes
        self._state: ModelState | None = None
        """Of the model, as it was when the keys and values in the slots were computed."""

    @property
    def fixed_steps(self) -> FixedSteps | None:
        """The recorded steps, to switch them off and on again."""
        return self._runner.fixed

    def submit(
        self,
        prompt: Sequence[int] | Tensor,
        options: GenerationOptions | None = None,
        *,
        inspect: Inspect | None = None,
        drafter: Drafter | None = None,
    ) -> Request:
        """Queue a prompt: token ids, or embeddings (T, hidden).

        The tokens follow the model's distribution whatever `drafter` (`prompt_lookup`, or one of
        `draft_with`) guesses, and a greedy completion is the same without it.

        Everything is checked now: `ContextLengthError` gives both counts, `ValueError` says what
        else cannot be. Nothing runs before `step`, `run`, or the request is read.
        """
        refuse_dropout(self._runner.model)
        task = self.limits.make_task(prompt, options or GenerationOptions(), inspect, drafter)
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

    def select_drafter(self, draft: DraftChoice) -> Drafter | None:
        """The drafter meant by a name or a loaded model; `UnsupportedError` if tokens differ."""
        if draft is None:
            return None
        if isinstance(draft, str):
            if draft == PROMPT_LOOKUP:
                return self.prompt_lookup
            raise ValueError(f"no draft {draft!r}; give {PROMPT_LOOKUP!r} or a loaded Phi")
        if self.tokenizer is None or not self.tokenizer.has_tokens_of(draft.tokenizer):
            raise UnsupportedError("the draft model has other tokens than the model it drafts for")
        return self.draft_with(draft.model)

    def draft_with(self, model: PhiForCausalLM) -> DraftModel:
        """A drafter by a smaller model with the same tokens; the last one made is kept.

        Raises `UnsupportedError` for a model that cannot draft for this one.
        """
        if self._draft_model is None or self._draft_model.model is not model:
            self._draft_model = DraftModel(
                model,
                num_slots=self.scheduler.num_slots,
                num_places=self.limits.context,
                num_tokens=self.limits.num_tokens,
                token_budget=self.scheduler.token_budget,
            )
        return self._draft_model

    def forget_prefixes(self) -> None:
        """Let every later prompt be run whole, whatever of it has been run before."""
        self.scheduler.forget_prefixes()

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
            self._draft()
            self._run(self.scheduler.plan())
        except Exception as error:
            for job in self.scheduler.running:
                self._fail(job, error)
        except BaseException:
            for job in self.scheduler.running:
                self._close(_request(job), "cancelled")
            raise
        return not self.scheduler.is_idle

    def cancel(self, request: Request) -> None:
        """End a request at once and free its slots; one that is done stays as it is."""
        if not request.is_done:
            self.scheduler.drop(request, keeps_prefix=True)
            request.close("cancelled")

    def _start(self) -> None:
        """Give free slots to jobs; those whose prompt has run already choose their first token."""
        self._look_at_model()
        for admission in self.scheduler.admit():
            job = admission.job
            if admission.source is not None and job.slot is not None:
                self._runner.cache.copy(admission.source, job.slot, job.num_cached)
        ready = [job for job in self.scheduler.running if not job.num_pending]
        due = [Due(job, _prompt_logits(job)[None]) for job in ready]
        for job, choices in zip(ready, choose(due, self.limits.num_tokens), strict=True):
            self._take(job, choices)

    def _look_at_model(self) -> None:
        """Before a job starts: forget what a model computed that is not this one any more."""
        if not self.scheduler.num_waiting or not self.scheduler.num_free_slots:
            return
        state = read_state(self._runner.model) if self.reuses_prefixes else None
        if state is None or not state.equals(self._state):
            self.scheduler.forget_prefixes()
        self._state = state

    def _draft(self) -> None:
        """Let each drafter guess for its jobs what the next step then checks."""
        asks: dict[Drafter, list[tuple[CompletionJob, DraftAsk]]] = {}
        for job in self.scheduler.running:
            job.propose(Draft())
            ask = job.ask_draft()
            if ask is not None and job.task.drafter is not None:
                asks.setdefault(job.task.drafter, []).append((job, ask))
        for drafter, pairs in asks.items():
            try:
                drafts = drafter.draft([ask for _, ask in pairs])
                for (job, _), draft in zip(pairs, drafts, strict=True):
                    job.propose(draft)
            except Exception as error:
                for job, _ in pairs:
                    self._fail(job, error)

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
                self._retry_or_fail(chunks[0], error)
            else:
                for chunk in chunks:
                    self._run([chunk] if chunk.job.slot is not None else [])
            return
        self._act(results)

    def _act(self, results: Sequence[ChunkResult]) -> None:
        """Keep what came of each chunk's known tokens, and choose the tokens that are due."""
        for result in results:
            job = result.chunk.job
            try:
                if job.slot is not None:
                    self._absorb(result)
            except Exception as error:
                self._retry_or_fail(result.chunk, error)
        choosing = [
            result
            for result in results
            if not (result.chunk.job.has_ended or result.chunk.job.num_pending)
        ]
        due = [Due(x.chunk.job, x.last_logits, x.greedy_id) for x in choosing]
        for result, choices in zip(choosing, choose(due, self.limits.num_tokens), strict=True):
            self._take(result.chunk.job, choices, result)

    def _retry_or_fail(self, chunk: ChunkOf, error: Exception) -> None:
        """No draft token fails a request that would never have said it: run without them first."""
        if not chunk.num_draft:
            self._fail(chunk.job, error)
            return
        chunk.job.propose(Draft())
        self._run([Chunk(chunk.job, chunk.start, chunk.num_known)])

    def _absorb(self, result: ChunkResult) -> None:
        chunk, job = result.chunk, result.chunk.job
        request = _request(job)
        if not result.is_finite:
            raise NonFiniteError(
                f"the logits of tokens up to {chunk.start + chunk.num_known - 1} have a NaN or an"
                " infinity: check weights and edits, and try fp32 if this is fp16"
            )
        self._keep_rows(result, slice(0, chunk.num_known))
        if job.is_prefilling and job.task.scores_prompt:
            request.prompt_logprobs += self._score_prompt(result)
        job.num_cached += chunk.num_known
        job.num_drafted += chunk.num_draft
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

    def _take(
        self, job: CompletionJob, choices: Sequence[Choice], result: ChunkResult | None = None
    ) -> None:
        """Add the tokens chosen, up to one that ends the completion."""
        if job.slot is None:
            return
        try:
            num_run = self._tell(job, choices)
            if result is not None and num_run:
                self._keep_rows(
                    result, slice(result.chunk.num_known, result.chunk.num_known + num_run)
                )
            job.num_cached += num_run
            job.num_accepted += num_run
        except Exception as error:
            self._fail(job, error)
        else:
            self._retire_if_complete(job)

    def _tell(self, job: CompletionJob, choices: Sequence[Choice]) -> int:
        """Let the request know, and count the tokens that have been run as draft tokens."""
        num_run = 0
        for choice in choices:
            if choice.token_id is None:
                raise ValueError("bias and penalties leave no token to sample, or overflow")
            _request(job).tell(job.take(choice.token_id, choice.logprob))
            num_run += choice.is_draft
            if job.has_ended:
                break
        return num_run

    def _keep_rows(self, result: ChunkResult, span: slice) -> None:
        """Keep the rows of some of a chunk's tokens."""
        rows = result.read_rows()
        if span.stop - span.start < result.chunk.length:
            rows = {name: cut_rows(name, x, span) for name, x in rows.items()}
        job = result.chunk.job
        _request(job).keep_rows(job, rows, span.stop - span.start)

    def _retire_if_complete(self, job: CompletionJob) -> None:
        if job.is_complete:
            job.is_closed = True
            self.scheduler.finish(job)

    def _fail(self, job: CompletionJob, error: Exception) -> None:
        self._close(_request(job), "error", error)

    def _close(
        self, request: Request, reason: FinishReason, error: Exception | None = None
    ) -> None:
        """End a request and forget what its slots hold, of which nobody knows how good it is."""
        if not request.is_done:
            self.scheduler.drop(request)
            request.close(reason, error)


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
