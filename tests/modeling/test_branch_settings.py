"""MODEL.LORA_DETR: what it builds, and what it refuses."""
import pytest
from detectron2.config import get_cfg

from lowrank_d2.config import add_lowrank_config
from lowrank_d2.errors import ConfigError
from lowrank_d2.layers.branches import FullBranches, LowRankBranches
from lowrank_d2.modeling.branch_settings import BranchSettings


def settings(num_queries=300, **values):
    cfg = get_cfg()
    add_lowrank_config(cfg)
    cfg.MODEL.LORA_DETR.K = [2, 4, 6]
    for key, value in values.items():
        cfg.MODEL.LORA_DETR[key] = value
    return BranchSettings.from_node(cfg.MODEL.LORA_DETR, num_queries)


def test_off_by_default():
    assert settings(K=None) is None


def test_one_value_serves_all_branches_or_each_has_its_own():
    assert settings().tau == (0.4, 0.4, 0.4) and settings().alpha == (0.3, 0.3, 0.3)
    own = settings(TAUS=[0.4, 0.55, 0.7], ALPHAS=[0.3, 0.2, 0.1])
    assert own.tau == (0.4, 0.55, 0.7) and own.alpha == (0.3, 0.2, 0.1)
    assert own.assigner().k == (2, 4, 6)


def test_kinds():
    size = {"embed_dim": 8, "hidden_dim": 16, "dropout": 0.0}
    low_rank = settings(RANK=4).build(**size)
    assert isinstance(low_rank, LowRankBranches) and low_rank.linear1[2].A.shape == (8, 4)
    full = settings(KIND="ffn").build(**size)
    assert isinstance(full, FullBranches) and len(full) == 3


@pytest.mark.parametrize("values, words", [
    ({"K": []}, ["K is []", "None for no branches"]),
    ({"K": [2, 301]}, ["K is [2, 301]", "301", "at most 300"]),
    ({"K": [0]}, ["K is [0]"]),
    ({"K": [2.5]}, ["2.5"]),
    ({"K": 6}, ["K is 6", "[2, 4, 6]"]),
    ({"RANK": 0}, ["RANK is 0", "1 or more"]),
    ({"RULE": "best"}, ["RULE is 'best'", "'released', 'paper'"]),
    ({"INIT": "ones"}, ["INIT is 'ones'", "'zero', 'xavier'"]),
    ({"KIND": "mlp"}, ["KIND is 'mlp'", "'lora', 'ffn'"]),
    ({"CAP": 0.0}, ["CAP is 0.0"]),
    ({"LOSS_WEIGHT": -1.0}, ["LOSS_WEIGHT is -1.0"]),
    ({"ALPHA": 1.5}, ["ALPHA is 1.5", "from 0 to 1"]),
    ({"TAUS": [0.4, 0.5]}, ["TAUS has 2 values", "3 branches"]),
])
def test_bad_settings_name_the_right_values(values, words):
    with pytest.raises(ConfigError) as caught:
        settings(**values)
    for word in words:
        assert word in str(caught.value)
