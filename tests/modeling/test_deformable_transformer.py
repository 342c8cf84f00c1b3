"""The order of a decoder layer's parts, and where its branches go off."""
import pytest
import torch

from lowrank_d2.layers.branches import FullBranches, LowRankBranches
from lowrank_d2.modeling.deformable_transformer import DecoderLayer

SHAPES = [(3, 4), (2, 2)]


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    x, pos = torch.randn(2, 2, 5, 16)
    return x, pos, 0.2 + 0.5 * torch.rand(2, 5, 4), torch.randn(2, 16, 16), SHAPES


def layer(branches, **options):
    torch.manual_seed(1)
    made = DecoderLayer(embed_dim=16, feedforward_dim=32, num_heads=2, num_levels=2, branches=branches, **options)
    for parameter in made.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return made


def test_branches_see_what_the_feed_forward_part_sees(inputs):
    made = layer(LowRankBranches(count=2, embed_dim=16, hidden_dim=32, rank=3))
    x, pos, reference, memory, shapes = inputs
    out, branches = made.with_branches(*inputs, first=2)
    attended = made.cross_attn(made.self_attn(x, pos), pos, reference, memory, shapes)
    torch.testing.assert_close(out, made.ffn(attended))
    torch.testing.assert_close(out, made(*inputs), rtol=0, atol=1e-6)
    torch.testing.assert_close(branches, made.branches(made.ffn, attended, made.ffn.linear1(attended))[:, :, 2:])


def test_with_cross_attention_first_branches_go_off_behind_it(inputs):
    made = layer(FullBranches(count=1, embed_dim=16, hidden_dim=32), cross_first=True)
    x, pos, reference, memory, shapes = inputs
    out, branches = made.with_branches(*inputs)
    crossed = made.cross_attn(x, pos, reference, memory, shapes)
    torch.testing.assert_close(out, made.ffn(made.self_attn(crossed, pos)))
    torch.testing.assert_close(branches[0], made.branches[0](crossed))


def test_low_rank_branches_behind_cross_attention_have_a_hidden_layer_of_their_own(inputs):
    made = layer(LowRankBranches(count=1, embed_dim=16, hidden_dim=32, rank=3), cross_first=True)
    x, pos, reference, memory, shapes = inputs
    out, branches = made.with_branches(*inputs)
    crossed = made.cross_attn(x, pos, reference, memory, shapes)
    torch.testing.assert_close(out, made.ffn(made.self_attn(crossed, pos)))
    torch.testing.assert_close(branches, made.branches(made.ffn, crossed, made.ffn.linear1(crossed)))
