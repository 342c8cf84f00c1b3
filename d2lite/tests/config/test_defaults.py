from detectron2.config import get_cfg


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def test_number_of_keys():
    assert len(dict(leaves(get_cfg()))) == 192


def test_values_of_several_kinds():
    cfg = get_cfg()
    assert cfg.VERSION == 2
    assert cfg.MODEL.PIXEL_MEAN == [103.53, 116.28, 123.675]
    assert cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE == [False] * 4
    assert cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS == (512,) * 8
    assert cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS[2] == (30.0, 30.0, 15.0, 15.0)
    assert cfg.SOLVER.WEIGHT_DECAY_BIAS is None
    assert cfg.SOLVER.WARMUP_FACTOR == 0.001
    assert cfg.INPUT.MIN_SIZE_TRAIN == (800,)
    assert cfg.TEST.AUG.MIN_SIZES == tuple(range(400, 1201, 100))


def test_types_of_defaults():
    kinds = {type(value).__name__ for _, value in leaves(get_cfg())}
    assert kinds == {"int", "float", "str", "bool", "list", "tuple", "NoneType"}
    cfg = get_cfg()
    assert type(cfg.SOLVER.IMS_PER_BATCH) is int and type(cfg.MODEL.RPN.SMOOTH_L1_BETA) is float


def test_get_cfg_returns_independent_copies():
    first, second = get_cfg(), get_cfg()
    first.MODEL.PIXEL_STD[0] = 9.0
    first.SOLVER.BASE_LR = 9.0
    assert second.MODEL.PIXEL_STD == [1.0, 1.0, 1.0] and second.SOLVER.BASE_LR == 0.001
