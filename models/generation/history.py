"""What running sequences have said so far, as one matrix. It knows no model, no search and no score."""

from collections.abc import Sequence

import torch
from torch import Tensor

from models.generation.sequence import Request


class History:
    """The decoder's tokens of R running rows, start tokens included; a request's rows stand one after the other.

    `requests` and `lengths` say on the host what row each is and how long, so that no step waits for the device.
    """

    def __init__(self, device: torch.device, keeps_sources: bool) -> None:
        self.requests: list[Request] = []
        self.lengths: list[int] = []
        self.tokens_RT = torch.zeros(0, 0, dtype=torch.long, device=device)  # anything beyond a row's length
        self.length_R = torch.zeros(0, dtype=torch.long, device=device)
        # The prompts, where a processor wants them; beyond its length a row repeats its first token.
        self.source_RS: Tensor | None = None
        self.source_length_R: Tensor | None = None
        self._keeps_sources = keeps_sources

    @property
    def num_rows(self) -> int:
        return len(self.requests)

    def extend(self, requests: Sequence[Request]) -> None:
        """New rows for requests that start: one for each of their sequences."""
        rows = [request for request in requests for _ in range(request.num_sequences)]
        self.requests += rows
        self.lengths += [request.num_start_tokens for request in rows]
        width = max(self.tokens_RT.shape[1], max(request.max_length for request in rows))
        new_MT = torch.tensor([request.start_ids + [0] * (width - request.num_start_tokens) for request in rows])
        old_RT = self.tokens_RT
        padding_RT = old_RT.new_zeros(old_RT.shape[0], width - old_RT.shape[1])
        self.tokens_RT = torch.cat((torch.cat((old_RT, padding_RT), dim=1), new_MT.to(old_RT.device)))
        self._renew()

    def keep(self, rows: Sequence[int]) -> None:
        """Forgets all rows but these."""
        self.requests = [self.requests[row] for row in rows]
        self.lengths = [self.lengths[row] for row in rows]
        longest = max((request.max_length for request in self.requests), default=0)
        index_M = torch.tensor(rows, dtype=torch.long, device=self.tokens_RT.device)
        self.tokens_RT = self.tokens_RT[index_M, :longest]
        self._renew()

    def reorder(self, parents_R: Tensor) -> None:
        """Row r goes on where row parents_R[r] was; both are rows of one request."""
        longest = max(self.lengths, default=0)
        self.tokens_RT[:, :longest] = self.tokens_RT[:, :longest].index_select(0, parents_R)

    def append(self, tokens_R: Tensor) -> None:
        """One new token a row."""
        self.tokens_RT.scatter_(1, self.length_R[:, None], tokens_R[:, None])
        self.length_R += 1
        self.lengths = [length + 1 for length in self.lengths]

    def last_tokens(self) -> Tensor:
        """What the decoder reads next: [R]."""
        return self.tokens_RT.gather(1, self.length_R[:, None] - 1)[:, 0]

    def new_tokens(self, row: int) -> list[int]:
        """What a row said after its start tokens."""
        tokens: list[int] = self.tokens_RT[row, self.requests[row].num_start_tokens : self.lengths[row]].tolist()
        return tokens

    def _renew(self) -> None:
        device = self.tokens_RT.device
        self.length_R = torch.tensor(self.lengths, dtype=torch.long, device=device)
        if self._keeps_sources and self.requests:
            sources = [request.prompt_ids for request in self.requests]
            longest = max(map(len, sources))
            self.source_RS = torch.tensor([ids + ids[:1] * (longest - len(ids)) for ids in sources], device=device)
            self.source_length_R = torch.tensor([len(ids) for ids in sources], device=device)
