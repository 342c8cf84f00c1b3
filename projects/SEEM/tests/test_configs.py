"""The shipped configurations: sizes of the models, and what trains of them in the paper's tables."""
import json

import pytest
import torch

from lowrank_d2.engine.defaults import load_config
from lowrank_d2.engine.rehearsal import build_on_meta
from lowrank_d2.engine.report import report
from projects.SEEM.tests.golden_case import SHARED
from projects.SEEM.tests.models import CONFIGS, METHODS
from seem.weights import from_upstream

BASE = 340_360_953
ONE_CLASS = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "1"]


def counts_of(method, *words):
    files = [str(CONFIGS / "seem_focall.yaml")] + ([str(METHODS / f"{method}.yaml")] if method else [])
    return report(load_config(files, [*ONE_CLASS, *words]))


def test_the_parts_of_the_large_model():
    counts = counts_of("")
    assert (counts.base, counts.added, counts.trainable) == (BASE, 0, BASE)
    assert {name: row["base"] for name, row in counts.by_component.items()} == {
        "backbone": 205_746_936, "pixel_decoder": 32_193_536, "decoder": 38_992_384, "text": 63_428_097,
    }


@pytest.mark.parametrize("method, trainable", [
    ("full_head", 134_614_017), ("decoder", 102_420_481), ("embeddings", 1_050_112),
    *((f"adapters_{repeats}", 1_050_112 + 3_161_088 * repeats) for repeats in (1, 2, 3, 4)),
    *((f"lora_r{rank}", 1_050_112 + 49_152 * rank) for rank in (2, 4, 8, 16)),
])
def test_what_trains(method, trainable):
    counts = counts_of(method)
    assert (counts.base, counts.trainable) == (BASE, trainable)


@pytest.mark.parametrize("method, trainable", [("full_head", 71_185_920), ("decoder", 38_992_384)])
def test_the_text_encoder_may_stay_frozen(method, trainable):
    assert counts_of(method, "MODEL.SEEM.TEXT.FREEZE", "True").trainable == trainable


def test_the_tiny_model():
    counts = report(load_config(str(CONFIGS / "seem_focalt.yaml")))
    assert counts.by_component["backbone"]["base"] == 29_922_288
    assert counts.by_component["text"]["base"] == 63_428_097


def test_the_number_of_classes_changes_nothing():
    assert report(load_config(str(CONFIGS / "seem_focall.yaml"), ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "80"])).base == BASE


@pytest.mark.parametrize("name, mean", [("ndd20", 92.28), ("zerowaste", 127.44), ("wixray", 249.49), ("cityscapes", 73.18)])
def test_statistics_of_the_data_are_an_option(name, mean):
    files = [str(CONFIGS / "seem_focall.yaml"), str(CONFIGS.parents[2] / "configs" / "datasets" / f"{name}.yaml")]
    assert load_config(files).MODEL.PIXEL_MEAN[0] == 123.675
    assert load_config([*files, str(CONFIGS / "statistics" / f"{name}.yaml")]).MODEL.PIXEL_MEAN[0] == mean


@pytest.mark.golden
def test_every_tensor_of_the_published_large_model_is_known():
    file = SHARED / "seem" / "keys_focall_v1.json"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    stored = json.loads(file.read_text(encoding="utf-8"))["keys"]
    theirs = {name: torch.empty(spec["shape"], device="meta") for name, spec in stored.items()}
    model = build_on_meta(load_config(str(CONFIGS / "seem_focall.yaml"), ONE_CLASS))
    ours = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    loaded = {name: tuple(tensor.shape) for name, tensor in from_upstream(theirs).items()}
    assert ours.items() <= loaded.items()
    assert sorted(loaded.keys() - ours.keys()) == [
        "criterion.empty_weight", "dilation_kernel", *_unused("mask_sptial_embed.0", "mask_sptial_embed.1"),
        *_unused("mask_sptial_embed.2", "pn_indicator.weight", "spatial_embed.weight", "spatial_featured.weight"),
    ]


def _unused(*names):
    return [f"sem_seg_head.predictor.{name}" for name in names]
