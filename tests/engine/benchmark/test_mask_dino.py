import pytest
from detectron2.config import get_cfg

from lowrank_d2.config import add_lowrank_config
from lowrank_d2.engine.benchmark import mask_dino


@pytest.fixture
def small_model(tmp_path):
    cfg = get_cfg()
    add_lowrank_config(cfg)
    cfg.merge_from_list(
        "MODEL.META_ARCHITECTURE MaskDINO MODEL.BACKBONE.NAME build_resnet_backbone MODEL.BACKBONE.FREEZE_AT 0 "
        "MODEL.RESNETS.OUT_FEATURES ['res2','res3','res4','res5'] MODEL.RESNETS.STEM_OUT_CHANNELS 8 "
        "MODEL.RESNETS.RES2_OUT_CHANNELS 32 MODEL.SEM_SEG_HEAD.IN_FEATURES ['res2','res3','res4','res5'] "
        "MODEL.SEM_SEG_HEAD.CONVS_DIM 32 MODEL.SEM_SEG_HEAD.MASK_DIM 32 MODEL.SEM_SEG_HEAD.NORM GN "
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS 1 MODEL.SEM_SEG_HEAD.DIM_FEEDFORWARD 32 "
        "MODEL.SEM_SEG_HEAD.TOTAL_NUM_FEATURE_LEVELS 3 MODEL.SEM_SEG_HEAD.FEATURE_ORDER low2high "
        "MODEL.MaskDINO.HIDDEN_DIM 32 MODEL.MaskDINO.DIM_FEEDFORWARD 32 MODEL.MaskDINO.DEC_LAYERS 1 "
        "MODEL.MaskDINO.TRAIN_NUM_POINTS 64 MODEL.MaskDINO.DN_NUM 10 MODEL.MaskDINO.TEST.INSTANCE_ON True "
        "MODEL.MaskDINO.TEST.SEMANTIC_ON False".split()
    )
    file = tmp_path / "small.yaml"
    file.write_text(cfg.dump())
    return str(file)


@pytest.mark.slow
def test_the_stages_of_one_round_are_its_whole(small_model):
    stages = mask_dino.run([small_model], rounds=1, training={})["inference_seconds"]
    assert stages["total"] == pytest.approx(sum(v for k, v in stages.items() if k != "total"), abs=2e-3)


@pytest.mark.slow
def test_every_kind_is_measured_in_its_own_process(small_model):
    report = mask_dino.run([small_model], rounds=3)  # one is not enough beside other work
    assert report["inference_backbones"] > 1 and report["inference_peak_mb"] > 100
    assert list(report["training"]) == ["full_head", "adapters_2", "lora", "embeddings"]
    assert all(kind["backbones"] > 1 and kind["peak_mb"] > 100 for kind in report["training"].values())


def test_a_training_step_trains_what_its_kind_says(small_model, monkeypatch):
    monkeypatch.setattr(mask_dino, "SIZE", 64)
    trained = {}
    for kind, opts in mask_dino.TRAINING.items():
        model = mask_dino._model([small_model], opts)
        trained[kind] = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.startswith("decoder.heads.") for name in trained["embeddings"])
    assert trained["embeddings"] < trained["lora"] and any("lora" in name for name in trained["lora"])
    assert trained["embeddings"] < trained["adapters_2"] and any("adapter" in name for name in trained["adapters_2"])
    assert "pixel_decoder.level_embed" in trained["full_head"]


def test_images_have_instances_within_them():
    instances = mask_dino._instances()
    assert len(instances) == 5 and instances.gt_masks.tensor.flatten(1).any(1).all()
    boxes = instances.gt_boxes.tensor
    assert boxes.min() >= 0 and boxes.max() <= mask_dino.SIZE
