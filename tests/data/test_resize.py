"""Sizes in whole patches: by hand, against transformers' processor, and through the mapper."""
import numpy as np
import pytest
from lowrank_d2.data.mapper import build_augmentations
from lowrank_d2.data.resize import ResizeToMultiple, size_in_multiples
from lowrank_d2.engine.defaults import load_config
from lowrank_d2.errors import ConfigError


@pytest.mark.parametrize("size, expected", [
    ((480, 640), (800, 1056)),  # 1066 is 66 patches and a rest
    ((640, 480), (1056, 800)),
    ((400, 1000), (528, 1328)),  # the long side is the limit: 533 x 1333
    ((800, 800), (800, 800)),
    ((1, 2000), (16, 1328)),  # a line keeps one patch
])
def test_sizes(size, expected):
    assert size_in_multiples(*size, 800, 1333, 16) == expected


def test_sizes_are_those_of_transformers():
    peer = pytest.importorskip("transformers.models.yolos.image_processing_pil_yolos", reason="no transformers to compare with")
    random = np.random.default_rng(0)
    for height, width in random.integers(60, 3000, (2000, 2)).tolist():
        for short, longest in ((800, 1333), (512, 853)):
            assert size_in_multiples(height, width, short, longest, 16) == tuple(
                peer.get_size_with_aspect_ratio_yolos((height, width), short, longest)
            ), (height, width)


@pytest.mark.parametrize("is_train", [True, False])
def test_the_mapper_resizes_to_multiples(is_train):
    cfg = load_config([], ["INPUT.SIZE_MULTIPLE", "16", "INPUT.DATASET_MAPPER_NAME", "coco_instance_detr",
                           "INPUT.MIN_SIZE_TRAIN", "(50, 80)", "INPUT.MAX_SIZE_TRAIN", "100", "INPUT.MIN_SIZE_TEST", "50",
                           "INPUT.MAX_SIZE_TEST", "100"])
    (resize,) = [step for step in build_augmentations(cfg, is_train)[0] if isinstance(step, ResizeToMultiple)]
    assert resize.shorts == ((50, 80) if is_train else (50,)) and resize.longest == 100
    seen = {resize.get_transform(np.zeros((200, 210, 3))).apply_image(np.zeros((200, 210, 3), np.uint8)).shape for _ in range(40)}
    assert seen == ({(48, 48, 3), (80, 80, 3)} if is_train else {(48, 48, 3)})


def test_multiples_need_a_choice_of_sizes():
    cfg = load_config([], ["INPUT.SIZE_MULTIPLE", "16", "INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN", "(50, 80)"])
    with pytest.raises(ConfigError, match="MIN_SIZE_TRAIN_SAMPLING"):
        build_augmentations(cfg, True)
