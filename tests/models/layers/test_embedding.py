"""The output head with an odd vocabulary."""

import torch

from batchloom.models.layers.embedding import ALIGNMENT, VocabularyHead, aligned
from batchloom.models.ranks.group import SINGLE


def test_a_head_with_aligned_rows_gives_the_logits_of_its_tokens():
    head = VocabularyHead(16, 211, SINGLE)
    torch.nn.init.normal_(head.weight)
    hidden_ND, bias_1V = torch.randn(5, 16), torch.randn(1, 211)
    expected = head(hidden_ND), head(hidden_ND, bias_1V)
    head._laid_out = aligned(head.weight)
    assert head._laid_out.shape == (216, 16)
    assert 216 % ALIGNMENT == 0
    for found, plain in zip((head(hidden_ND), head(hidden_ND, bias_1V)), expected, strict=True):
        assert found.shape == (5, 211)
        torch.testing.assert_close(found, plain)  # the same sums, perhaps in another order


def test_a_weight_whose_rows_are_aligned_is_not_copied():
    assert aligned(torch.ones(64, 4)) is None
