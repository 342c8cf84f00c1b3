"""Both models: any number of objects trains, branches change nothing in evaluation, checkpoints cross over."""
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from lora_detr.weights import from_upstream, our_name
from lowrank_d2.errors import CheckpointError
from lowrank_d2.layers.branches import training_only_names
from lowrank_d2.layers.draws import Draws, RecordingDraws
from lowrank_d2.peft import merge

FAMILIES = ("deformable_detr", "deformable_detr_pp", "relation_detr")
LORA3 = [f"{family}_R50_lora3" for family in FAMILIES]
WITHOUT = {"MODEL.LORA_DETR.K": "None"}


@pytest.mark.parametrize("name", [*LORA3, "deformable_detr_R50", "relation_detr_R50"])
@pytest.mark.parametrize("counts", [(3, 0), (0, 0), (1,), (60, 2)])
def test_images_with_any_number_of_objects_train(small_model, batch, name, counts):
    model = small_model(name).train()
    model.draws = draws = RecordingDraws(Draws())
    losses = model(batch(*counts))
    total = sum(losses.values())
    total.backward()
    assert torch.isfinite(total) and total > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    layers, branches = 2, 0 if not name.endswith("3") else 3
    boxes = [value for key, value in losses.items() if key.startswith("loss_bbox")]
    if any(counts):
        assert all(value > 0 for key, value in losses.items() if "lora" not in key)
    else:
        assert not any(boxes)
    drawn = [key for key in draws.recorded if key.startswith("assigner/")]
    assert len(drawn) == layers * branches * sum(count > 0 for count in counts)


@pytest.mark.parametrize("rule", ["released", "paper"])
@pytest.mark.parametrize("k", ["[40]", "[1, 5, 9, 3]"])
def test_any_number_of_branches(small_model, batch, rule, k):
    model = small_model("deformable_detr_R50_lora3", {"MODEL.LORA_DETR.K": k, "MODEL.LORA_DETR.RULE": rule}).train()
    losses = model(batch(4, 2))
    count = k.count(",") + 1
    assert {key for key in losses if "lora" in key and "ce" in key} == {
        f"loss_ce{layer}_o2m_lora_{i}" for layer in ("", "_0") for i in range(count)
    }
    sum(losses.values()).backward()
    assert all(model.get_parameter(name).grad is not None for name in training_only_names(model))


def test_branches_weigh_by_their_number_and_the_loss_weight(small_model, batch):
    changes = {"MODEL.LORA_DETR.K": "[6]", "MODEL.LORA_DETR.CAP": "1.0"}
    one = small_model("deformable_detr_R50_lora3", changes).train()
    four = small_model("deformable_detr_R50_lora3", {**changes, "MODEL.LORA_DETR.LOSS_WEIGHT": "4.0"}).train()
    four.load_state_dict(one.state_dict())
    inputs = batch(4, 2)
    light, heavy = one(inputs), four(inputs)
    for key in light:
        torch.testing.assert_close(heavy[key], light[key] * (4 if "lora" in key else 1))


@pytest.mark.parametrize("name", LORA3)
def test_evaluation_does_not_know_branches(small_model, batch, name):
    full, plain = small_model(name), small_model(name, WITHOUT)
    plain.load_state_dict(full.state_dict())
    ran = []
    for layer in full.decoder.layers:
        layer.branches.register_forward_hook(lambda *_: ran.append(1))
    inputs = batch(2, 1)
    with torch.no_grad():
        for with_branches, without in zip(full(inputs), plain(inputs)):
            with_branches, without = with_branches["instances"], without["instances"]
            assert torch.equal(with_branches.scores, without.scores)
            assert torch.equal(with_branches.pred_boxes.tensor, without.pred_boxes.tensor)
            assert torch.equal(with_branches.pred_classes, without.pred_classes)
    assert not ran


