import math

import pytest
import torch
from torch import nn

from lowrank_d2.layers.attention import DeformableAttention, SelfAttention

DIM, HEADS = 32, 4


def test_self_attention_is_torchs_with_separate_projections():
    torch.manual_seed(0)
    block = SelfAttention(embed_dim=DIM, num_heads=HEADS)
    reference = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    with torch.no_grad():
        projections = (block.q_proj, block.k_proj, block.v_proj)
        reference.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        for projection in projections:
            projection.bias.normal_()
        reference.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        reference.out_proj.load_state_dict(block.out_proj.state_dict())
    x, pos = torch.randn(2, 5, DIM), torch.randn(2, 5, DIM)
    blocked = torch.zeros(5, 5, dtype=torch.bool)
    blocked[:3, 3:] = True
    attended, _ = reference(x + pos, x + pos, x, attn_mask=blocked)
    torch.testing.assert_close(block(x, pos, blocked), block.norm(x + attended))


def test_q_k_v_start_as_one_xavier_matrix():
    block = SelfAttention(embed_dim=64, num_heads=HEADS)
    bound = math.sqrt(6 / (64 + 3 * 64))
    for projection in (block.q_proj, block.k_proj, block.v_proj):
        assert 0.98 * bound < projection.weight.abs().max() <= bound
        assert projection.bias.abs().max() == 0


def test_blocked_queries_are_not_seen():
    block = SelfAttention(embed_dim=DIM, num_heads=HEADS)
    x, pos = torch.randn(1, 4, DIM), torch.zeros(1, 4, DIM)
    blocked = torch.tensor([[False, False, True, True]] * 4)
    changed = x.clone()
    changed[:, 2:] += 1
    torch.testing.assert_close(block(x, pos, blocked)[:, :2], block(changed, pos, blocked)[:, :2])


def test_offsets_start_on_rings_around_the_reference():
    block = DeformableAttention(embed_dim=64, num_heads=8, num_levels=2, num_points=4)
    bias = block.sampling_offsets.bias.view(8, 2, 4, 2)
    assert bias[0, 0].tolist() == [[1, 0], [2, 0], [3, 0], [4, 0]]
    torch.testing.assert_close(bias[1, 0, 2], torch.tensor([3.0, 3.0]))
    assert torch.equal(bias[:, 0], bias[:, 1])
    assert block.sampling_offsets.weight.abs().max() == 0 and block.attention_weights.weight.abs().max() == 0


@pytest.mark.parametrize("boxes", [False, True])
def test_where_the_offsets_lead(boxes):
    """With the starting offsets of 8 equally weighted heads, a map that is linear in x reads its mean place."""
    block = DeformableAttention(embed_dim=8, num_heads=1, num_levels=1, num_points=4)
    with torch.no_grad():
        for projection in (block.value_proj, block.output_proj):
            projection.weight.copy_(torch.eye(8))
        block.norm = nn.Identity()
    width, height = 40, 20
    column = torch.arange(width, dtype=torch.float32) + 0.5
    memory = column.repeat(height)[None, :, None].expand(1, -1, 8)
    center = [0.5, 0.5, 0.25, 0.4] if boxes else [0.5, 0.5]
    zero = torch.zeros(1, 1, 8)
    out = block(zero, zero, torch.tensor([[center]]), memory, ((height, width),))
    # Offsets 1, 2, 3, 4 to the right: cells, or quarters of half the box's 10 cells.
    mean_offset = 2.5 / 4 * 0.5 * 10 if boxes else 2.5
    torch.testing.assert_close(out, torch.full_like(out, 20 + mean_offset))


def test_padding_reads_zero():
    block = DeformableAttention(embed_dim=DIM, num_heads=HEADS, num_levels=1, num_points=2)
    x, memory = torch.randn(2, 3, DIM), torch.randn(2, 12, DIM)
    padding = torch.zeros(2, 12, dtype=torch.bool)
    padding[1, 6:] = True
    changed = memory.clone()
    changed[1, 6:] = 7.0
    arguments = (x, torch.zeros_like(x), torch.rand(2, 3, 2))
    torch.testing.assert_close(
        block(*arguments, memory, ((3, 4),), padding), block(*arguments, changed, ((3, 4),), padding)
    )


@pytest.mark.parametrize("make", [
    lambda: SelfAttention(embed_dim=DIM, num_heads=HEADS, dropout=0.5),
    lambda: DeformableAttention(embed_dim=DIM, num_heads=HEADS, num_levels=1, num_points=1, dropout=0.5),
])  # fmt: skip
def test_an_adapter_gets_the_attention_after_its_dropout_and_the_stream(make):
    block = make()
    seen = []

    class Adapter(nn.Module):
        def forward(self, attended, stream):
            seen.append((attended, stream))
            return 2 * attended

    block.adapter = Adapter()
    stream, attended = torch.randn(2, 50, DIM), torch.ones(2, 50, DIM)
    out = block.join(stream, attended)
    assert set(seen[0][0].unique().tolist()) == {0.0, 2.0} and seen[0][1] is stream
    torch.testing.assert_close(out, block.norm(stream + 2 * seen[0][0]))
    assert "adapter" in dict(block.named_children()) and block.embed_dim == DIM


def test_a_bias_is_added_to_the_logits():
    torch.manual_seed(0)
    block = SelfAttention(embed_dim=DIM, num_heads=HEADS)
    x, pos = torch.randn(2, 5, DIM), torch.randn(2, 5, DIM)
    bias = torch.randn(2, HEADS, 5, 5)
    q, k, v = (
        y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in (block.q_proj(x + pos), block.k_proj(x + pos), block.v_proj(x))
    )
    blocked = torch.zeros(5, 5, dtype=torch.bool)
    blocked[0, 1:] = True
    logits = (q @ k.transpose(2, 3) / (DIM // HEADS) ** 0.5 + bias).masked_fill(blocked, -math.inf)
    attended = block.out_proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(block(x, pos, blocked, bias), block.norm(x + attended))


def test_attention_weights_drop_out_in_training_alone():
    torch.manual_seed(0)
    block = SelfAttention(embed_dim=DIM, num_heads=HEADS, weight_dropout=0.5)
    x = torch.randn(2, 5, DIM)
    assert not torch.equal(block(x, x), block(x, x))
    block.eval()
    assert torch.equal(block(x, x), block(x, x))
