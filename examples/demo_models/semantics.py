"""Latent semantic analysis: words and texts as vectors, near where they are about the same. It knows no topic.

S. Deerwester and others, Indexing by latent semantic analysis, 1990.
"""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_matrix
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer

Vectors = npt.NDArray[np.float32]

WORD = r"[a-z]{2,}"
NUM_DIMENSIONS = 200
RARE, COMMON = 8, 0.3  # a word counts if so many texts have it, and at most this share of all


class Semantics:
    """Words, phrases and texts as unit vectors [., NUM_DIMENSIONS], from the words that `texts` share."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._counter = CountVectorizer(min_df=RARE, max_df=COMMON, token_pattern=WORD, binary=True)
        counts = self._counter.fit_transform(texts)
        num_with = np.asarray(counts.sum(0)).ravel()
        self.num_texts_with = dict(zip(self._counter.get_feature_names_out(), num_with.tolist(), strict=True))
        self._rarity = np.log(len(texts) / num_with)
        self._words = unit(components(counts.multiply(self._rarity), NUM_DIMENSIONS))

    def texts(self, texts: Sequence[str]) -> Vectors:
        """Rare words weigh more; zero where no word is known."""
        counts = self._counter.transform(texts).multiply(self._rarity)
        return unit(csr_matrix(counts, dtype=np.float32) @ self._words)

    def phrases(self, phrases: Sequence[str]) -> Vectors:
        """Each of its words alike."""
        known = self._counter.vocabulary_
        indexes = [[known[word] for word in words_of(phrase) if word in known] for phrase in phrases]
        return unit(np.stack([self._words[index].sum(0) for index in indexes]))


def words_of(text: str) -> list[str]:
    return re.findall(WORD, text.lower())


def components(counts: csr_matrix, num_dimensions: int) -> Vectors:
    """A vector for each column of `counts`."""
    svd = TruncatedSVD(num_dimensions, random_state=0).fit(csr_matrix(counts, dtype=np.float32))
    return np.ascontiguousarray(svd.components_.T, dtype=np.float32)


def near_group(vectors: Vectors, groups: Sequence[str], share: float) -> Vectors:
    """Each vector moved towards the mean of its group, which weighs `share` of its own."""
    _, index = np.unique(groups, return_inverse=True)
    sums = np.zeros((index.max() + 1, vectors.shape[1]), np.float32)
    np.add.at(sums, index, vectors)
    return unit(vectors + share * unit(sums)[index])


def unit(vectors: Vectors) -> Vectors:
    """At length one; zeros stay."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(1e-9)
