"""What a configuration may say, and what it is told when it may not."""
import pytest
from detectron2.modeling import build_model

from lowrank_d2.errors import ConfigError


@pytest.mark.parametrize("changes, part", [
    ({"MODEL.LORA_DETR.K": "[2, 41]"}, r"41 is impossible: an object takes from 1 up to all 40 queries"),
    ({"MODEL.LORA_DETR.K": "[]"}, r"K is \[\]. Give one k a branch"),
    ({"MODEL.DEFORMABLE_DETR.CLASS_LOSS": "soft"}, "'soft'. Use one of 'focal', 'quality'"),
    ({f"MODEL.DEFORMABLE_DETR.{key}": value for key, value in (("MIXED_SELECTION", "True"), ("TWO_STAGE", "False"))},
     "Set TWO_STAGE True"),
    ({"MODEL.DEFORMABLE_DETR.HIDDEN_DIM": "40"}, "HIDDEN_DIM is 40"),
    ({"MODEL.DEFORMABLE_DETR.DEC_LAYERS": "0"}, "DEC_LAYERS is 0"),
    ({"MODEL.DEFORMABLE_DETR.DROPOUT": "1.0"}, "DROPOUT is 1.0"),
    ({"MODEL.DEFORMABLE_DETR.IN_FEATURES": "['res9']"}, r"\['res9'\] must be one or more of the backbone's"),
    ({"MODEL.PEFT.DELTA": "delta.safetensors"}, "MODEL.WEIGHTS is empty"),
])
def test_what_cannot_be_built_says_why(small_config, changes, part):
    with pytest.raises(ConfigError, match=part):
        build_model(small_config("deformable_detr_R50_lora3", changes))


@pytest.mark.parametrize("changes, part", [
    ({"MODEL.LORA_DETR.RANK": "0"}, "RANK is 0; it must be at least 1"),
    ({"MODEL.LORA_DETR.RULE": "best"}, "'best'; it must be one of 'released', 'paper'"),
    ({"MODEL.LORA_DETR.INIT": "one"}, "'zero', 'xavier'"),
    ({"MODEL.LORA_DETR.TAU": "1.5"}, "at least 0 and at most 1"),
    ({"MODEL.LORA_DETR.RNK": "8"}, "Did you mean MODEL.LORA_DETR.RANK"),
])
def test_what_no_file_may_say(small_config, changes, part):
    with pytest.raises(ConfigError, match=part):
        small_config("deformable_detr_R50_lora3", changes)


@pytest.mark.parametrize("changes, part", [
    ({"MODEL.RELATION_DETR.HYBRID.REPEATS": "0"}, "HYBRID.REPEATS is 0"),
    ({"MODEL.RELATION_DETR.DENOISING.LABEL_NOISE": "2.5"}, "LABEL_NOISE is 2.5"),
    ({"MODEL.LORA_DETR.K": "[50]"}, "all 40 queries"),
])
def test_what_no_relation_detr_can_be(small_config, changes, part):
    with pytest.raises(ConfigError, match=part):
        build_model(small_config("relation_detr_R50_lora3", changes))
