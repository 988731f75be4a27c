"""The norm of a sum: the kernel gives what plain torch gives; where no GPU is, Triton's interpreter runs it."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not made for this platform")

from batchloom.models.kernels import for_a_graph, launches_are_free
from batchloom.models.layers import norm as norms
from batchloom.models.layers.norm import FUSED_ROWS, Norm, plain_norm_of_sum
from batchloom.models.layers.norm_kernel import norm_of_sum

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# The sum is equal; of its norm the sums over a row come in another order, and the result is rounded to 8 bits once.
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2**-9), (torch.bfloat16, 2**-6)]
)
@pytest.mark.parametrize(("num_rows", "width"), [(1, 16), (3, 48), (5, 100), (2, 1000), (0, 16)])
def test_the_kernel_gives_the_sum_and_its_norm(num_rows: int, width: int, dtype: torch.dtype, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(width)
    norm = Norm(width, eps=1e-5)
    torch.nn.init.normal_(norm.weight, generator=generator)
    torch.nn.init.normal_(norm.bias, generator=generator)
    norm = norm.to(DEVICE, dtype).requires_grad_(False)
    residual, update = (torch.randn(num_rows, width, generator=generator).to(DEVICE, dtype) for _ in range(2))
    residual = residual * 3 + 5
    found_sum, found = norm_of_sum(residual, update, norm)
    right_sum, right = plain_norm_of_sum(residual, update, norm)
    if DEVICE == "cpu" and dtype == torch.bfloat16:  # the interpreter cuts bits off where a GPU rounds
        torch.testing.assert_close(found_sum, right_sum, atol=0, rtol=2**-7)
        right = norm(found_sum)
    else:
        assert torch.equal(found_sum, right_sum)
    torch.testing.assert_close(found, right, atol=tolerance, rtol=tolerance)


def test_a_row_that_is_not_finite_stays_so_and_alone() -> None:
    norm = Norm(32).to(DEVICE).requires_grad_(False)
    residual = torch.ones(3, 32, device=DEVICE)
    residual[1, 5] = torch.nan
    _, found = norm_of_sum(residual, residual, norm)
    assert found.isnan().all(1).tolist() == [False, True, False]


def test_few_rows_are_one_kernel_for_a_graph_alone_and_on_its_thread_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []

    def norm_of_sum(*args: object) -> tuple[torch.Tensor, torch.Tensor]:
        launched.append(len(args[0]))  # type: ignore[arg-type]
        return plain_norm_of_sum(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(norms, "_norm_of_sum_on", lambda _: norm_of_sum)
    norm, rows, many = Norm(16), torch.ones(3, 16), torch.ones(FUSED_ROWS, 16)
    norm.of_sum(rows, rows)
    assert not launched
    norm.of_sum(many, many)
    with for_a_graph(), ThreadPoolExecutor(1) as other:
        norm.of_sum(rows, rows)
        assert not other.submit(launches_are_free).result()
    with pytest.raises(TypeError), for_a_graph():
        norm.of_sum(rows, None)  # type: ignore[arg-type]
    norm.of_sum(rows, rows)
    assert launched == [FUSED_ROWS, 3, 3]
