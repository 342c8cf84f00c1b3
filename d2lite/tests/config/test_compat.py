import pytest
from detectron2.config import downgrade_config, get_cfg, upgrade_config


def merge(tmp_path, text):
    path = tmp_path / "old.yaml"
    path.write_text(text)
    cfg = get_cfg()
    cfg.MINE = 5
    cfg.merge_from_file(str(path))
    assert cfg.VERSION == 2 and cfg.MINE == 5
    return cfg


def test_version_1_keys(tmp_path):
    cfg = merge(
        tmp_path,
        "VERSION: 1\n"
        "MODEL: {WEIGHT: w.pkl, ROI_HEADS: {NMS: 0.25, SCORE_THRESH: 0.125}, PANOPTIC_FPN: {COMBINE_ON: false}}\n"
        "TEST: {DETECTIONS_PER_IMG: 7, AUG_FLIP: false}\n",
    )
    assert cfg.MODEL.WEIGHTS == "w.pkl"
    assert (cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST) == (0.25, 0.125)
    assert cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED is False
    assert cfg.TEST.DETECTIONS_PER_IMAGE == 7 and cfg.TEST.AUG.FLIP is False
    assert "WEIGHT" not in cfg.MODEL


def test_version_1_is_recognised_by_its_keys(tmp_path):
    assert merge(tmp_path, "MODEL: {WEIGHT: w.pkl}\n").MODEL.WEIGHTS == "w.pkl"
    assert merge(tmp_path, "TEST: {AUG_ON: true}\n").TEST.AUG.ENABLED is True


def test_version_0_keys(tmp_path):
    assert merge(tmp_path, "VERSION: 0\nMODEL: {RPN_HEAD: {NAME: Mine}}\n").MODEL.RPN.HEAD_NAME == "Mine"


@pytest.mark.parametrize("architecture, expected", [("GeneralizedRCNN", [[8, 16]]), ("RetinaNet", [[32]])])
def test_version_1_anchors_of_the_architecture_that_is_built(tmp_path, architecture, expected):
    cfg = merge(
        tmp_path,
        f"VERSION: 1\nMODEL: {{META_ARCHITECTURE: {architecture}, RPN: {{ANCHOR_SIZES: [[8, 16]]}}, "
        "RETINANET: {ANCHOR_SIZES: [[32]]}}\n",
    )
    assert cfg.MODEL.ANCHOR_GENERATOR.SIZES == expected
    assert "ANCHOR_SIZES" not in cfg.MODEL.RPN and "ANCHOR_STRIDES" not in cfg.MODEL.RETINANET


@pytest.mark.parametrize("version", [0, 1])
def test_down_and_up_again_changes_nothing(version):
    cfg = get_cfg()
    cfg.MODEL.MINE = "kept"
    old = downgrade_config(cfg, to_version=version)
    assert old.VERSION == version and "WEIGHTS" not in old.MODEL and old.MODEL.MINE == "kept"
    assert upgrade_config(old) == cfg
