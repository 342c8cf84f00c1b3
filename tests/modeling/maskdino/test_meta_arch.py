import copy

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.structures import Boxes, PolygonMasks

import lowrank_d2
from lowrank_d2.errors import ConfigError
from lowrank_d2.layers.draws import RecordingDraws, ReplayDraws
from lowrank_d2.modeling.maskdino.weights import to_upstream
from lowrank_d2.peft import save_delta


def test_losses_in_training_and_results_in_evaluation(tiny_model, images):
    model = tiny_model()
    losses = model.train()(images)
    assert all(value.isfinite() for value in losses.values()) and len(losses) == 35
    sum(losses.values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    with torch.no_grad():
        results = model.eval()(images)
    assert [r["instances"].image_size for r in results] == [(64, 96), (50, 70)]
    assert all(len(r["instances"]) == 12 * 5 for r in results)


def test_results_have_the_wanted_size_or_the_images(tiny_model, images):
    first, second = ({"image": images[0]["image"], "height": 33, "width": 77}, {"image": images[1]["image"]})
    with torch.no_grad():
        results = tiny_model().eval()([first, second])
    assert [r["instances"].pred_masks.shape[1:] for r in results] == [(33, 77), (50, 70)]


def test_a_step_can_be_recorded_and_replayed(tiny_model, images):
    model = tiny_model().train()
    recorder = model.draws = RecordingDraws(model.draws)
    losses = model(images)
    model.draws = ReplayDraws(recorder.recorded)
    again = model(images)
    assert all(torch.equal(losses[name], again[name]) for name in losses)


def test_all_kinds_of_masks_are_understood(tiny_model, images):
    model = tiny_model()
    instances = images[0]["instances"]
    square = [[10.0, 8.0, 30.0, 8.0, 30.0, 40.0, 10.0, 40.0]]
    seen = []
    for masks in (PolygonMasks([square, square]), instances.gt_masks, instances.gt_masks.tensor):
        instances.gt_masks = masks
        seen.append(model._target(instances, (64, 96)).masks)
    assert torch.equal(seen[1], seen[2]) and seen[0].shape == (2, 64, 96) and seen[0].dtype == torch.bool
    assert seen[0][0].sum() == 20 * 32


def test_instances_without_masks_are_refused_unless_there_are_none(tiny_model, images):
    instances = images[0]["instances"]
    instances.remove("gt_masks")
    with pytest.raises(ConfigError, match="2 training instances came without gt_masks.*MODEL.MASK_ON True"):
        tiny_model()._target(instances, (64, 96))
    assert tiny_model()._target(instances[:0], (64, 96)).masks.shape == (0, 64, 96)


@pytest.mark.parametrize("mended, width", [(False, 35 / 70), (True, 35 / 96)])
def test_training_boxes_are_fractions_of_the_image_or_with_the_mend_of_the_canvas(tiny_model, images, mended, width):
    model = tiny_model({"MODEL.MaskDINO.FIX.BOX_CANVAS": mended})
    instances = images[0]["instances"]
    instances._image_size = (50, 70)
    instances.gt_masks = instances.gt_masks.tensor[:, :50, :70]
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 0.0, 35.0, 50.0]] * 2))
    target = model._target(instances, (64, 96))
    height = 50 / 64 if mended else 1.0
    torch.testing.assert_close(target.boxes[0], torch.tensor([width / 2, height / 2, width, height]))
    assert target.masks.shape == (2, 64, 96) and not target.masks[:, 50:].any() and not target.masks[:, :, 70:].any()


def test_with_the_mend_padding_is_marked_and_the_default_knows_none(tiny_model, images):
    for mended in (False, True):
        model = tiny_model({"MODEL.MaskDINO.FIX.PADDING_MASK": mended}).eval()
        seen = []
        model.pixel_decoder.register_forward_hook(lambda module, inputs, out: seen.append(out.padding))
        with torch.no_grad():
            model(images)
        if not mended:
            assert seen == [None]
            continue
        finest = seen[0][0]  # stride 8: 50 of 64 rows are 6.25 of 8 cells, 70 of 96 columns 8.75 of 12
        assert finest[0].sum() == 0
        assert finest[1].sum() == 8 * 12 - 7 * 9


def test_padding_is_zero_after_normalisation(tiny_model, images):
    model = tiny_model()
    tensor = model.preprocess(images).tensor
    assert tensor.shape == (2, 3, 64, 96) and tensor[1, :, 50:].abs().max() == 0
    torch.testing.assert_close(tensor[0, 0], (images[0]["image"][0] - model.pixel_mean[0]) / model.pixel_std[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"MODEL.MaskDINO.TWO_STAGE": False},
        {"MODEL.MaskDINO.LEARN_TGT": True, "MODEL.MaskDINO.INITIALIZE_BOX_TYPE": "bitmask"},
        {"MODEL.MaskDINO.INITIAL_PRED": False, "MODEL.MaskDINO.DN": "standard"},
        {"MODEL.SEM_SEG_HEAD.FEATURE_ORDER": "high2low", "MODEL.SEM_SEG_HEAD.TOTAL_NUM_FEATURE_LEVELS": 3},
        {"MODEL.SEM_SEG_HEAD.TOTAL_NUM_FEATURE_LEVELS": 5, "MODEL.MaskDINO.ENFORCE_INPUT_PROJ": True},
        {"MODEL.MaskDINO.TEST.SEMANTIC_ON": True, "MODEL.MaskDINO.SEMANTIC_CE_LOSS": True, "MODEL.MaskDINO.DN": "no"},
        {"MODEL.SEM_SEG_HEAD.CONVS_DIM": 64, "MODEL.MaskDINO.HIDDEN_DIM": 32},
        {"MODEL.MaskDINO.FIX.PADDING_MASK": True, "MODEL.MaskDINO.FIX.EXTRA_LEVEL_ENCODING": True},
    ],
    ids=lambda changes: "-".join(f"{key.split('.')[-1]}={value}" for key, value in changes.items()),
)
def test_switches_train_every_parameter_and_evaluate(tiny_model, images, changes):
    model = tiny_model(changes).train()
    losses = model(images)
    assert all(value.isfinite() for value in losses.values())
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        results = model.eval()(images)
    assert all(r["instances"].scores.isfinite().all() for r in results)


