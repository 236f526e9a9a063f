from __future__ import annotations

import pytest
import torch
from torch import nn

from flows.commands.merge_notes import explain, explain_correction
from tasks.science.evaluation.metrics import Evaluation
from tasks.science.merging import Merged, merge_networks

IMAGES = torch.randn(20, 3, 4, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.logits = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits(self.attention(images, images, images)[0].mean(1))


def plain() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3))


def merged(build) -> Merged:
    torch.manual_seed(0)
    network = build()
    return merge_networks(network, network.state_dict(), build().state_dict(), IMAGES)


def scored(accuracy: float) -> Evaluation:
    return Evaluation(1.0, accuracy, 100)


ENDS = [scored(0.9), scored(0.8)]


@pytest.mark.parametrize(("build", "known"), [(Attention, "attention networks"), (plain, "falls with width")])
def test_where_alignment_does_not_help_it_is_said_what_is_known(build, known: str):
    one = merged(build)
    first, second = explain(one, ENDS, scored(0.192), scored(0.194))
    assert "alignment did not help: accuracy 19.2 % before, 19.4 % after, 85.0 % at the ends; matched units" in first
    assert known in second


def test_nothing_is_explained_where_alignment_helps_or_nothing_was_lost():
    one = merged(plain)
    assert explain(one, ENDS, scored(0.2), scored(0.5)) == []
    assert "helped little" in explain(one, ENDS, scored(0.2), scored(0.3))[0]
    assert explain(one, ENDS, scored(0.84), scored(0.84)) == []


def test_a_correction_that_makes_it_worse_is_told():
    assert "--correction none" in explain_correction(scored(0.5), scored(0.3))[0]
    assert explain_correction(scored(0.5), scored(0.6)) == []
