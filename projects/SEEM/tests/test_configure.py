"""What a configuration may say, and what it is told when it may not; where the classes come from."""
import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.modeling import build_model

from lowrank_d2.errors import ConfigError
from seem import tokenizer
from seem.configure import build_parts, class_names


@pytest.mark.parametrize("changes, part", [
    ({"MODEL.SEEM.FOCAL.DEPTHS": [1, 1]}, r"FOCAL.DEPTHS is \[1, 1\]. Give four"),
    ({"MODEL.SEEM.FOCAL.FOCAL_WINDOWS": [3, 3, 3, 2]}, "odd sides"),
    ({"MODEL.SEEM.DEC_LAYERS": 0}, "DEC_LAYERS is 0"),
    ({"MODEL.SEEM.HIDDEN_DIM": 48}, "HIDDEN_DIM is 48, which 4 heads and the 32 groups"),
    ({"MODEL.SEEM.TEXT.HEADS": 3}, "TEXT.WIDTH is 16, which 3 heads"),
    ({"MODEL.SEEM.SIZE_DIVISIBILITY": 16}, "SIZE_DIVISIBILITY is 16"),
    ({"MODEL.SEEM.TEXT.TEMPLATES": "imagnet"}, "TEMPLATES is 'imagnet'. Use one of 'imagenet', 'name'"),
    ({"MODEL.SEEM.TEST.PANOPTIC_ON": True}, "MODEL.SEEM.TEST.PANOPTIC_ON needs to know which classes are things"),
    ({"MODEL.PEFT.DELTA": "delta.safetensors"}, "MODEL.WEIGHTS is empty"),
    ({"MODEL.CLASS_NAMES": []}, "SEEM has no classes to look for"),
    ({"MODEL.CLASS_NAMES": ["cat", "dog", "Cat"]}, "'cat' and 'Cat' have the same words"),
    ({"MODEL.SEEM.CLASS_PROMPTS": ["cat"]}, r"CLASS_PROMPTS has 1 entries for 3 classes \(ball, box, star\)"),
    ({"MODEL.SEEM.CLASS_PROMPTS": ["cat", "dog", "dog"]}, "'dog' and 'dog' have the same words"),
])
def test_what_cannot_be_built_says_why(small_config, changes, part):
    with pytest.raises(ConfigError, match=part):
        build_model(small_config(changes))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_word_of_more_tokens_than_the_context(small_config, vocabulary, device):
    words = ["cat", "very " * 75 + "long"]
    changes = {"MODEL.DEVICE": device, "MODEL.SEEM.TEXT.CONTEXT_LENGTH": 77, "MODEL.CLASS_NAMES": words}
    with pytest.raises(ConfigError, match="very long' is too long: .* tokens, .* reads 77"):
        build_model(small_config(changes))


def test_sizes_need_no_vocabulary(small_config, monkeypatch):
    monkeypatch.setattr(tokenizer, "PACKAGES", ("no-such-package",))
    changes = {"MODEL.DEVICE": "meta"}
    assert build_parts(small_config(changes))["text"].tokens is None
    with pytest.raises(ConfigError, match="no installed package has it"):
        build_parts(small_config())


def test_where_the_classes_come_from(small_config, monkeypatch):
    data = Metadata(name="seem_data", thing_classes=["seal", "bird"])
    monkeypatch.setitem(MetadataCatalog.data, "seem_data", data)
    named = {"MODEL.CLASS_NAMES": [], "DATASETS.TRAIN": "('seem_data',)"}
    assert class_names(small_config()) == ["ball", "box", "star"]
    assert class_names(small_config(named)) == ["seal", "bird"]
    assert class_names(small_config({**named, "DATASETS.TRAIN": "()", "DATASETS.TEST": "('seem_data',)"})) == ["seal", "bird"]
    words = {"MODEL.CLASS_NAMES": [], "MODEL.SEEM.CLASS_PROMPTS": ["fin", "wing"]}
    assert class_names(small_config(words)) == ["fin", "wing"]


def test_prompts_rename_the_classes_of_the_data(small_config, vocabulary):
    size = {"MODEL.SEEM.TEXT.VOCABULARY_SIZE": 49408, "MODEL.SEEM.TEXT.CONTEXT_LENGTH": 77}
    plain = build_model(small_config({**size, "MODEL.CLASS_NAMES": ["Recyclabel_CanBottle", "cat"]}))
    renamed = build_model(small_config({
        **size, "MODEL.CLASS_NAMES": ["Recyclabel_CanBottle", "cat"], "MODEL.SEEM.CLASS_PROMPTS": ["metal can", "cat"],
    }))
    words = build_model(small_config({**size, "MODEL.CLASS_NAMES": ["metal can", "cat"]}))
    assert renamed.class_names == plain.class_names == ["Recyclabel_CanBottle", "cat"]
    assert renamed.text.tokens.equal(words.text.tokens) and not renamed.text.tokens.equal(plain.text.tokens)
    assert plain.text.tokens.shape == (3, 81, 77) and plain.text.tokens[1:].equal(renamed.text.tokens[1:])
