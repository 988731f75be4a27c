"""What both of the demo's models are trained with: batches of like lengths, an optimizer, a clock. It knows no task."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

WARM_UP_SHARE = 0.02
REPORT_SECONDS = 60.0

Tokens = npt.NDArray[np.int32]
Example = TypeVar("Example")
Batch = TypeVar("Batch")


def encode(tokenizer: Tokenizer, texts: Sequence[str], add_special_tokens: bool = True) -> list[Tokens]:
    """A thousand at a time: the library's own results take a kilobyte a token."""
    return [
        np.asarray(encoding.ids, np.int32)
        for first in range(0, len(texts), 1000)
        for encoding in tokenizer.encode_batch_fast(texts[first : first + 1000], add_special_tokens=add_special_tokens)
    ]


def padded(rows: Sequence[Tokens], value: int, device: torch.device) -> Tensor:
    """int64 [B, T], padded on the right."""
    tensors = [torch.from_numpy(row.astype(np.int64)) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value).to(device)


def batches(
    examples: Sequence[Example], num_tokens: Callable[[Example], int], max_tokens: int, seed: int
) -> Iterator[list[Example]]:
    """Batches of examples of like length, without end, every example once an epoch; `max_tokens` counts padding."""
    chance = random.Random(seed)
    for _ in count():
        order = sorted(examples, key=lambda example: num_tokens(example) + chance.uniform(0, 8))
        epoch: list[list[Example]] = [[]]
        for example in order:
            if (len(epoch[-1]) + 1) * num_tokens(example) > max_tokens:
                epoch.append([])
            epoch[-1].append(example)
        chance.shuffle(epoch)
        yield from epoch


class Optimizer:
    """Muon for the matrices of the layers, AdamW for all else, on float32 copies of a bfloat16 model's weights."""

    def __init__(self, model: nn.Module, learning_rate: float) -> None:
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.masters = [weight.detach().float().clone().requires_grad_() for weight in self.weights]
        names = [name for name, weight in model.named_parameters() if weight.requires_grad]
        pairs = list(zip(names, self.masters, strict=True))
        matrices = [master for name, master in pairs if master.ndim == 2 and ".layers." in name]
        others = [master for name, master in pairs if not (master.ndim == 2 and ".layers." in name)]
        self.parts = [
            torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self.learning_rate = learning_rate

    def step(self, share: float) -> None:
        """One step at `share` of the learning rate; gradients are cut at norm 1."""
        for weight, master in zip(self.weights, self.masters, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None
        nn.utils.clip_grad_norm_(self.masters, 1.0)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.learning_rate * share
            part.step()
        with torch.no_grad():
            for weight, master in zip(self.weights, self.masters, strict=True):
                weight.copy_(master)


def train(
    model: nn.Module,
    loss_of: Callable[[Batch], Tensor],
    source: Iterator[Batch],
    minutes: float,
    learning_rate: float,
    checkpoint: Callable[[], None],
    num_minutes_kept: float = 10,
) -> None:
    """Train for so many minutes: the rate rises for 2 % of them and falls to nothing over the last half."""
    model.train()
    optimizer = Optimizer(model, learning_rate)
    started = reported = kept = time.monotonic()
    total, num_steps = 0.0, 0
    for step in count():
        done = (time.monotonic() - started) / (minutes * 60)
        if done >= 1:
            break
        loss = loss_of(next(source))
        loss.backward()
        optimizer.step(min(done / WARM_UP_SHARE + 0.01, 1.0, 2 * (1 - done)))
        total, num_steps = total + loss.item(), num_steps + 1
        if (now := time.monotonic()) - reported > REPORT_SECONDS:
            print(f"{(now - started) / 60:6.1f} min  step {step:6d}  loss {total / num_steps:.3f}", flush=True)
            reported, total, num_steps = now, 0.0, 0
        if now - kept > num_minutes_kept * 60:
            checkpoint()
            kept = now
    model.eval()
    checkpoint()
