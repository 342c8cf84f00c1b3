"""From a file to the pixels that the network sees, against transformers' processor."""
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from lowrank_d2.data.mapper import LowRankMapper
from lowrank_d2.data.resize import ResizeToMultiple
from lowrank_d2.engine.defaults import load_config
from projects.YOLOS.tests.models import CONFIGS


@pytest.mark.parametrize("name, short, longest", [("yolos_s", 800, 1333), ("yolos_ti", 512, 853)])
def test_pixels_are_those_of_transformers_processor(tmp_path, name, short, longest):
    reason = "no transformers to compare with"
    peer = pytest.importorskip("transformers.models.yolos.image_processing_pil_yolos", reason=reason)
    random = np.random.default_rng(0)
    pixels = np.kron(random.integers(0, 256, (12, 16, 3), dtype=np.uint8), np.ones((10, 10, 1), np.uint8))  # 120 x 160
    Image.fromarray(pixels).save(tmp_path / "a.png")
    cfg = load_config(str(CONFIGS / f"{name}.yaml"), ["MODEL.DEVICE", "cpu", "MODEL.YOLOS.DEPTH", "1"])
    ours = build_model(cfg).preprocess([LowRankMapper(cfg, False)({"file_name": str(tmp_path / "a.png")})]).tensor
    processor = peer.YolosImageProcessorPil(size={"shortest_edge": short, "longest_edge": longest})
    theirs = torch.as_tensor(np.asarray(processor(images=Image.fromarray(pixels), return_tensors="pt")["pixel_values"]))
    assert ours.shape == theirs.shape == (1, 3, short, short * 160 // 120 // 16 * 16)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["yolos_ti", "yolos_s", "yolos_b", "yolos_s_lora"])
def test_training_sizes_are_whole_patches(name):
    cfg = load_config(str(CONFIGS / f"{name}.yaml"), [])
    steps = LowRankMapper(cfg, True).augmentations.augs
    resize = steps[-1] if isinstance(steps[-1], ResizeToMultiple) else steps[-1].choices[0]
    assert resize.multiple == 16 and all(short % 16 == 0 for short in resize.shorts)
    assert (len(resize.shorts), resize.shorts[-1], resize.longest) == {
        "yolos_ti": (23, 608, 1333), "yolos_s": (21, 800, 1333), "yolos_b": (21, 800, 1333), "yolos_s_lora": (1, 800, 1333),
    }[name]
