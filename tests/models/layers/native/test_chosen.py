"""Where kernels can be had they compute: tests of values alone would pass by plain torch, too."""

from collections import Counter

import pytest

from batchloom.models import Engine, GenerationParams, load_model
from batchloom.models.layers.native import library
from batchloom.models.layers.native.build import features
from batchloom.models.layers.native.library import dense_kernels
from tests.models.generation.conftest import make_checkpoint

pytestmark = pytest.mark.skipif(
    "avx512_bf16" not in features() or dense_kernels("bfloat16") is None,
    reason="no compiler, a processor without bfloat16, or one with AMX, which oneDNN uses",
)
PROMPTS = [[5, 6, 7, 8, 2], [9, 2], list(range(10, 40))]
OF_ALL = {"norm_of_sum", "packed_attention", "step_attention", "log_normalizers"}


@pytest.fixture
def calls(monkeypatch):
    """How often each function of the library was called."""
    whole, called = library.kernels(), Counter()

    class Counting:
        def __getattr__(self, name):
            def call(*arguments):
                called[name] += 1
                return getattr(whole, name)(*arguments)

            return call

    monkeypatch.setattr(library, "kernels", Counting)
    return called


@pytest.mark.parametrize(
    ("dtype", "products"), [("bfloat16", {"bfloat16_product"}), ("int8", {"int8_product", "bfloat16_product"})]
)
@pytest.mark.parametrize("family", ["bart", "bloom"])
def test_a_search_is_computed_by_kernels(tmp_path, calls, family, dtype, products):
    """In int8 the head's product is in bfloat16."""
    make_checkpoint(str(tmp_path), family)
    engine = Engine(load_model(str(tmp_path), dtype=dtype))
    calls.clear()  # of packing
    engine.generate(PROMPTS, [GenerationParams(max_new_tokens=5, min_new_tokens=5, num_beams=2)] * len(PROMPTS))
    assert set(calls) == OF_ALL | products


def test_in_float32_no_kernel_computes(tmp_path, calls):
    """Float32 is what answers are exact in: it stays torch's own."""
    make_checkpoint(str(tmp_path), "bart")
    Engine(load_model(str(tmp_path), dtype="float32")).generate(PROMPTS, [GenerationParams(max_new_tokens=5)] * 3)
    assert not calls
