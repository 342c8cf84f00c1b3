"""The shipped configurations: parameters as the paper counts them, schedules, learning rates."""
import pytest
from lora_detr_cases import project_folder

from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.optimizer import build_optimizer
from lowrank_d2.engine.rehearsal import build_on_meta
from lowrank_d2.engine.report import report

CONFIGS = project_folder() / "configs"


def config(name, *words):
    return load_config(str(CONFIGS / f"{name}.yaml"), ["MODEL.DEVICE", "cpu", *words])


# Trained parameters; stem and first stage of the backbone are frozen.
TRAINED = [
    ("deformable_detr_R50", None, 47_262_873, 0),
    ("deformable_detr_R50_lora1", None, 48_147_609, 32),
    ("deformable_detr_R50_lora3", "[6, 3]", 49_032_345, 64),
    ("deformable_detr_R50_lora3", None, 49_917_081, 96),
    ("deformable_detr_pp_R50", None, 47_493_273, 0),
    ("deformable_detr_pp_R50_lora1", None, 48_378_009, 32),
    ("deformable_detr_pp_R50_lora3", None, 51_474_585, 144),
    ("relation_detr_R50", None, 48_646_912, 0),
    ("relation_detr_R50_lora1", None, 49_531_648, 32),
    ("relation_detr_R50_lora3", None, 51_301_120, 96),
]


@pytest.mark.parametrize("name, k, trained, ranks", TRAINED)
def test_parameters_are_the_papers(name, k, trained, ranks):
    counts = report(config(name, *(["MODEL.LORA_DETR.K", k] if k else [])))
    assert (counts.trainable, counts.added) == (trained, 27_648 * ranks)
    assert counts.base - (counts.trainable - counts.added) == 222_400  # stem and layer1


WHOLE = {"[6]": 53.57, "[6, 3]": 59.88, "[6, 2, 4]": 66.19, "[2, 3, 4, 5, 6]": 78.80}


@pytest.mark.parametrize("k, trained", WHOLE.items())
def test_whole_feed_forward_parts_as_branches(k, trained):
    counts = report(config("deformable_detr_R50_lora1", "MODEL.LORA_DETR.K", k, "MODEL.LORA_DETR.KIND", "ffn"))
    assert round(counts.trainable / 1e6, 2) == trained


def test_swin_l_is_the_released_one():
    counts = report(config("relation_detr_SwinL_lora3"))
    assert (counts.added, counts.trainable, counts.base + counts.added) == (27_648 * 96, 220_453_992, 221_651_988)
    frozen = 221_651_988 - 220_453_992  # patch embedding and first stage
    assert (counts.by_component["backbone"]["base"], frozen) == (194_992_404, 1_197_996)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*R50*.yaml")), ids=lambda path: path.stem)
def test_branches_share_one_optimiser(path):
    cfg = load_config(str(path), ["MODEL.DEVICE", "cpu"])
    solver = cfg.SOLVER
    epochs = 10 if cfg.MODEL.META_ARCHITECTURE == "RelationDETR" else 11
    assert (solver.BASE_LR, solver.WEIGHT_DECAY, solver.MAX_ITER) == (2e-4, 1e-4, 12 * 7392)
    assert list(solver.STEPS) == [epochs * 7392]
    model = build_on_meta(cfg)
    groups = build_optimizer(cfg, model).param_groups
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    rates = {name: rate[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    assert rates["backbone.res3.0.conv1.weight"] == pytest.approx(2e-5)
    assert rates["encoder.layers.0.ffn.linear1.weight"] == 2e-4
    slow_boxes = cfg.MODEL.META_ARCHITECTURE == "DeformableDETR" and cfg.MODEL.LORA_DETR.K is not None
    assert rates["decoder.bbox_embed.0.layers.0.weight"] == pytest.approx(2e-5 if slow_boxes else 2e-4)
    assert rates["decoder.layers.0.cross_attn.sampling_offsets.bias"] == pytest.approx(2e-4 if slow_boxes else 2e-5)
    if cfg.MODEL.LORA_DETR.K is not None:
        assert rates["decoder.layers.0.branches.linear1.0.A"] == 2e-4
    norms = decay[id(model.encoder.layers[0].ffn.norm.weight)]
    assert norms == (0 if cfg.MODEL.META_ARCHITECTURE == "RelationDETR" else 1e-4)
