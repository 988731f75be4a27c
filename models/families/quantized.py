"""Quantized checkpoints, by config.json's quantization_config: which are read, and what to do with others."""

from collections.abc import Mapping
from typing import Any

from batchloom.models.errors import UnsupportedModelError

NAMES = {"gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes with 4 bits", "gguf": "GGUF"}


def refuse_quantized(raw: Mapping[str, Any], where: str) -> None:
    """Raise UnsupportedModelError where a config.json's weights are quantized in a form that is not read.

    Those of bitsandbytes with 8 bits are: a row of integers has one scale.
    """
    found = raw.get("quantization_config")
    if not isinstance(found, Mapping) or _is_read(found):
        return
    method = str(found.get("quant_method") or "unknown")
    raise UnsupportedModelError(
        f"{where}: the weights are quantized by {NAMES.get(method, method)}, which is not read. Use the checkpoint "
        "that they were made from (engine.dtype: bfloat16 takes half the memory of float32). Or convert this one where "
        "the method's library is: load it with transformers, call model.dequantize() if the method has that, and "
        "save_pretrained."
    )


def _is_read(found: Mapping[str, Any]) -> bool:
    method = found.get("quant_method", "bitsandbytes" if found.get("load_in_8bit") else None)
    return method == "bitsandbytes" and bool(found.get("load_in_8bit")) and not found.get("load_in_4bit")