def test_the_parts_cover_the_model(tiny_model):
    model = tiny_model()
    parts, names = model.peft_parts(), [name for name, _ in model.named_parameters()]

    def count(part):
        return sum(name.startswith(tuple(p + "." for p in parts[part])) for name in names)

    assert count("backbone") + count("full_head") == len(names)
    assert count("embeddings") == 2 + 6 + 6 and count("label_embedding") == 1
    assert set(model.components()) == {"backbone", "pixel_decoder", "decoder"}


def test_the_default_targets_are_two_projections_of_every_attention(tiny_model):
    model = tiny_model()
    names = [name for name, _ in model.named_modules()]
    hits = [name for name in names if any(name.endswith("." + target) for target in model.peft_targets())]
    assert len(hits) == 2 * (1 + 2 + 2)  # one encoder layer, two decoder layers with two attentions


def test_methods_none_leaves_the_model_untouched_and_adapters_go_into_every_slot(tiny_model, images):
    plain = tiny_model()
    assert not any("adapter" in name or "lora" in name for name in plain.state_dict())
    adapted = tiny_model({"MODEL.PEFT.METHODS": ["adapter"], "MODEL.PEFT.TRAIN": "embeddings"})
    slots = {name.split(".adapter.")[0] for name in adapted.state_dict() if ".adapter." in name}
    assert len(slots) == 1 + 2 * 2
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert "decoder.label_embedding.weight" in trained and not any(name.startswith("backbone") for name in trained)
    sum(adapted.train()(images).values()).backward()
    assert all((p.grad is not None) == p.requires_grad for p in adapted.parameters())


def test_frozen_parts_stay_in_evaluation_mode(tiny_model):
    changes = {"MODEL.PEFT.TRAIN": "embeddings", "MODEL.MaskDINO.DROPOUT": 0.5}
    model = tiny_model(changes).train()
    assert not model.backbone.training and not model.pixel_decoder.training and model.training
    assert model.decoder.heads.class_embed.training


def test_a_copy_computes_the_same(tiny_model, images):
    model = tiny_model().eval()
    with torch.no_grad():
        one, other = model(images)[0]["instances"], copy.deepcopy(model)(images)[0]["instances"]
    assert torch.equal(one.scores, other.scores)


def test_the_package_registers_its_prefix_and_needs_no_second_import():
    from detectron2.data import DatasetCatalog
    from detectron2.modeling import META_ARCH_REGISTRY
    from detectron2.utils.file_io import PathManager

    assert "MaskDINO" in META_ARCH_REGISTRY and "ndd20_train" in DatasetCatalog.list()
    path = PathManager.get_local_path("lowrank_d2://config.yaml")
    assert path.endswith("lowrank_d2/assets/config.yaml") and path.startswith(lowrank_d2.__path__[0])


def test_mixed_precision_trains_with_float32_boxes(tiny_model, images):
    model = tiny_model().train()
    predictions = []
    model.decoder.register_forward_hook(lambda module, inputs, out: predictions.append(out))
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(images)
    assert predictions[0].last.boxes.dtype == torch.float32 and predictions[0].last.logits.dtype == torch.bfloat16
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_a_delta_brings_its_methods_and_classes(tiny_model, tiny_config, images, tmp_path):
    base = {name: x.clone() for name, x in tiny_model({"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 7}).state_dict().items()}
    torch.save({"model": to_upstream(base)}, tmp_path / "base.pth")
    tuned = tiny_model({"MODEL.PEFT.METHODS": ["lora"], "MODEL.PEFT.LORA.RANK": 2, "MODEL.PEFT.TRAIN": "embeddings"})
    DetectionCheckpointer(tuned).load(str(tmp_path / "base.pth"))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    save_delta(tuned, tmp_path / "delta.safetensors", class_names=list("abcde"))

    cfg = tiny_config({
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 80,
        "MODEL.WEIGHTS": str(tmp_path / "base.pth"),
        "MODEL.PEFT.DELTA": str(tmp_path / "delta.safetensors"),
    })
    again = build_model(cfg)
    DetectionCheckpointer(again).load(cfg.MODEL.WEIGHTS)
    with torch.no_grad():
        one, other = (model.eval()(images)[0]["instances"] for model in (tuned, again))
    assert again.decoder.num_classes == 5
    torch.testing.assert_close(one.scores, other.scores)
    assert torch.equal(one.pred_masks, other.pred_masks)
