"""Buckets of the tokenization stage keep attention's padding small on real texts."""

import os
from pathlib import Path

import pytest

from benchmarks.padding import TARGET, corpora, padding_of


def test_padding_over_real_tokens_is_within_the_target_on_public_texts() -> None:
    default = Path(__file__).parents[3].parent / "shared" / "data"
    folder = Path(os.environ.get("BATCHLOOM_REAL_DATA", default))
    if not folder.is_dir():
        pytest.skip("real data: set BATCHLOOM_REAL_DATA, or put it into ../shared/data beside the checkout")
    found = {
        (corpus.name, budget): padding_of(corpus.rows, 1024, budget).by_groups
        for corpus in corpora(folder)
        for budget in corpus.budgets
    }
    assert {name for name, _ in found} == {"qmsum", "xquad", "snli", "wikiann"}
    assert max(found.values()) <= TARGET, found
