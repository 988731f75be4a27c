"""Hidden states and attention weights of packed sequences, layer by layer. It knows no batch."""

from collections.abc import Iterable, Sequence
from itertools import accumulate, islice
from typing import cast

import torch
from torch import Tensor

from batchloom.models.families.base import LoadedModel
from batchloom.models.layers.attention import PackedAttention
from batchloom.models.layers.attention_weights import AttentionWithWeights
from batchloom.models.layers.positions import positions_of
from batchloom.models.ranks.group import TensorParallel
from batchloom.models.single_pass.heads import Decoding, Encoding
from batchloom.models.single_pass.state_outputs import POOLINGS, StateOutput, StateOutputs
from batchloom.models.transfers import to_device

Outputs = dict[StateOutput, Tensor]


def outputs_of(
    model: LoadedModel, asked: StateOutputs, normalize: bool, ids_N: Tensor, lengths: list[int]
) -> list[Outputs]:
    """Return what is asked of each sequence, float32 on the CPU; `normalize` scales each vector of one layer to length
    one. No layer is computed above the last that is asked for."""
    context, computed = _layers(model, asked, ids_N, lengths)
    found: list[Outputs] = [{} for _ in lengths]
    held: list[Tensor] = []
    for layer, hidden_ND in enumerate(computed):
        if layer == asked.layer:
            _add_of_layer(found, asked, hidden_ND.float(), lengths, normalize)
        if "hidden_states" in asked.outputs:
            held.append(hidden_ND.float().cpu())
    if held:
        _add(found, "hidden_states", torch.stack(held).split(lengths, dim=1))
    if isinstance(context, AttentionWithWeights):
        by_layer: dict[StateOutput, list[list[Tensor]]] = {
            "attentions": context.weights,
            "cross_attentions": context.cross_weights,
        }
        for output, weights in by_layer.items():
            if output in asked.outputs:
                _add(found, output, [_of_all_heads(own, model.group) for own in zip(*weights, strict=True)])
    return found


def _layers(
    model: LoadedModel, asked: StateOutputs, ids_N: Tensor, lengths: list[int]
) -> tuple[PackedAttention, Iterable[Tensor]]:
    """Return the context of the stack's attention, and its hidden states [N, D], computed as they are taken."""
    attention = AttentionWithWeights if asked.needs_weights else PackedAttention
    encoding, positions_N = cast(Encoding, model), positions_of(lengths, ids_N.device)
    if asked.stack == "encoder":
        context = attention(lengths, causal=False)
        states = encoding.encoder_states(ids_N, positions_N, context)
    else:
        cross = None
        if model.is_encoder_decoder:
            cross = encoding.memory(ids_N, lengths, asked.depth) if asked.depth else None
            ids_N = encoding.shifted_input(ids_N, lengths)
        context = attention(lengths, causal=True, alibi_slopes=model.alibi_slopes, cross=cross)
        states = cast(Decoding, model).decoder_states(ids_N, positions_N, context)
    return context, islice(states, asked.depth + 1)


def _add_of_layer(
    found: Sequence[Outputs], asked: StateOutputs, hidden_ND: Tensor, lengths: list[int], normalize: bool
) -> None:
    for output in asked.outputs:
        if output in POOLINGS:
            pooled_BD = _pool(hidden_ND, lengths, output)
            _add(found, output, list((_to_length_one(pooled_BD) if normalize else pooled_BD).cpu()))
        elif output == "per_token":
            _add(found, output, (_to_length_one(hidden_ND) if normalize else hidden_ND).cpu().split(lengths))


def _add(found: Sequence[Outputs], output: StateOutput, tensors: Iterable[Tensor]) -> None:
    for own, tensor in zip(found, tensors, strict=True):
        own[output] = tensor


def _pool(hidden_ND: Tensor, lengths: list[int], pooling: StateOutput) -> Tensor:
    """Return one vector for each sequence: [B, D]."""
    if pooling == "mean":
        return torch.stack([part.mean(0) for part in hidden_ND.split(lengths)])
    ends = list(accumulate(lengths))
    rows = [0, *ends[:-1]] if pooling == "cls" else [end - 1 for end in ends]
    return hidden_ND[to_device(rows, hidden_ND.device)]


def _to_length_one(vectors_ND: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors_ND, dim=-1)


def _of_all_heads(weights: Sequence[Tensor], group: TensorParallel) -> Tensor:
    """Return [layers, H, T, S] on the CPU of all ranks' heads, of a sequence's weights by layer."""
    heads_last = torch.stack(list(weights)).movedim(1, -1).contiguous()  # ranks are joined along the last dimension
    return group.all_gather(heads_last).movedim(-1, 1).contiguous().cpu()
