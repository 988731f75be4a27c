"""What compiled products have in common: the panels that weights are packed in, and activations by number."""

import torch.nn.functional as F

from batchloom.models.layers.feedforward import Activation, gelu_tanh

PANEL = 64
"""Outputs that are packed together."""
NUMBERS: dict[Activation | None, int] = {None: 0, F.relu: 1, F.gelu: 2, gelu_tanh: 3}
"""Activations of activations.h, which a kernel computes before it rounds; others are torch's, afterwards."""
