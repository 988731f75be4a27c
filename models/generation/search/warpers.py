"""Warpers mask unlikely tokens before one is drawn. They know no history and no search.

Meaning and order are transformers' (5.23): temperature, top_h, top_k, top_p, min_p, typical_p, epsilon_cutoff,
eta_cutoff. All but the first only mask tokens, so after top_h and top_k the others process the few that these kept: a
row of 50, not of 50,000.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from batchloom.models.generation.params import GenerationParams
from batchloom.models.generation.search.candidates import TILE
from batchloom.models.generation.search.randomness import gumbels
from batchloom.models.generation.search.vocabulary import WHOLE, Vocabulary

# The tokens that top_p looks at first. Options that leave more of a vocabulary draw in two steps.
FEW = 1024
TOP_H_TOKENS = 100  # that top_h looks at, as in the reference


@dataclass(frozen=True)
class Distribution:
    """What rows draw from: log-probabilities [R, C], -inf where masked, of the tokens [R, C]."""

    log_prob_RC: Tensor
    token_RC: Tensor
    is_tiled: bool
    """Many tokens are drawn from in two steps. Depends on options alone: a row's draw must not depend on other rows."""

    def draw(self, key_R: Tensor, step_R: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a token for each row by its key and step; return tokens and their log-probabilities: [R] each."""
        few = self._tile(key_R, step_R) if self.is_tiled else self
        place_R1 = (few.log_prob_RC + gumbels(key_R, step_R, few.token_RC)).argmax(-1, keepdim=True)
        return few.token_RC.gather(1, place_R1)[:, 0], few.log_prob_RC.gather(1, place_R1)[:, 0]

    def _tile(self, key_R: Tensor, step_R: Tensor) -> "Distribution":
        """Draw a tile of adjacent tokens first: 400 random numbers a row and 128 for its tokens, not 50,000."""
        padding = -self.token_RC.shape[1] % TILE
        log_prob_RBC = F.pad(self.log_prob_RC, (0, padding), value=-torch.inf).unflatten(1, (-1, TILE))
        token_RBC = F.pad(self.token_RC, (0, padding)).unflatten(1, (-1, TILE))
        number_B = -1 - torch.arange(log_prob_RBC.shape[1], device=key_R.device)  # negative: tokens count from 0 up
        noise_RB = gumbels(key_R, step_R, number_B.expand(len(key_R), -1))
        tile_R11 = (log_prob_RBC.logsumexp(-1) + noise_RB).argmax(-1)[:, None, None].expand(-1, 1, TILE)
        return Distribution(log_prob_RBC.gather(1, tile_R11)[:, 0], token_RBC.gather(1, tile_R11)[:, 0], False)


def warp(
    logits_RV: Tensor, params: GenerationParams, vocabulary: Vocabulary = WHOLE, num_kept: int = 1
) -> Distribution:
    """Return what resolved params draw from; the `num_kept` likeliest tokens of each row are never masked."""
    assert params.temperature is not None
    assert params.top_p is not None
    top_k = max(params.top_k, num_kept) if params.top_k else 0
    if params.top_h is not None:
        value_RC, token_RC = vocabulary.best(logits_RV, TOP_H_TOKENS)
        kept = slice(0, top_k or None)
        scaled_RC = _top_h(value_RC.float() / params.temperature, params.top_h)[:, kept]
        return Distribution(_masked_by_all(scaled_RC.log_softmax(-1), params, num_kept), token_RC[:, kept], False)
    if not top_k and params.top_p < 1.0:
        return _nucleus(logits_RV.float() / params.temperature, params, vocabulary, num_kept)
    if top_k:
        value_RC, token_RC = vocabulary.best(logits_RV, top_k)
        scaled_RC = value_RC.float() / params.temperature
    else:
        scaled_RC = vocabulary.whole(logits_RV.float() / params.temperature)
        token_RC = torch.arange(scaled_RC.shape[1], device=logits_RV.device).expand_as(scaled_RC)
    log_prob_RC = _masked_by_all(scaled_RC.log_softmax(-1), params, num_kept)
    return Distribution(log_prob_RC, token_RC, is_tiled=token_RC.shape[1] > FEW)


def _nucleus(scaled_RV: Tensor, params: GenerationParams, vocabulary: Vocabulary, num_kept: int) -> Distribution:
    """Return what top_p leaves of whole vocabularies: of the FEW likeliest tokens, of all for rows that need them.

    A row has the same bits whether or not another one needs all.
    """
    assert params.top_p is not None
    normalizer_R1 = vocabulary.log_normalizer(scaled_RV)[:, None]
    value_RC, token_RC = vocabulary.best(scaled_RV, FEW)
    log_prob_RC = value_RC - normalizer_R1
    needs_all_R1 = log_prob_RC.exp().sum(-1, keepdim=True) < params.top_p  # false for NaN, of a row that is not finite
    log_prob_RC = _masked_by_all(log_prob_RC, params, num_kept)
    if not bool(needs_all_R1.any()):
        return Distribution(log_prob_RC, token_RC, is_tiled=False)
    value_RV, token_RV = vocabulary.whole(scaled_RV).sort(dim=-1, descending=True)
    width = token_RC.shape[1]
    padded_RV = F.pad(log_prob_RC, (0, token_RV.shape[1] - width), value=-torch.inf)
    return Distribution(
        torch.where(needs_all_R1, _masked_by_all(value_RV - normalizer_R1, params, num_kept), padded_RV),
        torch.where(needs_all_R1, token_RV, torch.cat((token_RC, token_RV[:, width:]), dim=1)),
        is_tiled=False,
    )


def _masked_by_all(log_prob_RC: Tensor, params: GenerationParams, num_kept: int) -> Tensor:
    """Mask what params leave out; for top_p the likeliest tokens come first."""
    assert params.top_p is not None
    assert params.typical_p is not None
    if params.top_p < 1.0:
        log_prob_RC = _top_p(log_prob_RC, params.top_p, num_kept)
    if params.min_p is not None:
        least_R1 = params.min_p * log_prob_RC.amax(-1, keepdim=True).exp()
        log_prob_RC = _masked(log_prob_RC, log_prob_RC.exp() < least_R1, num_kept)
    if params.typical_p < 1.0:
        log_prob_RC = _typical_p(log_prob_RC, params.typical_p, num_kept)
    if params.epsilon_cutoff:
        log_prob_RC = _masked(log_prob_RC, log_prob_RC.exp() < params.epsilon_cutoff, num_kept)
    if params.eta_cutoff:
        eta_R1 = (params.eta_cutoff**0.5 * (-_entropy(log_prob_RC)).exp()).clamp(max=params.eta_cutoff)
        log_prob_RC = _masked(log_prob_RC, log_prob_RC.exp() < eta_R1, num_kept)
    return log_prob_RC


def _top_h(scaled_RC: Tensor, top_h: float) -> Tensor:
    """Keep the likeliest tokens, which come first, up to a share of the entropy of all (arXiv 2509.02510)."""
    log_prob_RC = scaled_RC.log_softmax(-1)
    reached_RC = (-log_prob_RC * log_prob_RC.exp()).cumsum(-1)  # NaN from a masked token on: out, as in the reference
    is_kept_RC = reached_RC <= top_h * _entropy(log_prob_RC)
    is_kept_RC[:, 0] = True
    return scaled_RC.masked_fill(~is_kept_RC, -torch.inf)


def _top_p(log_prob_RC: Tensor, top_p: float, num_kept: int) -> Tensor:
    """Keep the likeliest tokens until their probabilities add up to top_p; the token that reaches it is kept."""
    probability_RC = log_prob_RC.double().exp()
    return _masked(log_prob_RC, probability_RC.cumsum(-1) - probability_RC >= top_p, num_kept)


def _typical_p(log_prob_RC: Tensor, mass: float, num_kept: int) -> Tensor:
    """Keep the tokens whose surprise is nearest to the entropy, until they hold `mass` (arXiv 2202.00666)."""
    surprise_RC = (-log_prob_RC - _entropy(log_prob_RC)).abs()
    sorted_RC, order_RC = surprise_RC.sort(dim=-1)
    reached_RC = log_prob_RC.exp().gather(-1, order_RC).cumsum(-1)
    last_R1 = (reached_RC < mass).sum(-1, keepdim=True).clamp(num_kept - 1, sorted_RC.shape[-1] - 1)
    return log_prob_RC.masked_fill(surprise_RC > sorted_RC.gather(-1, last_R1), -torch.inf).log_softmax(-1)


def _entropy(log_prob_RC: Tensor) -> Tensor:
    return -(log_prob_RC * log_prob_RC.exp()).nansum(-1, keepdim=True)


def _masked(log_prob_RC: Tensor, is_out_RC: Tensor, num_kept: int) -> Tensor:
    """Mask tokens, but never the `num_kept` likeliest, and normalize the rest to sum to one."""
    is_out_RC &= log_prob_RC < log_prob_RC.topk(num_kept).values[:, -1:]
    return log_prob_RC.masked_fill(is_out_RC, -torch.inf).log_softmax(-1)
