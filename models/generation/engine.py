"""The engine turns requests into tokens. It knows no text, no rows and no Ray.

Requests wait, run and finish. In each step those that fit start, a lane's sequences get one token each, and what is
done leaves and makes room: the batch never drains while work is left. A GPU has one lane, a CPU up to four.

    engine.py      the loop                        sequence.py        requests and answers
    scheduler.py   who runs, and where             params.py          what a caller may ask, and in
                                                   option_values.py   which values
    lanes.py       runners side by side            shared_runner.py   a runner on several ranks
    runner.py      prompts, then steps
    prompts.py     prompts into keys and values    prefixes.py        what prompts have in common
    cohort.py      requests that decode alike      decoder.py         keys, values and logits of a step, on
    pooled_decoder.py  CPUs, in exact shapes, or   block_decoder.py   GPUs, in few shapes
    step_attention.py  attention of a step         block_attention.py attention of a step
    kv_cache.py    keys and values of prompts      blocks.py          keys and values in equal blocks
        and of what was said, in pools             block_units.py     blocks of what was said
    pools.py       such pools, by age              block_rows.py      which rows read which blocks
                                                   step_shape.py      how many of each
                                                   graphs.py          steps as CUDA graphs
    beam.py        beam search                     history.py         what was said so far
    sampling.py    greedy search and sampling      processors.py      what may not be said, or must
    vocabulary.py  who holds which logits          warpers.py         what is too unlikely to be drawn
    candidates.py  passes over them                randomness.py      numbers that belong to a sample
    device_memory.py   what fits                   crossings.py       between host and device
"""

import logging
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from batchloom.models.device import is_out_of_memory, keep_freed_memory, max_cached_tokens
from batchloom.models.errors import ParamsError, RequestError
from batchloom.models.generation.lanes import Lanes, Stepped
from batchloom.models.generation.params import GenerationParams
from batchloom.models.generation.requests import Request, RequestOutput, SequenceOutput
from batchloom.models.generation.scheduler import Scheduler
from batchloom.models.generation.search.cohort import StopText
from batchloom.models.generation.search.randomness import sample_key

logger = logging.getLogger(__name__)

# Sequences of a lane where nobody says: products of 128 rows are near a CPU's best; a GPU's want more.
DEFAULT_SLOTS = {False: 128, True: 512}

__all__ = ["Engine", "EngineStats", "RequestOutput", "SequenceOutput"]


@dataclass(frozen=True)
class EngineStats:
    """What an engine did since it was made."""

    num_steps: int = 0
    busy_seconds: float = 0.0  # inside step()
    num_prompt_tokens: int = 0  # of the prompts that were started
    num_padded_prompt_tokens: int = 0  # positions that attention over prompts computed, padding included
    num_output_tokens: int = 0  # of the answers returned


