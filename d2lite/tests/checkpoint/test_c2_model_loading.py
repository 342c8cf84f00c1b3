import pytest
import torch

from detectron2.checkpoint.c2_model_loading import (
    _longest_common_prefix_str,
    align_and_update_state_dicts,
    convert_basic_c2_names,
    convert_c2_detectron_names,
)


def zeros(*names, size=2):
    return {name: torch.zeros(size) for name in names}


def ones(*names, size=2):
    return {name: torch.ones(size) for name in names}


@pytest.mark.parametrize(
    "blob, name",
    [
        ("conv1_w", "stem.conv1.weight"),
        ("res_conv1_bn_s", "stem.conv1.norm.weight"),
        ("res_conv1_bn_riv", "stem.conv1.norm.running_var"),
        ("pred_b", "linear.bias"),
        ("fc1000_w", "fc1000.weight"),
        ("res2_0_branch1_w", "res2.0.shortcut.weight"),
        ("res2_0_branch2a_bn_b", "res2.0.conv1.norm.bias"),
        ("res3_3_branch2b_gn_s", "res3.3.conv2.norm.weight"),
        ("res5_2_branch2c_bn_rm", "res5.2.conv3.norm.running_mean"),
    ],
)
def test_backbone_names(blob, name):
    assert convert_basic_c2_names([blob]) == [name]


@pytest.mark.parametrize(
    "blob, name",
    [
        ("conv_rpn_fpn2_w", "proposal_generator.rpn_head.conv.weight"),
        ("rpn_cls_logits_b", "proposal_generator.rpn_head.objectness_logits.bias"),
        ("rpn_bbox_pred_fpn2_w", "proposal_generator.rpn_head.anchor_deltas.weight"),
        ("fc6_w", "box_head.fc1.weight"),
        ("fc7_b", "box_head.fc2.bias"),
        ("head_conv4_gn_s", "box_head.conv4.norm.weight"),
        ("fpn_inner_res4_22_sum_lateral_w", "fpn_lateral4.weight"),
        ("fpn_inner_res5_2_sum_b", "fpn_lateral5.bias"),
        ("fpn_res3_3_sum_gn_b", "fpn_output3.norm.bias"),
        ("_[mask]_fcn1_w", "mask_head.mask_fcn1.weight"),
        ("conv5_mask_w", "mask_head.deconv.weight"),
        ("conv_fcn8_b", "roi_heads.keypoint_head.conv_fcn8.bias"),
        ("kps_score_lowres_w", "roi_heads.keypoint_head.score_lowres.weight"),
    ],
)
def test_detector_names(blob, name):
    value = torch.rand(12, 1)
    weights, originals = convert_c2_detectron_names({blob: value})
    assert originals == {name: blob}
    assert torch.equal(weights[name], value)


@pytest.mark.parametrize(
    "blob, name, rows",
    [
        ("bbox_pred_w", "bbox_pred.weight", [4, 5, 6, 7, 8, 9, 10, 11]),
        ("cls_score_b", "cls_score.bias", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0]),
        ("mask_fcn_logits_w", "mask_head.predictor.weight", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    ],
)
def test_the_background_class_came_first(blob, name, rows):
    weights, _ = convert_c2_detectron_names({blob: torch.arange(12.0)})
    assert weights[name].tolist() == rows


def test_the_longest_suffix_wins():
    model = zeros("m.a.b.w", "b.w", "u")
    checkpoint = {**ones("a.b.w"), "b.w": torch.full((2,), 2.0), "w": torch.full((2,), 3.0)}
    aligned = align_and_update_state_dicts(model, checkpoint, c2_conversion=False)
    assert {name: value[0].item() for name, value in aligned.items()} == {"m.a.b.w": 1, "b.w": 2, "w": 3}


def test_suffixes_end_at_dots():
    assert set(align_and_update_state_dicts(zeros("a.xw"), ones("w"), c2_conversion=False)) == {"w"}


def test_other_shapes_do_not_match():
    assert set(align_and_update_state_dicts(zeros("a.w"), ones("w", size=3), c2_conversion=False)) == {"w"}


def test_ambiguity():
    with pytest.raises(ValueError):
        align_and_update_state_dicts(zeros("m.w", "n.w"), ones("w"), c2_conversion=False)


def test_common_prefix():
    assert _longest_common_prefix_str(["classA", "classB", "clab"]) == "cla"
    assert _longest_common_prefix_str(["class", "other"]) == ""