@pytest.mark.parametrize("name", ["deformable_detr_R50", "relation_detr_R50"])
def test_without_branches_none_are_decoded(small_model, batch, name):
    model = small_model(name)
    decoded = model.decode(model.extract(model.preprocess(batch(1))), with_branches=True)
    assert decoded.branch_logits is None and decoded.branch_boxes is None


@pytest.mark.parametrize("kind, cross_first, carried", [
    ("lora", False, False), ("ffn", False, False), ("ffn", True, True)
])
def test_only_ms_detrs_branches_look_forward_twice(small_model, batch, kind, cross_first, carried):
    changes = {"MODEL.LORA_DETR.KIND": kind, "MODEL.DEFORMABLE_DETR.CROSS_FIRST": str(cross_first)}
    model = small_model("deformable_detr_pp_R50_lora1", changes)
    decoded = model.decode(model.extract(model.preprocess(batch(1))), with_branches=True)
    decoded.branch_boxes[0, 1].sum().backward()
    assert model.decoder.bbox_embed[0].layers[-1].weight.grad.any() == carried


@pytest.mark.parametrize("name", LORA3)
def test_checkpoints_with_and_without_branches_load_into_each_other(small_model, tmp_path, name):
    full, plain = small_model(name), small_model(name, WITHOUT)
    for source, target in ((full, plain), (plain, full)):
        torch.save({"model": source.state_dict()}, tmp_path / "model.pth")
        names = training_only_names(target)
        before = {key: value.clone() for key, value in target.state_dict().items() if key in names}
        with torch.no_grad():
            for key, parameter in target.named_parameters():
                if key not in names:
                    parameter.add_(1.0)
        DetectionCheckpointer(target).load(str(tmp_path / "model.pth"))
        after, given = target.state_dict(), source.state_dict()
        assert all(torch.equal(after[key], before[key] if key in names else given[key]) for key in after)


def test_branches_of_another_rank_start_anew(small_model):
    source = small_model("deformable_detr_R50_lora3").state_dict()
    target = small_model("deformable_detr_R50_lora3", {"MODEL.LORA_DETR.RANK": "4"})
    before = {name: target.state_dict()[name].clone() for name in training_only_names(target)}
    target.load_state_dict(source)
    assert all(torch.equal(target.state_dict()[name], value) for name, value in before.items())


def test_merged_weights_have_no_branches(small_model):
    model = small_model("relation_detr_R50_lora3", {"MODEL.PEFT.METHODS": "['lora']", "MODEL.PEFT.TRAIN": "none"})
    merged = merge(model)
    assert not [name for name in merged if ".branches." in name or "lora_" in name]
    plain = small_model("relation_detr_R50_lora3", WITHOUT)
    assert merged.keys() == plain.state_dict().keys()


def test_low_rank_methods_train_beside_branches(small_model, batch):
    changes = {"MODEL.PEFT.METHODS": "['lora']", "MODEL.PEFT.TRAIN": "none"}
    model = small_model("deformable_detr_R50_lora3", changes).train()
    sum(model(batch(3, 1)).values()).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert training_only_names(model) < trained and all("lora_" in n for n in trained - training_only_names(model))
    assert all(model.get_parameter(name).grad is not None for name in trained)


