"""The weights of a network."""

from __future__ import annotations

import torch

State = dict[str, torch.Tensor]
"""A network's parameters and buffers by name, as `nn.Module.state_dict` names them."""
