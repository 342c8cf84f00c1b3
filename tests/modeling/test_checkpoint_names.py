"""Renaming by rules, and the checks that every model makes of a state dict before it is loaded."""
import logging

import pytest
import torch

from lowrank_d2.errors import CheckpointError
from lowrank_d2.modeling import checkpoint_names as cn

RULES = (
    ("decoder.{n}.attn.{q}_proj.{x}", "layers.{n}.{q}.{x}"),
    ("decoder.{n}.{name}.{x}", "layers.{n}.other.{name}.{x}"),
    ("backbone.{module}", "net.{module}"),
)
LOG = logging.getLogger(__name__)


def zeros(**shapes):
    return {name.replace("_", "."): torch.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("ours, theirs", [
    ("decoder.12.attn.k_proj.bias", "layers.12.k.bias"),
    ("decoder.0.sub_norm.weight", "layers.0.other.sub_norm.weight"),
    ("backbone.res2.0.conv1.norm.running_var", "net.res2.0.conv1.norm.running_var"),
])
def test_rules_work_both_ways(ours, theirs):
    there, back = cn.both_ways(RULES)
    assert cn.renamed(ours, there) == theirs and cn.renamed(theirs, back) == ours


@pytest.mark.parametrize("name", [
    "decoder.x.norm.weight", "decoder.0.norm.scale", "decoder.0.norm.a.bias", "decoder.0.norm.biases",
    "xdecoder.0.norm.bias", "decoder_0.norm.bias",
])
def test_a_name_must_fit_as_a_whole(name):
    assert cn.renamed(name, cn.both_ways(RULES)[0]) is None


def test_a_word_of_the_wanted_template_alone_stays_open():
    rules = cn.one_way([("packed.{x}", "{q}_proj.{x}")])
    assert [cn.renamed("packed.bias", rules).format(q=letter) for letter in "qk"] == ["q_proj.bias", "k_proj.bias"]


@pytest.mark.parametrize("theirs, ours", [
    ("conv1.weight", "stem.conv1.weight"),
    ("bn1.running_mean", "stem.conv1.norm.running_mean"),
    ("layer1.0.conv3.weight", "res2.0.conv3.weight"),
    ("layer4.11.bn2.bias", "res5.11.conv2.norm.bias"),
    ("layer2.0.downsample.0.weight", "res3.0.shortcut.weight"),
    ("layer3.0.downsample.1.num_batches_tracked", "res4.0.shortcut.norm.num_batches_tracked"),
    ("layer5.0.conv1.weight", None),
    ("fc.weight", None),
])
def test_a_resnet_of_torchvision(theirs, ours):
    assert cn.renamed(theirs, cn.RESNET) == ours


def test_copies_agree_in_values_and_shape_or_have_no_values():
    a = torch.arange(3.0)
    assert cn.same_values(a, a.clone()) and cn.same_values(a, a.to("meta"))
    assert not cn.same_values(a, a + 1) and not cn.same_values(a, a[:1])
    assert not cn.same_values(a, torch.ones(2, device="meta"))
    nan = torch.tensor([float("nan")])
    assert cn.same_values(nan, nan)


def test_pieces_are_joined_in_order_and_all_of_them():
    pieces = {letter: torch.full((2, 1), float(i)) for i, letter in enumerate("vkq")}
    assert cn.joined({"in_proj": pieces}, "qkv", str)["in_proj"].flatten().tolist() == [2, 2, 1, 1, 0, 0]
    del pieces["k"]
    with pytest.raises(CheckpointError, match="in_proj has v and q"):
        cn.joined({"in_proj": pieces}, "qkv", lambda name, given: f"{name} has {' and '.join(given)}")


def test_a_listing_counts_what_it_leaves_out():
    assert cn.listing(iter("abc"), 3) == "a, b, c" and cn.listing("abcd", 3) == "a, b, c and 1 more"


def test_a_dict_of_another_model_is_refused():
    with pytest.raises(CheckpointError, match=r"None of the 2 tensors .* to YOLOS \(the first is b.x\). Take another."):
        cn.check_any_match(zeros(b_x=1, b_y=1), {"a.x": (1,)}, "YOLOS", "Take another.")
    with pytest.raises(CheckpointError, match="None of the 0 tensors .*the first is missing"):
        cn.check_any_match({}, {"a.x": (1,)}, "YOLOS", "Take another.")
    cn.check_any_match(zeros(b_x=1, a_x=7), {"a.x": (1,), "a.y": (1,)}, "YOLOS", "Take another.")


def test_other_shapes_are_dropped_where_they_may_differ_and_else_told():
    tensors = zeros(head_w=(3, 4), body_w=(5,), body_b=2, extra_w=1)
    expected = {"head.w": (7, 4), "body.w": (6, 2), "body.b": [2], "body.c": (1,)}
    fatal = cn.drop_other_shapes(tensors, expected, lambda name: name.startswith("head"))
    assert fatal == {"body.w": "(5,) instead of (6, 2)"}
    assert list(tensors) == ["body.w", "body.b", "extra.w"]


def test_parts_are_whole_words_and_wholly_missing_only_if_the_model_has_them():
    expected = dict.fromkeys(("neck.a", "neck.b", "necklace.a", "head.a", "body.a"), (1,))
    found = cn.missing_by_part(zeros(neck_b=1, head_a=1), expected, ("neck", "body", "head", "tail"))
    missing = [("neck", ["neck.a"], False), ("body", ["body.a"], True), ("head", [], False), ("tail", [], False)]
    assert list(found) == missing


def test_an_incomplete_part_is_refused():
    cn.check_complete("pixel decoder", [])
    with pytest.raises(CheckpointError, match="a part of the pixel decoder: missing are a, b and 1 more. Load a"):
        cn.check_complete("pixel decoder", ["a", "b", "c"], limit=2)


def test_what_keeps_its_initialisation_is_told(caplog):
    cn.warn_initialised(LOG)
    assert not caplog.records
    cn.warn_initialised(LOG, "neck and no head", ["class.w", "class.b"])
    assert [record.getMessage() for record in caplog.records] == [
        "The checkpoint has no neck and no head: it keeps its initialisation.",
        "Initialised anew, because the checkpoint has other classes: class.w, class.b",
    ]
