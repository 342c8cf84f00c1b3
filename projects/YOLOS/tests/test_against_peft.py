"""The paper's setting, peft on transformers' YOLOS, against ours with the same tensors: outputs and gradients."""
import re

import pytest
import torch

from lowrank_d2.peft import METHODS, count, inject
from projects.YOLOS.tests.models import peer_of

THIRDS = {"q": "query", "v": "value"}
# Ours: method and its options; peft's configuration and its options.
CASES = {
    "lora": (dict(rank=4, alpha=8), "LoraConfig", dict(r=4, lora_alpha=8)),
    "dora": (dict(rank=4, alpha=8), "LoraConfig", dict(r=4, lora_alpha=8, use_dora=True)),
    "adalora": (dict(rank=6, alpha=8, target_rank=4), "AdaLoraConfig",
                dict(init_r=6, lora_alpha=8, target_r=4, tinit=1, tfinal=1, total_step=9)),
    "loha": (dict(rank=3, alpha=8), "LoHaConfig", dict(r=3, alpha=8)),
    "lokr": (dict(rank=2, alpha=8, factor=4), "LoKrConfig", dict(r=2, alpha=8, decompose_factor=4)),
}


def peft_name(name):
    """backbone.blocks.2.attn.qkv.lora_A_q -> the prefix of its tensor in peft."""
    block, tensor, third = re.fullmatch(r"backbone\.blocks\.(\d+)\.attn\.qkv\.(\w+)_([qv])", name).groups()
    return f"base_model.model.vit.encoder.layer.{block}.attention.attention.{THIRDS[third]}.{tensor}.default"


@pytest.mark.parametrize("name", CASES)
def test_query_and_value_adapted_as_by_peft(small_model, name):
    peft = pytest.importorskip("peft", reason="peft is not installed: nothing to compare with")
    options, kind, peer_options = CASES[name]
    model = small_model({"MODEL.YOLOS.MID_POSITION_SIZE": [64, 96]})
    peer = peft.get_peft_model(peer_of(model), getattr(peft, kind)(target_modules=["query", "value"], **peer_options))
    inject(model, [METHODS[name](**options)])
    ours = {key: value for key, value in model.named_parameters() if value.requires_grad}
    theirs = {key.removesuffix(".weight"): value for key, value in peer.named_parameters() if value.requires_grad}
    # peft counts AdaLoRA's ranks as a parameter, which does not train.
    assert theirs.keys() == {peft_name(key) for key in ours}
    assert count(model).trainable == sum(value.numel() for value in theirs.values())
    with torch.no_grad():
        for key, value in ours.items():
            value.add_(0.2 * torch.rand_like(value))
            theirs[peft_name(key)].copy_(value)

    pixels = torch.randn(2, 3, 64, 96)
    prediction, expected = model.predict(pixels), peer.eval()(pixels)
    torch.testing.assert_close(prediction.logits, expected.logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(prediction.boxes, expected.pred_boxes, rtol=0, atol=1e-5)
    (prediction.logits.square().mean() + prediction.boxes.square().mean()).backward()
    (expected.logits.square().mean() + expected.pred_boxes.square().mean()).backward()
    for key, value in ours.items():
        gradient = theirs[peft_name(key)].grad
        torch.testing.assert_close(value.grad, gradient, rtol=1e-4, atol=2e-5 * gradient.abs().max().item())
