"""The promises of PEFT on a small Mask DINO, through nothing but Detectron2's own classes."""
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances

from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.weight_files import convert_weights, merge_delta
from lowrank_d2.errors import CheckpointError, ConfigError, DeltaError
from lowrank_d2.modeling.maskdino.weights import from_upstream
from lowrank_d2.peft import check_frozen, check_gradients, merge, save_delta
from lowrank_d2.peft.trainable import added_names

SMALL = """
INPUT: {MIN_SIZE_TEST: 64, MAX_SIZE_TEST: 64}
MODEL:
  META_ARCHITECTURE: "MaskDINO"
  DEVICE: "cpu"
  BACKBONE: {NAME: "build_resnet_backbone", FREEZE_AT: 0}
  RESNETS:
    OUT_FEATURES: ["res2", "res3", "res4", "res5"]
    STEM_OUT_CHANNELS: 8
    RES2_OUT_CHANNELS: 16
    WIDTH_PER_GROUP: 8
  SEM_SEG_HEAD:
    NAME: "MaskDINOHead"
    IN_FEATURES: ["res2", "res3", "res4", "res5"]
    NUM_CLASSES: 2
    CONVS_DIM: 32
    MASK_DIM: 32
    NORM: "GN"
    DIM_FEEDFORWARD: 32
    TRANSFORMER_ENC_LAYERS: 1
    TOTAL_NUM_FEATURE_LEVELS: 3
    FEATURE_ORDER: "low2high"
  MaskDINO:
    HIDDEN_DIM: 32
    DIM_FEEDFORWARD: 32
    DEC_LAYERS: 2
    NUM_OBJECT_QUERIES: 8
    DROPOUT: 0.0
    INITIALIZE_BOX_TYPE: "mask2box"
    TRAIN_NUM_POINTS: 32
    DN_NUM: 4
    TEST: {SEMANTIC_ON: False, INSTANCE_ON: True}
"""
LORA = ["MODEL.PEFT.METHODS", "['lora']", "MODEL.PEFT.TRAIN", "embeddings", "MODEL.PEFT.LORA.RANK", "2"]
ADAPTER = ["MODEL.PEFT.METHODS", "['adapter']", "MODEL.PEFT.TRAIN", "embeddings"]
METHODS = {
    "lora": LORA,
    "adapter": ADAPTER,
    "dora": ["MODEL.PEFT.METHODS", "['dora']", "MODEL.PEFT.TRAIN", "embeddings", "MODEL.PEFT.DORA.RANK", "2"],
    "adalora": ["MODEL.PEFT.METHODS", "['adalora']", "MODEL.PEFT.TRAIN", "embeddings", "MODEL.PEFT.ADALORA.RANK", "2",
                "MODEL.PEFT.ADALORA.TARGET_RANK", "1"],
    "loha": ["MODEL.PEFT.METHODS", "['loha']", "MODEL.PEFT.TRAIN", "embeddings", "MODEL.PEFT.LOHA.RANK", "2",
             "MODEL.PEFT.LOHA.TARGETS", "['value_proj', 'linear1', 're:backbone.*conv1']"],
    "lokr and adapter": ["MODEL.PEFT.METHODS", "['lokr', 'adapter']", "MODEL.PEFT.TRAIN", "embeddings", "MODEL.PEFT.LOKR.RANK",
                         "2", "MODEL.PEFT.LOKR.RANK_PATTERN", "[['value_proj', 1]]"],
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return lambda *words: load_config(str(path), list(words))


@pytest.fixture
def base(config, tmp_path):
    """A checkpoint for five classes."""
    torch.manual_seed(0)
    model = build_model(config("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5"))
    torch.save({"model": model.state_dict()}, tmp_path / "base.pth")
    return str(tmp_path / "base.pth")


def loaded(cfg):
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def trained(cfg, base, steps=2):
    """Loads the base and takes a few steps on one image with two objects."""
    torch.manual_seed(1)
    model = build_model(cfg)
    DetectionCheckpointer(model).load(base)
    instances = Instances((64, 64), gt_classes=torch.tensor([0, 1]))
    instances.gt_boxes = Boxes(torch.tensor([[4.0, 4, 30, 40], [20.0, 10, 60, 50]]))
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 4:40, 4:30] = masks[1, 10:50, 20:60] = True
    instances.gt_masks = BitMasks(masks)
    batch = [{"image": torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8), "instances": instances}]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        sum(model(batch).values()).backward()
        check_gradients(model)
        optimizer.step()
    return model.eval()


def predictions(model):
    image = torch.randint(0, 255, (3, 64, 64), generator=torch.Generator().manual_seed(2)).float()
    with torch.no_grad():
        found = model([{"image": image}])[0]["instances"]
    return found.scores, found.pred_boxes.tensor, found.pred_masks


def assert_same(a, b, **tolerance):
    for ours, theirs in zip(predictions(a), predictions(b)):
        torch.testing.assert_close(ours, theirs, **tolerance)


@every_method
def test_only_what_should_trains_and_the_rest_stays_bit_for_bit(config, base, method):
    model = trained(config(*method), base)
    before = torch.load(base)["model"]
    added = added_names(model)
    embeddings = ("decoder.heads.", "decoder.label_embedding.")
    for name, tensor in model.state_dict().items():
        if name in added:
            assert tensor.any() and (not tensor.is_floating_point() or model.get_parameter(name).requires_grad)
        elif not name.startswith(embeddings):
            assert torch.equal(tensor, before[name]), name
    backbone_adapts = any(name.startswith("backbone.") for name in added)
    assert model.train().backbone.training == backbone_adapts and model.decoder.training


