"""A training step under bfloat16 autocast: boxes and losses stay in float32."""
from dataclasses import fields

import pytest
import torch

from lora_detr.deformable_criterion import DeformableCriterion

NAMES = [f"{family}_R50_lora3" for family in ("deformable_detr", "deformable_detr_pp", "relation_detr")]
EVERY_POSITIVE = {"MODEL.LORA_DETR.CAP": "1.0"}  # none is left out at random


@pytest.mark.parametrize("counts", [(4, 2), (0, 0)])
@pytest.mark.parametrize("name", NAMES)
def test_a_step_in_bfloat16(small_model, batch, name, counts):
    model = small_model(name, {**EVERY_POSITIVE, "MODEL.RESNETS.NORM": "FrozenBN"}).train()
    inputs, decoded = batch(*counts), []
    exact = sum(model(inputs).values()).item()
    model.decoder.register_forward_hook(lambda module, inputs, output: decoded.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(inputs)
    assert decoded[0].logits.dtype == torch.bfloat16  # it does act
    assert decoded[0].boxes.dtype == decoded[0].branch_boxes.dtype == torch.float32
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert sum(losses.values()).item() == pytest.approx(exact, rel=0.15)  # other queries may be chosen and matched
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_losses_of_bfloat16_predictions_are_those_of_float32(small_model, batch, monkeypatch):
    calls, original = [], DeformableCriterion.__call__

    def spy(self, *arguments):
        calls.append(arguments)
        return original(self, *arguments)

    monkeypatch.setattr(DeformableCriterion, "__call__", spy)
    model = small_model(NAMES[0], EVERY_POSITIVE).train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(batch(4, 2))
    decoded, proposals, *rest = calls[0]
    expected = original(model.criterion, in_float32(decoded), in_float32(proposals), *rest)
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=0.01), name


def in_float32(predictions):
    values = {field.name: getattr(predictions, field.name) for field in fields(predictions)}
    return type(predictions)(**{name: x.float() if x.is_floating_point() else x for name, x in values.items()})
