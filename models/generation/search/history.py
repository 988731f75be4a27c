"""The tokens of running sequences, as matrices, and their lengths. It knows no model, no search and no score."""

from collections.abc import Sequence

import torch
from torch import Tensor

from batchloom.models.generation.enlarging import enlarged
from batchloom.models.generation.requests import Request
from batchloom.models.transfers import fetch, to_device


class History:
    """The decoder's tokens of R running rows, start tokens included; a request's rows are adjacent.

    The lists hold each row's request and lengths on the host, so that no step synchronizes to ask for them.
    """

    def __init__(self, device: torch.device, keeps_prompts: bool) -> None:
        self.requests: list[Request] = []
        self.lengths: list[int] = []
        self.start_lengths: list[int] = []
        self.min_lengths: list[int] = []
        self.max_lengths: list[int] = []
        self.tokens_RT = torch.zeros(0, 0, dtype=torch.long, device=device)  # undefined beyond a row's length
        self.log_prob_RT = torch.zeros(0, 0, device=device)  # of each new token, when it was chosen
        self.length_R = torch.zeros(0, dtype=torch.long, device=device)
        self.start_length_R = self.max_length_R = self.asked_length_R = self.length_R
        self._last_R: Tensor | None = None  # the tokens appended last, while the rows are those
        # The prompts, where a processor needs them; beyond its length a row repeats its first token.
        self.prompt_RS: Tensor | None = None
        self.prompt_length_R: Tensor | None = None
        self._keeps_prompts = keeps_prompts

    @property
    def num_rows(self) -> int:
        return len(self.requests)

    @property
    def longest(self) -> int:
        """Columns of tokens_RT that are in use."""
        return max(self.lengths, default=0)

    def extend(self, requests: Sequence[Request]) -> None:
        """Append rows for requests that start: one for each of their sequences."""
        rows = [request for request in requests for _ in range(request.num_sequences)]
        self._set_requests([*self.requests, *rows])
        self.lengths += [request.num_start_tokens for request in rows]
        shape = (self.num_rows, max(self.tokens_RT.shape[1], max(request.max_length for request in rows)))
        self.tokens_RT, self.log_prob_RT = enlarged(self.tokens_RT, shape), enlarged(self.log_prob_RT, shape)
        longest = max(request.num_start_tokens for request in rows)
        starts = [request.start_ids + [0] * (longest - request.num_start_tokens) for request in rows]
        self.tokens_RT[-len(rows) :, :longest] = to_device(starts, self.tokens_RT.device)
        self._upload_lengths()

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        self._set_requests([self.requests[row] for row in rows])
        self.lengths = [self.lengths[row] for row in rows]
        width = max(self.max_lengths, default=0)
        index_M = to_device(rows, self.tokens_RT.device)
        self.tokens_RT = self.tokens_RT[index_M, :width]
        self.log_prob_RT = self.log_prob_RT[index_M, :width]
        self._upload_lengths()

    def reorder(self, parents_R: Tensor) -> None:
        """Let row r continue from row parents_R[r]; both are rows of one request."""
        for matrix_RT in (self.tokens_RT, self.log_prob_RT):
            matrix_RT[:, : self.longest] = matrix_RT[:, : self.longest].index_select(0, parents_R)
        self._last_R = None

    def append(self, token_R: Tensor, log_prob_R: Tensor) -> None:
        """Append one new token a row."""
        self.tokens_RT.scatter_(1, self.length_R[:, None], token_R[:, None])
        self.log_prob_RT.scatter_(1, self.length_R[:, None], log_prob_R[:, None])
        self.length_R += 1
        self._last_R = token_R
        self.lengths = [length + 1 for length in self.lengths]

    def last_tokens(self) -> Tensor:
        """Return what the decoder reads next: [R]."""
        if self._last_R is None:
            self._last_R = self.tokens_RT.gather(1, self.length_R[:, None] - 1)[:, 0]
        return self._last_R

    def new_tokens(self) -> list[list[int]]:
        """Return each row's tokens after its start tokens."""
        rows = self.tokens_RT[:, : self.longest].tolist()
        return [tokens[self._new(row)] for row, tokens in enumerate(rows)]

    def answers(self, rows: Sequence[int]) -> list[tuple[list[int], list[float]]]:
        """Return the new tokens of some rows, and their log-probabilities."""
        index_M = to_device(rows, self.tokens_RT.device)
        both = (self.tokens_RT, self.log_prob_RT)
        found = zip(rows, *fetch(*(matrix_RT[index_M, : self.longest] for matrix_RT in both)), strict=True)
        return [([int(token) for token in tokens[self._new(row)]], log[self._new(row)]) for row, tokens, log in found]

    def _new(self, row: int) -> slice:
        return slice(self.start_lengths[row], self.lengths[row])

    def _set_requests(self, requests: list[Request]) -> None:
        self.requests = requests
        self.start_lengths = [request.num_start_tokens for request in requests]
        self.min_lengths = [request.min_length for request in requests]
        self.max_lengths = [request.max_length for request in requests]

    def _upload_lengths(self) -> None:
        """Renew what the device holds of each row apart from its tokens."""
        device = self.tokens_RT.device
        self._last_R = None
        self.length_R = to_device(self.lengths, device)
        self.start_length_R = to_device(self.start_lengths, device)
        self.max_length_R = to_device(self.max_lengths, device)
        self.asked_length_R = to_device([request.asked_length for request in self.requests], device)
        if self._keeps_prompts and self.requests:
            prompts = [request.prompt_ids for request in self.requests]
            longest = max(map(len, prompts))
            self.prompt_RS = to_device([ids + ids[:1] * (longest - len(ids)) for ids in prompts], device)
            self.prompt_length_R = to_device([len(ids) for ids in prompts], device)
