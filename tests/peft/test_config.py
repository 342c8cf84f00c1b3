import json
from types import SimpleNamespace as Node

import pytest

from lowrank_d2.errors import ConfigError, DeltaError
from lowrank_d2.peft import AdaLoRA, Adapter, DoRA, LoHa, LoKr, LoRA, PeftConfig
from lowrank_d2.peft.config import METHODS, difference, method_fields, method_from_fields


def options(**changes):
    values = dict(RANK=8, ALPHA=None, DROPOUT=0.0, RSLORA=False, TARGETS=[], RANK_PATTERN=[], ALPHA_PATTERN=[])
    return Node(**{**values, **changes})


def node(**changes):
    values = dict(
        METHODS=[],
        TRAIN="all",
        TRAIN_LABEL_EMBEDDING=True,
        DELTA="",
        DELTA_DTYPE="float32",
        LORA=options(),
        ADAPTER=Node(REPEATS=1, REDUCTION=4, RESIDUAL="kappa+lambda", INIT="bert"),
    )
    return Node(**{**values, **changes})


def header(*methods, train="embeddings"):
    return Node(methods=methods, train=train, train_label_embedding=False)


def test_the_defaults_leave_a_model_alone():
    assert PeftConfig.from_node(node()) == PeftConfig() and PeftConfig().is_plain
    assert not PeftConfig(train="none").is_plain and not PeftConfig(delta="d").is_plain


def test_every_key_reaches_its_field():
    config = PeftConfig.from_node(
        node(
            METHODS=["adapter", "lora"],
            TRAIN="none",
            TRAIN_LABEL_EMBEDDING=False,
            DELTA_DTYPE="float16",
            LORA=options(RANK=4, ALPHA=2, DROPOUT=0, RSLORA=True, TARGETS=["a", "b"], RANK_PATTERN=[["a", 2]]),
            ADAPTER=Node(REPEATS=3, REDUCTION=8, RESIDUAL="kappa", INIT="xavier"),
        )
    )
    lora = LoRA(4, 2.0, rslora=True, targets=("a", "b"), rank_pattern=(("a", 2),))
    assert config == PeftConfig((Adapter(3, 8, "kappa", "xavier"), lora), "none", False, "", "float16")


def test_the_options_of_a_method_that_is_not_used_are_not_judged():
    assert PeftConfig.from_node(node(METHODS=["adapter"], LORA=Node(RANK=0))).methods == (Adapter(),)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"METHODS": ["lroa"]}, r"METHODS is 'lroa'. Use one of 'lora', .*, 'adapter' \(nearest: 'lora'\)"),
        ({"METHODS": "lora"}, r"METHODS is the text 'lora', not a list. Write \['lora'\]"),
        ({"METHODS": ["lora", "lora"]}, r"METHODS is \['lora', 'lora'\]. Name every method once"),
        ({"TRAIN": "embedding"}, r"TRAIN is 'embedding'. Use one of 'all', .* \(nearest: 'embeddings'\)"),
        ({"TRAIN": None}, "TRAIN is None. Use one of"),
        ({"TRAIN_LABEL_EMBEDDING": "yes"}, "TRAIN_LABEL_EMBEDDING is 'yes'. Use True or False"),
        ({"DELTA": None}, "DELTA is None. Use the path"),
        ({"METHODS": ["lora"], "LORA": options(RANK=0)}, "LORA.RANK is 0"),
    ],
)
def test_wrong_values_show_what_is_right(changes, words):
    with pytest.raises(ConfigError, match=f"MODEL.PEFT.{words}"):
        PeftConfig.from_node(node(**changes))


METHOD_OBJECTS = [
    LoRA(4, 2, 0.1, rslora=True, targets=("a",), rank_pattern=(("a", 3),)),
    DoRA(4, targets=("a",), alpha_pattern=[["a", 3]]),
    AdaLoRA(9, target_rank=3, tinit=2, total_steps=10),
    LoHa(4, rank_dropout=0.1, module_dropout=0.2),
    LoKr(4, factor=3, decompose_both=True),
    Adapter(2, 8, "lambda", "xavier"),
]


@pytest.mark.parametrize("method", METHOD_OBJECTS, ids=lambda m: m.name)
def test_methods_survive_json(method):
    assert method_from_fields(json.loads(json.dumps(method_fields(method)))) == method


def test_methods_of_a_newer_version_are_refused():
    for fields in ({"name": "dora2", "rank": 4}, {"name": "lora", "rank": 4, "magic": 1}):
        with pytest.raises(DeltaError, match="this version does not know"):
            method_from_fields(fields)


def test_a_header_completes_the_config():
    lora = LoRA(rank=4)
    config = PeftConfig(delta="d").with_header(header(lora))
    assert config == PeftConfig((lora,), "embeddings", False, "d")
    assert config.with_header(header(lora)) == config
    assert PeftConfig(train="decoder", delta="d").with_header(header(lora)).train == "decoder"


@pytest.mark.parametrize(
    "recorded, ours, words",
    [
        (LoRA(rank=8), LoRA(rank=4), "MODEL.PEFT.LORA.RANK 8, this model has 4"),
        (LoRA(alpha=16), LoRA(), "MODEL.PEFT.LORA.ALPHA 16, this model has 8"),
        (Adapter(residual="kappa"), Adapter(), r"RESIDUAL kappa, this model has kappa\+lambda"),
        (Adapter(), LoRA(), r"METHODS \['adapter'\], this model has \['lora'\]"),
    ],
)
def test_methods_that_differ_are_told_apart(recorded, ours, words):
    with pytest.raises(DeltaError, match=f"The delta d was made with .*{words}. Drop MODEL.PEFT.METHODS"):
        PeftConfig((ours,), delta="d").with_header(header(recorded))


def test_what_does_not_change_the_function_may_differ():
    assert not difference([LoRA(dropout=0.5), Adapter(init="xavier")], [LoRA(), Adapter()])


def test_the_table_names_every_method_by_its_own_name():
    assert all(kind.name == name for name, kind in METHODS.items()) and len(METHODS) == 6
