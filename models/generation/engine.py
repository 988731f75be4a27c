"""The engine turns requests into tokens. It knows no text, no rows and no Ray.

Requests wait, run and finish (continuous batching). In each step those that fit start (prefill), a lane's sequences get
one token each (decode), and what is done leaves and makes room. A GPU has one lane, a CPU up to four.

    engine.py         the loop                          model.py          what is asked of a model
    scheduler.py      who runs, in which lane           requests.py       requests and answers
    lanes.py          runners side by side              params.py         options of a request,
    runner.py         prefill, then decode steps        option_values.py  their values, and transformers'
    shared_runner.py  the same on several ranks         absent_options.py options that we do not have
                                                        enlarging.py      tensors that grow

    search/    how the next token is chosen             memory/    the KV cache and attention over it
      cohort.py       requests searched together          backend.py        what differs between devices
      beam_search.py  beam search,                        prefill.py        prompts into keys and values
      beams.py        growing and finished beams          prefixes.py       what prompts have in common
      sampling.py     greedy search and sampling          prompt_memory.py  a prompt's keys and values
      history.py      tokens and lengths so far           beginnings.py     an answer's prefix, behind an encoder
      processors.py   banned and forced tokens            cpu/  exact shapes      gpu/  paged blocks
      warpers.py      what is drawn from                    backend.py              backend.py
      randomness.py   random numbers of a sample            entry_pool.py           blocks.py  units.py
      vocabulary.py   ranks' columns of the logits          aged_pools.py           tables.py  shapes.py
      candidates.py   passes over the logits                attention.py            attention.py  graphs.py
"""

import logging
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from batchloom.models.device import is_out_of_memory, max_cached_tokens
from batchloom.models.errors import ParamsError, RequestError
from batchloom.models.generation.lanes import Lanes, Stepped
from batchloom.models.generation.model import Model, generative
from batchloom.models.generation.params import GenerationParams
from batchloom.models.generation.requests import NoAnswer, Request, RequestOutput, SequenceOutput
from batchloom.models.generation.scheduler import Scheduler
from batchloom.models.generation.search.cohort import StopText
from batchloom.models.generation.search.randomness import sample_key
from batchloom.models.malloc import keep_freed_memory

logger = logging.getLogger(__name__)

# Default number of sequences in a lane: products of 128 rows are near a CPU's best speed; a GPU needs more rows.
DEFAULT_SLOTS = {False: 128, True: 512}

__all__ = ["Engine", "EngineLoad", "EngineStats", "RequestOutput", "SequenceOutput"]


@dataclass(frozen=True)
class EngineStats:
    """What an engine has done so far."""

    num_steps: int = 0
    busy_seconds: float = 0.0  # inside step()
    num_prompt_tokens: int = 0  # of the prompts that started
    num_padded_prompt_tokens: int = 0  # positions that prefill attention computed, padding included
    num_output_tokens: int = 0  # of the returned answers


@dataclass(frozen=True)
class EngineLoad:
    """What an engine holds now."""

    num_sequences: int  # that grow
    num_waiting: int  # requests
    num_cached_tokens: int  # whose keys and values are held or reserved
    max_cached_tokens: int  # that fit in memory
    num_blocks: int  # of the KV cache, in use; only on GPUs is it made of blocks
    max_blocks: int  # that are allocated