def test_other_classes_are_initialised_anew_and_the_rest_is_loaded(small_model, caplog):
    source = small_model("relation_detr_R50_lora3").state_dict()
    target = small_model("relation_detr_R50_lora3", {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": "6"})
    target.load_state_dict(source, strict=False)
    assert "Initialised anew" in caplog.text and target.decoder.class_embed[0].weight.shape[0] == 6
    assert torch.equal(target.queries.content.weight, source["queries.content.weight"])


@pytest.mark.parametrize("spoil, part", [
    (lambda d: {"other": torch.zeros(1)}, "None of the 1 tensors"),
    (lambda d: {k: v for k, v in d.items() if k != "decoder.norm.weight"}, "missing are decoder.norm.weight"),
    (lambda d: {**d, "decoder.norm.weight": torch.zeros(3)}, r"decoder.norm.weight \(3,\) instead of \(64,\)"),
])
def test_damaged_files_are_refused(small_model, spoil, part):
    model = small_model("relation_detr_R50")
    with pytest.raises(CheckpointError, match=part):
        model.load_state_dict(spoil(model.state_dict()))


def test_a_classifier_starts_the_backbone(small_model, caplog):
    model = small_model("deformable_detr_R50", {"MODEL.RESNETS.DEPTH": "50", "MODEL.RESNETS.RES2_OUT_CHANNELS": "256"})
    theirs = {"fc.weight": torch.zeros(2, 2), "bn1.num_batches_tracked": torch.tensor(0)}
    for name, tensor in model.state_dict().items():
        if name.startswith("backbone."):
            theirs[classifier_name(name)] = torch.full_like(tensor, 0.5)
    model.load_state_dict(theirs, strict=False)
    assert "keeps its initialisation" in caplog.text and "decoder" in caplog.text
    loaded = {name: value for name, value in model.state_dict().items() if name.startswith("backbone.")}
    assert all((value == 0.5).all() for value in loaded.values() if value.is_floating_point())


def classifier_name(name):
    """torchvision's name of a tensor of our ResNet."""
    parts = name.split(".")[1:]
    if parts[0] == "stem":
        return f"bn1.{parts[3]}" if parts[2] == "norm" else "conv1.weight"
    stage, block, layer = f"layer{int(parts[0][3]) - 1}", parts[1], parts[2]
    norm = parts[3] == "norm"
    if layer == "shortcut":
        return f"{stage}.{block}.downsample.{int(norm)}.{parts[-1]}"
    return f"{stage}.{block}.{'bn' if norm else 'conv'}{layer[-1]}.{parts[-1]}"


@pytest.mark.parametrize("theirs, ours", [
    ("backbone.0.body.layer2.0.bn3.running_var", "backbone.res3.0.conv3.norm.running_var"),
    ("backbone.layer4.2.conv1.weight", "backbone.res5.2.conv1.weight"),
    ("backbone.0.body.layer1.0.downsample.1.bias", "backbone.res2.0.shortcut.norm.bias"),
    ("backbone.conv1.weight", "backbone.stem.conv1.weight"),
    ("input_proj.3.1.bias", "neck.projections.3.1.bias"),
    ("transformer.decoder.layers.5.linear2_lora.lora_layers.2.B", "decoder.layers.5.branches.linear2.2.B"),
    ("transformer.decoder.layers.1.linear6.weight", "decoder.layers.1.branches.1.linear2.weight"),
    ("transformer.decoder.layers.1.linear13.weight", "decoder.layers.1.branches.5.linear1.weight"),
    ("transformer.decoder.layers.1.norm6.bias", "decoder.layers.1.branches.2.norm.bias"),
    ("transformer.decoder.bbox_embed.6.layers.2.bias", "decoder.bbox_embed.6.layers.2.bias"),
    ("class_embed.6.weight", "decoder.class_embed.6.weight"),
    ("decoder.layers.0.branches.linear1.0.A", "decoder.layers.0.branches.linear1.0.A"),
    ("backbone.res3.0.conv1.weight", "backbone.res3.0.conv1.weight"),
])
def test_names_of_the_originals(theirs, ours):
    assert our_name(theirs) == ours


def test_copies_of_a_shared_head_must_agree():
    one, other = torch.zeros(2, 2), torch.ones(2, 2)
    assert from_upstream({"class_embed.0.weight": one, "transformer.decoder.class_embed.0.weight": one.clone()})
    with pytest.raises(CheckpointError, match="two copies"):
        from_upstream({"class_embed.0.weight": one, "transformer.decoder.class_embed.0.weight": other})


def test_classes_stand_at_cocos_ids_or_at_their_own(small_config):
    assert build_model(small_config("deformable_detr_R50")).decoder.class_embed[0].out_features == 91
    own = build_model(small_config("deformable_detr_R50", {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": "6"}))
    assert own.decoder.class_embed[0].out_features == 6 and own.label_of_class.tolist() == list(range(6))