class Engine:
    """Serves any number of requests at a time with one model.

    `max_batch_tokens`: prompt tokens computed in one step. `max_slots`: sequences that grow at a time. `stop_text`:
    token ids to the text in which stop strings are looked for, e.g. `lambda ids: tokenizer.decode_batch([ids])[0]`; any
    thread may call it. `num_lanes`: threads that step apart on a CPU: torch's number, four at most. Elsewhere one.
    """

    def __init__(
        self,
        model: Any,
        max_batch_tokens: int = 16384,
        max_slots: int | None = None,
        stop_text: StopText | None = None,
        num_lanes: int | None = None,
    ) -> None:
        self.model = model
        self.stats = EngineStats()
        self._stop_text = stop_text
        if model.device.type == "cpu":
            keep_freed_memory()
        self._lanes = Lanes(model, stop_text, num_lanes)
        self._scheduler = Scheduler(
            max_sequences=max_slots or DEFAULT_SLOTS[model.device.type == "cuda"] * len(self._lanes),
            max_prompt_tokens=max_batch_tokens,
            max_cached_tokens=max(1, int(max_cached_tokens(model) / self._lanes.runners[0].padding)),
            num_lanes=len(self._lanes),
        )
        self._resolved: dict[GenerationParams, GenerationParams] = {}

    @property
    def num_unfinished(self) -> int:
        """Requests that were added and are not answered yet."""
        return self._scheduler.num_unfinished

    def add(
        self, request_id: Hashable, prompt_ids: Sequence[int], params: GenerationParams | None = None, seed: int = 0
    ) -> None:
        """Lets a request wait for a place. Raises RequestError if it cannot be served, ParamsError for its params."""
        self._scheduler.add(self._request(request_id, prompt_ids, params, seed))

    def step(self) -> list[RequestOutput]:
        """Starts what fits, gives the running sequences of a lane one token each, and returns what is answered.

        Where memory runs out, all that runs starts again, half of it at a time; a request that has no room alone comes
        back with an error.
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
    ) -> list[RequestOutput]:
        """Answers to all prompts, in their order; `params` for all of them or one for each.

        A request on which memory runs out has an `error` in place of outputs; the others are answered.
        """
        each = [params] * len(prompts) if params is None or isinstance(params, GenerationParams) else list(params)
        if len(each) != len(prompts):
            raise ParamsError(
                f"{len(prompts)} prompts came with {len(each)} params; give one for all, or one for each."
            )
        if self.num_unfinished:
            raise RequestError(
                f"generate() was called while {self.num_unfinished} requests of add() are unfinished, whose answers it "
                "would take. Call step() until they are answered, or use another engine."
            )
        # All are made before one is added: a refusal leaves none behind, to be answered in another call's place.
        requests = [
            self._request(index, prompt, own, sample_key(seed, index))
            for index, (prompt, own) in enumerate(zip(prompts, each, strict=True))
        ]
        for request in requests:
            self._scheduler.add(request)
        answers: dict[Hashable, RequestOutput] = {}
        while self.num_unfinished:
            answers |= {output.request_id: output for output in self.step()}
        return [answers[index] for index in range(len(prompts))]

    def _begin_steps(self) -> None:
        """Every lane that is idle goes on, with what may start in it."""
        admitted = self._scheduler.admit(self._lanes.idle)
        num_busy = sum(bool(load.running) for load in self._scheduler.loads)
        for lane, started in admitted.items():
            if self._scheduler.loads[lane].running:
                self._lanes.begin(lane, started, num_busy)

    def _answer(self, stepped: Stepped) -> list[RequestOutput]:
        """Gives back what those held that are done, and counts."""
        outputs = []
        for done in stepped.done:
            self._scheduler.release(done.request)
            outputs.append(RequestOutput(done.request.request_id, len(done.request.prompt_ids), done.outputs))
        before = self.stats
        self.stats = replace(
            before,
            num_steps=before.num_steps + 1,
            num_prompt_tokens=before.num_prompt_tokens + sum(len(request.prompt_ids) for request in stepped.started),
            num_padded_prompt_tokens=before.num_padded_prompt_tokens + stepped.num_positions,
            num_output_tokens=before.num_output_tokens
            + sum(len(one.token_ids) for output in outputs for one in output.outputs),
        )
        return outputs

    def _make_room(self) -> list[RequestOutput]:
        """After memory ran out: half as much at a time from now on. Answers do not depend on what ran beside them."""
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
        self, request_id: Hashable, prompt_ids: Sequence[int], params: GenerationParams | None, seed: int
    ) -> Request:
        resolved = self._resolve(params or GenerationParams())
        request = Request(request_id, list(prompt_ids), resolved, seed, self.model.is_encoder_decoder)
        request.check(self.model.config.vocab_size, self.model.max_positions)
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
        f"A prompt of {len(request.prompt_ids)} tokens and {request.num_sequences} sequences of up to "
        f"{request.max_new_tokens} new tokens do not fit into memory, though nothing else ran. Shorten the text, or "
        "lower max_new_tokens, num_beams or num_return_sequences."
    )
    return RequestOutput(request.request_id, len(request.prompt_ids), [], message)
