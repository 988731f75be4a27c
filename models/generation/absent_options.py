"""Generation options of transformers that are not fields of GenerationParams. It knows no model.

A test walks transformers' GenerationConfig: every attribute is a field of GenerationParams or stands in one table here.
"""

from typing import Any

# Options that change tokens, with the values at which they change none. Any other value is refused.
ABSENT: dict[str, tuple[Any, ...]] = {
    "assistant_ensemble_weight": (None,),  # accepts tokens that the model itself would not choose
    "cache_implementation": (  # "quantized" rounds keys and values
        *(None, "dynamic", "dynamic_full", "hybrid", "hybrid_chunked", "offloaded", "offloaded_hybrid"),
        *("offloaded_hybrid_chunked", "offloaded_static", "paged", "sliding_window", "static"),
    ),
    "constraints": (None,),
    "diversity_penalty": (None, 0.0),
    "dola_layers": (None,),
    "force_words_ids": (None,),
    "forced_decoder_ids": (None,),  # of older versions
    "guidance_scale": (None, 1, 1.0),
    "max_time": (None,),  # cuts answers off by the clock
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "remove_invalid_values": (None, False),
    "sequence_bias": (None,),
    "token_healing": (None, False),
    "top_h": (None,),
    "watermarking_config": (None,),
}

# Options of speed and memory that change no token, with the values at which they ask for nothing. A checkpoint that
# sets another is answered with a warning; a caller, who may expect the effect, is refused.
RESOURCE_HINTS: dict[str, tuple[Any, ...]] = {
    "assistant_confidence_threshold": (None, 0.4),
    "assistant_early_exit": (None,),
    "assistant_lookbehind": (None, 10),
    "is_assistant": (None, False),
    "low_memory": (None, False),
    "max_matching_ngram_size": (None,),
    "num_assistant_tokens": (None, 5, 20),
    "num_assistant_tokens_schedule": (None, "constant", "heuristic"),
    "prompt_lookup_num_tokens": (None,),
    "speculation_type": (None,),
    "target_lookbehind": (None, 10),
    "use_mtp": (None, False),
}

# Options that never change a token here: how transformers stores, caches, compiles and reports.
WITHOUT_EFFECT = frozenset(
    {
        "_from_model_config",
        "cache_config",
        "compile_config",
        "continuous_batching_config",
        "disable_compile",
        "max_cache_len",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "prefill_chunk_size",
        "return_dict_in_generate",
        "transformers_version",
        "use_cache",
    }
)


def is_neutral(name: str, value: Any) -> bool:
    """Return whether an option at this value asks for nothing that we do not do."""
    neutral = ABSENT.get(name, RESOURCE_HINTS.get(name, ()))
    return name in WITHOUT_EFFECT or value in neutral