class Engine:
    """Serves any number of requests at a time with one model.

    `max_batch_tokens`: prompt tokens computed in one step. `max_slots`: sequences that grow at a time. `stop_text`:
    converts token ids to the text in which stop strings are looked for, e.g. `lambda ids:
    tokenizer.decode_batch([ids])[0]`; called from any thread. `num_lanes`: lanes on a CPU, by default one for each of
    torch's threads, four at most.

    Raises: UnsupportedModelError where the model has no language-model head.
    """

    def __init__(
        self,
        model: Model,
        max_batch_tokens: int = 16384,
        max_slots: int | None = None,
        stop_text: StopText | None = None,
        num_lanes: int | None = None,
    ) -> None:
        self.model = generative(model)
        self.stats = EngineStats()
        self._stop_text = stop_text
        if model.device.type == "cpu":
            keep_freed_memory()
        self._lanes = Lanes(self.model, stop_text, num_lanes)
        self._scheduler = Scheduler(
            max_sequences=max_slots or DEFAULT_SLOTS[model.device.type == "cuda"] * len(self._lanes),
            max_prompt_tokens=max_batch_tokens,
            max_cached_tokens=max(1, int(max_cached_tokens(self.model) / self._lanes.runners[0].padding)),
            num_lanes=len(self._lanes),
        )
        self._resolved: dict[GenerationParams, GenerationParams] = {}

    @property
    def num_unfinished(self) -> int:
        """Requests that were added and are not answered yet, running or waiting."""
        return self._scheduler.num_unfinished

    @property
    def load(self) -> EngineLoad:
        """What is held now; may be asked on any thread."""
        scheduler, blocks = self._scheduler, [runner.blocks for runner in self._lanes.runners]
        return EngineLoad(
            scheduler.num_running_sequences,
            scheduler.num_waiting,
            scheduler.num_reserved_tokens,
            scheduler.max_cached_tokens,
            sum(num for num, _ in blocks),
            sum(most for _, most in blocks),
        )

    def add(
        self,
        request_id: Hashable,
        prompt_ids: Sequence[int],
        params: GenerationParams | None = None,
        seed: int = 0,
        answer_prefix: Sequence[int] = (),
    ) -> None:
        """Queue a request. `seed` decides its random numbers.

        `answer_prefix`: tokens that the answer begins with and its outputs do not repeat. An encoder-decoder's decoder
        reads them behind its start token, as transformers' `decoder_input_ids` (a forced first token is not forced
        then: begin with it where the answer should), a decoder-only model behind its prompt. `max_length` and
        `min_length` count them, as in transformers, `max_new_tokens` and `min_new_tokens` do not.

        Raises: RequestError where the request cannot be served, ParamsError where its params cannot.
        """
        self._scheduler.add(self._request(request_id, prompt_ids, params, seed, answer_prefix))

    def step(self) -> list[RequestOutput]:
        """Start what fits, compute one token for each running sequence of a lane, and return what is answered.

        Where memory runs out, everything that runs starts again with half the budget; a request that does not fit alone
        is answered with an error, as is one for which the model gives NaN or infinity.

        Raises: RankLostError where a process with part of the model ended, DeviceError where it failed.
        """
        if not self.num_unfinished:
            return []
        began = time.perf_counter()
        outputs: list[RequestOutput] = []
        self._begin_steps()
        try:
            for stepped in self._lanes.take():
                outputs += self._answer(stepped)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            outputs += self._make_room()
        self.stats = replace(self.stats, busy_seconds=self.stats.busy_seconds + time.perf_counter() - began)
        return outputs

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: GenerationParams | Sequence[GenerationParams] | None = None,
        seed: int = 0,
        answer_prefixes: Sequence[Sequence[int]] | None = None,
    ) -> list[RequestOutput]:
        """Return the answers to all prompts, in their order; `params` for all of them or one for each.

        `answer_prefixes`: one for each prompt, of which some may be empty; see `add`.

        A request that does not fit into memory alone, or for which the model gives NaN or infinity, has an `error` in
        place of outputs; the others are answered.

        Raises: RequestError where a prompt cannot be served or requests of `add` are unfinished, ParamsError where
        params cannot be used, and what `step` raises.
        """
        each = [params] * len(prompts) if params is None or isinstance(params, GenerationParams) else list(params)
        if len(each) != len(prompts):
            raise ParamsError(
                f"{len(prompts)} prompts came with {len(each)} params; give one for all, or one for each."
            )
        prefixes = [()] * len(prompts) if answer_prefixes is None else answer_prefixes
        if len(prefixes) != len(prompts):
            raise RequestError(f"{len(prompts)} prompts came with {len(prefixes)} answer_prefixes; give one for each.")
        if self.num_unfinished:
            raise RequestError(
                f"generate() was called while {self.num_unfinished} requests of add() are unfinished, whose answers it "
                "would take. Call step() until they are answered, or use another engine."
            )
        # All are checked before one is added, so that a refusal leaves nothing in the queue.
        requests = [
            self._request(index, prompt, own, sample_key(seed, index), prefix)
            for index, (prompt, own, prefix) in enumerate(zip(prompts, each, prefixes, strict=True))
        ]
        for request in requests:
            self._scheduler.add(request)
        answers: dict[Hashable, RequestOutput] = {}
        while self.num_unfinished:
            answers |= {output.request_id: output for output in self.step()}
        return [answers[index] for index in range(len(prompts))]

    def _begin_steps(self) -> None:
        """Begin the next step of every idle lane, with the requests that may start in it."""
        admitted = self._scheduler.admit(self._lanes.idle)
        num_busy = sum(bool(load.running) for load in self._scheduler.loads)
        for lane, started in admitted.items():
            if self._scheduler.loads[lane].running:
                self._lanes.begin(lane, started, num_busy)

    def _answer(self, stepped: Stepped) -> list[RequestOutput]:
        """Free what finished requests reserved, count the step, and return the answers."""
        outputs = []
        for done in stepped.done:
            self._scheduler.release(done.request)
            outputs.append(
                RequestOutput(done.request.request_id, done.request.num_prompt_tokens, done.outputs, done.error)
            )
        before = self.stats
        self.stats = replace(
            before,
            num_steps=before.num_steps + 1,
            num_prompt_tokens=before.num_prompt_tokens + sum(request.num_prompt_tokens for request in stepped.started),
            num_padded_prompt_tokens=before.num_padded_prompt_tokens + stepped.num_positions,
            num_output_tokens=before.num_output_tokens
            + sum(len(one.token_ids) for output in outputs for one in output.outputs),
        )
        return outputs

    def _make_room(self) -> list[RequestOutput]:
        """After an out-of-memory error, start again with half the budgets, which changes no answer."""
        num_running = len(self._scheduler.running)
        self._lanes.clear()
        if num_running == 1:
            return [_no_room(self._scheduler.give_up())]
        self._scheduler.halve()
        logger.warning(
            "out of memory with %d requests; they start again with at most %d cached tokens, %d prompt tokens a step",
            num_running,
            self._scheduler.max_cached_tokens,
            self._scheduler.max_prompt_tokens,
        )
        return []

    def _request(
        self,
        request_id: Hashable,
        prompt_ids: Sequence[int],
        params: GenerationParams | None,
        seed: int,
        answer_prefix: Sequence[int],
    ) -> Request:
        resolved = self._resolve(params or GenerationParams())
        model = self.model
        request = Request(
            request_id,
            list(prompt_ids),
            resolved,
            seed,
            model.is_encoder_decoder,
            model.max_positions,
            tuple(answer_prefix),
        )
        request.check(model.config.vocab_size)
        return request

    def _resolve(self, params: GenerationParams) -> GenerationParams:
        if params not in self._resolved:
            resolved = params.resolve(self.model.generation_defaults)
            if resolved.stops and self._stop_text is None:
                raise ParamsError(
                    f"stop_strings = {list(resolved.stops)} needs the text of tokens: make the engine with stop_text=."
                )
            self._resolved[params] = resolved
        return self._resolved[params]


def _no_room(request: Request) -> RequestOutput:
    logger.warning("out of memory on request %s alone: it gets an error", request.request_id)
    message = (
        f"A prompt of {request.num_prompt_tokens} tokens and {request.num_sequences} sequences of up to "
        f"{request.max_new_tokens} new tokens do not fit into memory, though nothing else ran. Shorten the text, or "
        "lower max_new_tokens, num_beams or num_return_sequences."
    )
    return RequestOutput(request.request_id, request.num_prompt_tokens, [], NoAnswer("out_of_memory", message))
