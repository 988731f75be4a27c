"""Generation options of transformers that are not fields of GenerationParams. It knows no model.

A test walks transformers' GenerationConfig: every attribute is a field of GenerationParams or stands in one table here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Absent:
    """An option that we do not have."""

    reason: str
    """Why not, and what to use instead."""
    neutral: tuple[Any, ...] = (None,)
    """The values at which it asks for nothing."""


_OF_THE_HUB = "transformers 5 runs code from the hub for it, which it no longer has itself"
_SPECULATION = "it is a hint for speculative decoding, which changes no token"
_ROUNDED = "a cache that is quantized gives other tokens, and all other kinds give the same ones"
_EXACT_CACHES = (
    *(None, "dynamic", "dynamic_full", "hybrid", "hybrid_chunked", "offloaded", "offloaded_hybrid"),
    *("offloaded_hybrid_chunked", "offloaded_static", "paged", "sliding_window", "static"),
)

# Options that change tokens. Values that are not neutral are refused.
ABSENT: Mapping[str, Absent] = {
    "assistant_ensemble_weight": Absent("it accepts tokens that the model itself would not choose"),
    "cache_implementation": Absent(_ROUNDED, _EXACT_CACHES),
    "constraints": Absent(_OF_THE_HUB),
    "diversity_penalty": Absent(_OF_THE_HUB, (None, 0.0)),
    "dola_layers": Absent(_OF_THE_HUB),
    "force_words_ids": Absent(_OF_THE_HUB),
    "forced_decoder_ids": Absent("it is of older versions: forced_bos_token_id forces the first token"),
    "guidance_scale": Absent(
        "each step would need a second forward of the model, with a prompt that is to be avoided", (None, 1, 1.0)
    ),
    "max_time": Absent("it cuts answers off by the clock, so that no two runs give the same"),
    "num_beam_groups": Absent(_OF_THE_HUB, (None, 1)),
    "penalty_alpha": Absent(_OF_THE_HUB, (None, 0, 0.0)),
    "remove_invalid_values": Absent(
        "it makes answers of NaN and infinity, which are an error of their row here (not_finite)", (None, False)
    ),
    "token_healing": Absent("it changes the prompt", (None, False)),
    "watermarking_config": Absent("it makes other tokens likely than the model does, to mark the text"),
}

# Options that change no token. A checkpoint that sets one is answered with a warning; a caller, who may expect the
# effect, is refused.
RESOURCE_HINTS: Mapping[str, Absent] = {
    "assistant_confidence_threshold": Absent(_SPECULATION, (None, 0.4)),
    "assistant_early_exit": Absent(_SPECULATION),
    "assistant_lookbehind": Absent(_SPECULATION, (None, 10)),
    "is_assistant": Absent(_SPECULATION, (None, False)),
    "low_memory": Absent("memory is bounded by engine.max_batch_tokens", (None, False)),
    "max_matching_ngram_size": Absent(_SPECULATION),
    "num_assistant_tokens": Absent(_SPECULATION, (None, 5, 20)),
    "num_assistant_tokens_schedule": Absent(_SPECULATION, (None, "constant", "heuristic")),
    "output_attentions": Absent("answers have no attentions", (None, False)),
    "output_hidden_states": Absent("answers have no hidden states: see the task feature-extraction", (None, False)),
    "output_logits": Absent("answers have no logits: see task_options.scores", (None, False)),
    "output_scores": Absent("task_options: {scores: true} adds the scores of answers and of tokens", (None, False)),
    "prompt_lookup_num_tokens": Absent(_SPECULATION),
    "return_dict_in_generate": Absent("answers are columns in any case: see task_options.scores", (None, False)),
    "speculation_type": Absent(_SPECULATION),
    "target_lookbehind": Absent(_SPECULATION, (None, 10)),
    "use_mtp": Absent(_SPECULATION, (None, False)),
}

# Options that never change a token or an answer here: how transformers stores, caches and compiles.
WITHOUT_EFFECT = frozenset(
    {
        "_from_model_config",
        "cache_config",
        "compile_config",
        "continuous_batching_config",
        "disable_compile",
        "max_cache_len",
        "prefill_chunk_size",
        "transformers_version",
        "use_cache",
    }
)


def is_neutral(name: str, value: Any) -> bool:
    """Return whether an option at this value asks for nothing that we do not do."""
    absent = absent_option(name)
    return name in WITHOUT_EFFECT or (absent is not None and value in absent.neutral)


def absent_option(name: str) -> Absent | None:
    """Return what is known of an option of transformers that we do not have, None for any other name."""
    return ABSENT.get(name) or RESOURCE_HINTS.get(name)
