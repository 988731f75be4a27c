"""A library that computes something else than its formulas is found out as it is loaded, and plain torch computes."""

import pytest
import torch

from batchloom.models.layers.native import library
from batchloom.models.layers.native.build import BuildError
from batchloom.models.layers.native.check import check
from batchloom.models.layers.native.library import bfloat16_kernels, kernels

pytestmark = pytest.mark.skipif(
    bfloat16_kernels() is None, reason="no compiler, or a processor without AVX-512 and bfloat16"
)


def with_half_the_scale(pointer, *others):
    pointer._obj.scale /= 2
    return pointer, *others


def without_argument(number):
    return lambda *arguments: (*arguments[:number], None, *arguments[number + 1 :])


def without_update(residual, _, *others):
    return residual, residual, *others


FAULTS = {
    "int8_product": without_argument(8),  # the bias
    "bfloat16_product": without_argument(5),
    "norm_of_sum": without_update,
    "log_normalizers": lambda logits, num_rows, width, *others: (logits, num_rows, width // 2, *others),
    "packed_attention": with_half_the_scale,
    "step_attention": with_half_the_scale,
}


class Miscompiled:
    """The library, one of whose kernels computes something else."""

    def __init__(self, kernel):
        self._kernel = kernel

    def __getattr__(self, name):
        function = getattr(kernels(), name)
        return (lambda *arguments: function(*FAULTS[name](*arguments))) if name == self._kernel else function


@pytest.mark.parametrize("kernel", FAULTS)
def test_a_kernel_that_computes_something_else_is_named(kernel):
    with pytest.raises(BuildError, match=rf"computes wrong numbers \({kernel}\); set CXX to another"):
        check(Miscompiled(kernel), True)


def test_what_is_right_is_trusted_and_torch_is_left_as_it_was():
    numbers, num_threads = torch.get_rng_state(), torch.get_num_threads()
    check(kernels(), True)
    assert torch.equal(torch.get_rng_state(), numbers)
    assert torch.get_num_threads() == num_threads


def test_a_processor_without_bfloat16_is_asked_for_no_such_products():
    check(Miscompiled("bfloat16_product"), False)


def test_a_wrong_library_is_one_warning_and_no_kernels(monkeypatch, caplog):
    path, wrong = kernels()._name, Miscompiled("int8_product")
    monkeypatch.setattr(library, "library_file", lambda _: path)
    monkeypatch.setattr(library, "check", lambda _, multiplies_bfloat16: check(wrong, multiplies_bfloat16))
    assert library._loaded.__wrapped__() is None
    (said,) = caplog.messages
    assert "since what the compiler made computes wrong numbers (int8_product)" in said
