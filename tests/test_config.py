"""The keys in Detectron2's own hands: its merging, copying, pickling and dumping, without our tools."""
import pickle

import pytest
from detectron2.config import CfgNode, get_cfg

from lowrank_d2.config import add_lowrank_config


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_lowrank_config(cfg)
    return cfg


def test_a_list_may_have_an_int_for_a_float(cfg):
    cfg.merge_from_list(["MODEL.PEFT.LORA.DROPOUT", 0, "SOLVER.BASE_LR", "1", "MODEL.MaskDINO.MASK_WEIGHT", 2.5])
    assert (cfg.MODEL.PEFT.LORA.DROPOUT, cfg.SOLVER.BASE_LR, cfg.MODEL.MaskDINO.MASK_WEIGHT) == (0.0, 1.0, 2.5)
    assert type(cfg.MODEL.PEFT.LORA.DROPOUT) is float and type(cfg.SOLVER.BASE_LR) is float


def test_a_file_and_its_base_may_have_an_int_for_a_float(cfg, tmp_path):
    (tmp_path / "base.yaml").write_text("MODEL: {MaskDINO: {CLASS_WEIGHT: 3, DEC_LAYERS: 3}}\nTEST: {EXPECTED_RESULTS: []}\n")
    (tmp_path / "run.yaml").write_text("_BASE_: base.yaml\nMODEL: {PEFT: {LORA: {DROPOUT: 0}}}\n")
    cfg.merge_from_file(str(tmp_path / "run.yaml"))
    assert type(cfg.MODEL.MaskDINO.CLASS_WEIGHT) is float and cfg.MODEL.MaskDINO.CLASS_WEIGHT == 3.0
    assert type(cfg.MODEL.PEFT.LORA.DROPOUT) is float
    assert type(cfg.MODEL.MaskDINO.DEC_LAYERS) is int


@pytest.mark.parametrize("key, value", [("MODEL.PEFT.LORA.RANK", 1.5), ("SOLVER.BASE_LR", True), ("SOLVER.BASE_LR", "fast")])
def test_other_types_are_refused_as_before(cfg, key, value):
    with pytest.raises(ValueError, match="Type mismatch"):
        cfg.merge_from_list([key, value])


def test_unknown_keys_are_refused_as_before(cfg, tmp_path):
    (tmp_path / "run.yaml").write_text("SOLVER: {BASE_RATE: 1}\n")
    with pytest.raises(KeyError, match="SOLVER.BASE_RATE"):
        cfg.merge_from_file(str(tmp_path / "run.yaml"))
    with pytest.raises(AssertionError, match="Non-existent key"):
        cfg.merge_from_list(["SOLVER.BASE_RATE", 1])


def test_copies_stay_generous_and_sections_stay_detectron2s(cfg):
    for copy in (cfg.clone(), pickle.loads(pickle.dumps(cfg))):
        copy.merge_from_list(["SOLVER.BASE_LR", 1])
        assert copy.SOLVER.BASE_LR == 1.0
        assert type(copy.SOLVER) is CfgNode
    assert cfg.SOLVER.BASE_LR != 1.0


def test_a_dump_is_that_of_a_plain_configuration(cfg):
    plain = CfgNode()
    plain.update(cfg)
    assert cfg.dump() == plain.dump()
    loaded = CfgNode.load_cfg(cfg.dump())
    cfg.merge_from_other_cfg(loaded)
    assert cfg.dump() == plain.dump()


def test_a_frozen_configuration_stays_frozen(cfg):
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.SOLVER.BASE_LR = 1.0
    assert cfg.clone().is_frozen()


def test_sections_of_other_projects_can_be_added_afterwards(cfg):
    cfg.MODEL.THEIRS = CfgNode({"SCALE": 1.0})
    cfg.merge_from_list(["MODEL.THEIRS.SCALE", 2])
    assert cfg.MODEL.THEIRS.SCALE == 2.0
