"""What running sequences have said so far, as matrices. It knows no model, no search and no score."""

from collections.abc import Sequence

import torch
from torch import Tensor

from batchloom.models.generation.crossings import fetch, to_device
from batchloom.models.generation.requests import Request


class History:
    """The decoder's tokens of R running rows, start tokens included; a request's rows stand one after the other.

    `requests` and `lengths` say on the host what row each is and how long, so that no step waits for the device.
    """

    def __init__(self, device: torch.device, keeps_sources: bool) -> None:
        self.requests: list[Request] = []
        self.lengths: list[int] = []
        self.tokens_RT = torch.zeros(0, 0, dtype=torch.long, device=device)  # anything beyond a row's length
        self.log_prob_RT = torch.zeros(0, 0, device=device)  # of the new tokens, when they were chosen
        self.length_R = torch.zeros(0, dtype=torch.long, device=device)
        self.start_length_R = self.max_length_R = self.length_R
        # The prompts, where a processor wants them; beyond its length a row repeats its first token.
        self.source_RS: Tensor | None = None
        self.source_length_R: Tensor | None = None
        self._keeps_sources = keeps_sources

    @property
    def num_rows(self) -> int:
        return len(self.requests)

    @property
    def longest(self) -> int:
        """Columns of tokens_RT that hold something."""
        return max(self.lengths, default=0)

    def extend(self, requests: Sequence[Request]) -> None:
        """New rows for requests that start: one for each of their sequences."""
        rows = [request for request in requests for _ in range(request.num_sequences)]
        self.requests += rows
        self.lengths += [request.num_start_tokens for request in rows]
        width = max(self.tokens_RT.shape[1], max(request.max_length for request in rows))
        self.tokens_RT = _enlarged(self.tokens_RT, len(self.requests), width)
        self.log_prob_RT = _enlarged(self.log_prob_RT, len(self.requests), width)
        longest = max(request.num_start_tokens for request in rows)
        starts = [request.start_ids + [0] * (longest - request.num_start_tokens) for request in rows]
        self.tokens_RT[-len(rows) :, :longest] = to_device(starts, self.tokens_RT.device)
        self._renew()

    def keep(self, rows: Sequence[int]) -> None:
        """Forgets all rows but these."""
        self.requests = [self.requests[row] for row in rows]
        self.lengths = [self.lengths[row] for row in rows]
        width = max((request.max_length for request in self.requests), default=0)
        index_M = to_device(rows, self.tokens_RT.device)
        self.tokens_RT = self.tokens_RT[index_M, :width]
        self.log_prob_RT = self.log_prob_RT[index_M, :width]
        self._renew()

    def reorder(self, parents_R: Tensor) -> None:
        """Row r goes on where row parents_R[r] was; both are rows of one request."""
        for matrix_RT in (self.tokens_RT, self.log_prob_RT):
            matrix_RT[:, : self.longest] = matrix_RT[:, : self.longest].index_select(0, parents_R)

    def append(self, token_R: Tensor, log_prob_R: Tensor) -> None:
        """One new token a row."""
        self.tokens_RT.scatter_(1, self.length_R[:, None], token_R[:, None])
        self.log_prob_RT.scatter_(1, self.length_R[:, None], log_prob_R[:, None])
        self.length_R += 1
        self.lengths = [length + 1 for length in self.lengths]

    def last_tokens(self) -> Tensor:
        """What the decoder reads next: [R]."""
        return self.tokens_RT.gather(1, self.length_R[:, None] - 1)[:, 0]

    def new_tokens(self) -> list[list[int]]:
        """What each row said after its start tokens."""
        rows = self.tokens_RT[:, : self.longest].tolist()
        return [tokens[self._new(row)] for row, tokens in enumerate(rows)]

    def answers(self, rows: Sequence[int]) -> list[tuple[list[int], list[float]]]:
        """New tokens of some rows, and their log-probabilities."""
        index_M = to_device(rows, self.tokens_RT.device)
        both = (self.tokens_RT, self.log_prob_RT)
        found = zip(rows, *fetch(*(matrix_RT[index_M, : self.longest] for matrix_RT in both)), strict=True)
        return [([int(token) for token in tokens[self._new(row)]], log[self._new(row)]) for row, tokens, log in found]

    def _new(self, row: int) -> slice:
        return slice(self.requests[row].num_start_tokens, self.lengths[row])

    def _renew(self) -> None:
        device, requests = self.tokens_RT.device, self.requests
        self.length_R = to_device(self.lengths, device)
        self.start_length_R = to_device([request.num_start_tokens for request in requests], device)
        self.max_length_R = to_device([request.max_length for request in requests], device)
        if self._keeps_sources and requests:
            sources = [request.prompt_ids for request in requests]
            longest = max(map(len, sources))
            self.source_RS = to_device([ids + ids[:1] * (longest - len(ids)) for ids in sources], device)
            self.source_length_R = to_device([len(ids) for ids in sources], device)


def _enlarged(matrix_RT: Tensor, num_rows: int, width: int) -> Tensor:
    """The same values in a larger matrix of zeros."""
    larger_RT = matrix_RT.new_zeros(num_rows, width)
    larger_RT[: matrix_RT.shape[0], : matrix_RT.shape[1]] = matrix_RT
    return larger_RT
