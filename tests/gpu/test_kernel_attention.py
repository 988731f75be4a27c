"""Packed attention by one kernel call, and batches side by side, on a GPU: what each sequence gets alone."""

import pytest
import torch

from batchloom.models.layers.attention import EncoderMemory, PackedAttention
from batchloom.models.layers.grouped_attention import DeviceGroups
from batchloom.models.layers.kernel_attention import KernelAttention
from batchloom.models.layers.positions import alibi_slopes
from batchloom.models.single_pass.single_pass import SinglePass
from benchmarks.random_model import random_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]

CUDA = torch.device("cuda", 0)
LENGTHS = [1, 129, 3, 64, 64, 2, 300]
# A result is a mean of values near 1 in the dtype's own precision, and its weights are rounded to the dtype once more.
CLOSE = {torch.bfloat16: 2**-6, torch.float16: 2**-9}


def heads(num_tokens: int, width: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    values = torch.randn(num_tokens, 4, width, generator=torch.Generator().manual_seed(seed))
    return values.to(CUDA, dtype)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("width", [16, 20, 64, 128, 256, 320])
@pytest.mark.parametrize("kind", ["both ways", "causal", "alibi", "last", "cross"])
def test_each_sequence_gets_what_groups_give_in_float32(dtype: torch.dtype, width: int, kind: str) -> None:
    num = sum(LENGTHS)
    q, k, v = (heads(num, width, dtype, seed) for seed in (1, 2, 3))
    asked = [length % 7 + 1 for length in LENGTHS]
    slopes = alibi_slopes(4).to(CUDA) if kind == "alibi" else None

    def attended(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if kind == "cross":
            return PackedAttention(asked, True, cross=EncoderMemory(LENGTHS, [(k, v)])).cross_attend(0, q)
        context = PackedAttention(LENGTHS, kind in ("causal", "alibi"), slopes)
        return (context.last() if kind == "last" else context).attend(0, q, k, v)

    q = q[: {"cross": sum(asked), "last": len(LENGTHS)}.get(kind, num)]
    found, right = attended(q, k, v), attended(q.float(), k.float(), v.float())
    torch.testing.assert_close(found.float(), right, atol=CLOSE[dtype], rtol=CLOSE[dtype])


def test_the_kernel_is_used_where_it_can_be() -> None:
    def kind(dtype: torch.dtype, head_dim: int) -> type:
        return type(PackedAttention(LENGTHS, True).plan(CUDA, dtype, head_dim))

    assert kind(torch.bfloat16, 64) is kind(torch.float16, 256) is KernelAttention
    assert kind(torch.float32, 64) is kind(torch.bfloat16, 264) is DeviceGroups


@pytest.mark.parametrize("name", ["tiny-bart", "tiny-bloom"])
def test_batches_side_by_side_give_what_one_after_the_other_gives(name: str) -> None:
    model = random_model(name, CUDA, torch.float32, deviation=0.4)
    chance = torch.Generator().manual_seed(0)
    texts = [torch.randint(4, 90, (1 + row * 7 % 40,), generator=chance).tolist() for row in range(200)]
    alone = SinglePass(model, max_batch_tokens=64, num_workers=1).embed(texts)
    found = SinglePass(model, max_batch_tokens=64).embed(texts)
    # equal batches and kernels, so equal bits
    assert torch.equal(found, alone)