@pytest.mark.parametrize("method", [name for name in METHODS if "adapter" not in name])
def test_the_start_is_the_base(config, base, method):
    five = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5", "MODEL.WEIGHTS", base]
    assert_same(loaded(config(*five, *METHODS[method])), loaded(config(*five)), rtol=1e-4, atol=1e-5)


@every_method
def test_a_delta_works_through_plain_default_predictor(config, base, tmp_path, method):
    model, delta = trained(config(*method), base), str(tmp_path / "delta.safetensors")
    save_delta(model, delta, class_names=["ant", "bee"])
    cfg = config("MODEL.WEIGHTS", base, "MODEL.PEFT.DELTA", delta, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5")
    predictor = DefaultPredictor(cfg)
    assert_same(predictor.model, model, rtol=0, atol=0)
    assert len(predictor(np.zeros((64, 64, 3), np.uint8))["instances"]) == 16  # 8 queries, the two classes of the delta


def test_a_full_checkpoint_resumes_over_the_delta(config, base, tmp_path):
    delta, checkpoint = str(tmp_path / "delta.safetensors"), str(tmp_path / "model_final.pth")
    save_delta(trained(config(*LORA), base), delta, class_names=["ant", "bee"])
    later = trained(config(*LORA), base, steps=4)
    torch.save({"model": later.state_dict()}, checkpoint)
    resumed = loaded(config("MODEL.WEIGHTS", checkpoint, "MODEL.PEFT.DELTA", delta))
    assert_same(resumed, later, rtol=0, atol=0)


def test_wrong_bases_ranks_and_files_are_refused(config, base, tmp_path):
    delta = str(tmp_path / "delta.safetensors")
    model = trained(config(*LORA), base)
    save_delta(model, delta, class_names=["ant", "bee"])
    state = torch.load(base)
    state["model"]["decoder.layers.1.ffn.linear1.weight"][0, 0] += 1
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(DeltaError, match="The first tensor that differs is decoder.layers.1.ffn.linear1.weight"):
        loaded(config("MODEL.WEIGHTS", str(tmp_path / "other.pth"), "MODEL.PEFT.DELTA", delta))
    with pytest.raises(DeltaError, match="LORA.RANK 2, this model has 4"):
        build_model(config(*LORA[:-1], "4", "MODEL.WEIGHTS", base, "MODEL.PEFT.DELTA", delta))
    with pytest.raises(ConfigError, match="MODEL.WEIGHTS"):
        build_model(config("MODEL.PEFT.DELTA", delta))
    with pytest.raises(CheckpointError, match="a delta file"):
        loaded(config("MODEL.WEIGHTS", delta))


@pytest.mark.parametrize("method", [name for name in METHODS if "adapter" not in name])
def test_merge_and_conversion(config, base, tmp_path, method):
    model, delta = trained(config(*METHODS[method]), base), str(tmp_path / "delta.safetensors")
    save_delta(model, delta, class_names=["ant", "bee"])
    merged, upstream = str(tmp_path / "merged.safetensors"), str(tmp_path / "upstream.pth")
    header = merge_delta(config("MODEL.WEIGHTS", base), delta, merged)
    assert header.num_classes == 2
    plain = loaded(config("MODEL.WEIGHTS", merged))
    assert not added_names(plain)
    assert_same(plain, model, rtol=1e-4, atol=1e-4)
    convert_weights("maskdino", merged, upstream)
    names = torch.load(upstream)["model"]
    assert "sem_seg_head.predictor.decoder.layers.1.self_attn.in_proj_weight" in names
    back, want = from_upstream(names), merge(model)
    assert back.keys() == want.keys() and all(torch.equal(back[name], want[name]) for name in want)
    assert_same(loaded(config("MODEL.WEIGHTS", upstream)), plain, rtol=0, atol=0)


def test_what_cannot_be_merged_or_converted_is_said(config, base, tmp_path):
    delta, target = str(tmp_path / "delta.safetensors"), str(tmp_path / "out.safetensors")
    save_delta(trained(config(*ADAPTER), base), delta, class_names=["ant", "bee"])
    with pytest.raises(DeltaError, match="cannot be merged"):
        merge_delta(config("MODEL.WEIGHTS", base), delta, target)
    with pytest.raises(ConfigError, match="MODEL.WEIGHTS is empty"):
        merge_delta(config(), delta, target)
    with pytest.raises(ConfigError, match="ends in '.bin'. Use .safetensors or .pth"):
        merge_delta(config("MODEL.WEIGHTS", base), delta, str(tmp_path / "out.bin"))
    with pytest.raises(CheckpointError, match="is a delta file. Merge it"):
        convert_weights("maskdino", delta, target)
    with pytest.raises(CheckpointError, match="do not exist"):
        convert_weights("maskdino", str(tmp_path / "absent.pth"), target)
    convert_weights("maskdino", base, target)
    with pytest.raises(CheckpointError, match="has the original's names already"):
        convert_weights("maskdino", target, str(tmp_path / "again.pth"))


def test_a_class_head_of_other_classes_may_be_random_if_it_trains(config, tmp_path):
    torch.save({"model": build_model(config()).state_dict()}, tmp_path / "base.pth")
    for train in ("embeddings", "none"):
        model = build_model(config(*LORA, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5", "MODEL.PEFT.TRAIN", train))
        DetectionCheckpointer(model).load(str(tmp_path / "base.pth"))
        if train == "embeddings":
            check_frozen(model)
    with pytest.raises(CheckpointError, match=r"decoder.heads.class_embed.weight \(5, 32\), .* 'embeddings'"):
        check_frozen(model)
