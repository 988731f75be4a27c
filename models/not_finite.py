"""What to do about NaN and infinity in a model's results, by dtype. It knows no model and no request."""

import torch

ADVICE = {
    torch.float16: "float16 holds numbers up to 65504: load the model in bfloat16 or float32 (engine.dtype of a job).",
    torch.bfloat16: "Load the model in float32 (engine.dtype of a job); if they are not finite there either, the "
    "checkpoint holds NaN or infinite weights.",
    torch.float32: "The checkpoint probably holds NaN or infinite weights: download or convert it again.",
}


def not_finite(what: str, dtype: torch.dtype) -> str:
    """Return what was found and what to change; `what`: where, such as "The logits of new token 3"."""
    return f"{what} are not finite (NaN or infinity), in {str(dtype).removeprefix('torch.')}. {ADVICE[dtype]}"
