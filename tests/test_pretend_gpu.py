"""The pretend GPU refuses and counts what a GPU does. What it stands for was seen on one: tests/gpu."""

import pytest
import torch


def test_its_tensors_compute_and_say_where_they_lie(pretend_gpu) -> None:
    numbers = torch.arange(6, device="cuda").view(2, 3)
    numbers[1, :2] = 9
    assert numbers.device == torch.device("cuda", 0)
    assert (numbers * 2).sum(dim=0).tolist() == [18, 20, 14]
    assert dict(pretend_gpu.waits) == {"a download": 1}


WAITS = {
    "a download": lambda x: x.tolist(),
    "an upload that blocks": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "an index on the host": lambda x: x[torch.tensor([0, 2])],
    "an index by truth": lambda x: x[x > 0],
    "aten._local_scalar_dense.default": lambda x: bool(x[0]),
    "aten.nonzero.default": lambda x: x.nonzero(),
    "aten.repeat_interleave.Tensor": lambda x: torch.repeat_interleave(x.long()),
    "torch.cuda.synchronize": lambda x: torch.cuda.synchronize(x.device),
}


@pytest.mark.parametrize("why", WAITS)
@pytest.mark.parametrize("inference", [True, False])
def test_what_makes_the_host_wait_is_counted_and_refused_while_a_graph_is_captured(pretend_gpu, why, inference) -> None:
    with torch.inference_mode(inference):
        x = torch.ones(3, device="cuda")
        pretend_gpu.forget()
        WAITS[why](x)
        assert dict(pretend_gpu.waits) == {why: 1}
        with pytest.raises(RuntimeError, match="stream is capturing"), torch.cuda.graph(torch.cuda.CUDAGraph()):
            WAITS[why](x)


def test_what_is_queued_is_no_wait(pretend_gpu) -> None:
    x = torch.zeros(3, device="cuda")
    x.copy_(torch.ones(3).pin_memory(), non_blocking=True)
    torch.zeros(3, pin_memory=True).to("cuda", non_blocking=True)
    x[x > 0] = 2.0  # torch fills by the mask
    torch.repeat_interleave(x.long(), output_size=6)
    assert not pretend_gpu.waits
    assert pretend_gpu.num_bytes_up == 24


def test_two_devices_are_refused(pretend_gpu) -> None:
    x = torch.ones(3, device="cuda")
    x + torch.tensor(1.0)  # a number
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(3)
    with pytest.raises(RuntimeError, match="not supported"):
        x.numpy()
    assert not pretend_gpu.waits


def test_a_graph_computes_again_from_what_its_inputs_are_now(pretend_gpu) -> None:
    x, table = torch.ones(3, device="cuda"), torch.zeros(2, 3, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        table[1] = x
        doubled = (x * 2).cumsum(0)
        total = doubled[1:].sum()
    x += 2
    pretend_gpu.forget()
    graph.replay()
    assert dict(pretend_gpu.operations) == {"replay": 1}
    assert (doubled.tolist(), total.item(), table.tolist()) == ([6.0, 12.0, 18.0], 30.0, [[0.0] * 3, [3.0] * 3])
