"""The weights of a network."""

from __future__ import annotations

import torch

State = dict[str, torch.Tensor]
"""The parameters and buffers of a network by name, as `nn.Module.state_dict` names them."""
