"""Words in templates."""
import pytest
import torch

from lowrank_d2.errors import ConfigError
from seem import prompts


class Letters:
    """A tokenizer of single letters."""

    start, end = 200, 201

    def encode(self, text):
        return [ord(letter) for letter in text]


def test_the_templates():
    templates = prompts.read_templates("imagenet")
    assert len(templates) == len(set(templates)) == 81
    assert templates[0] == "{}." and all(template.count("{}") == 1 for template in templates)
    assert prompts.read_templates("name") == ["{}."]


def test_an_unknown_set():
    with pytest.raises(ConfigError, match="TEMPLATES is 'imagnet'. Use one of 'imagenet', 'name'"):
        prompts.read_templates("imagnet")


def test_suffixes_of_coco_are_dropped():
    assert prompts.words_of("water-other") == "water" and prompts.words_of("tree-merged") == "tree"
    assert prompts.words_of("food-stuff") == "food" and prompts.words_of("rigid_plastic") == "rigid_plastic"


@pytest.mark.parametrize("names, part", [
    (["cat", "dog", "Cat "], "'cat' and 'Cat ' have the same words, 'cat'"),
    (["water", "water-other"], "'water' and 'water-other'"),
    (["metal  can", "metal can"], "'metal  can' and 'metal can'"),
    (["caf\u00e9", "cafe\u0301"], "have the same words, 'caf\u00e9'"),
    (["type2", "type 2"], "'type2' and 'type 2' have the same words, 'type 2'"),
    (["cat", " "], "' ' has no words"),
    (["cat", 2], "The class 2 is no text. Write it in quotes"),
    (["-other"], "'-other' has no words"),
    (["Background"], "'Background' reads as what is no object does"),
])
def test_classes_that_words_cannot_tell_apart(names, part):
    with pytest.raises(ConfigError, match=part):
        prompts.check_distinct(names)


def test_tokens():
    tokens = prompts.tokenize(["ab", "c"], ["{}", "a {}"], Letters(), 14)
    assert tokens.shape == (3, 2, 14) and tokens.dtype == torch.int64
    assert tokens[0, 0].tolist() == [200, 97, 98] + [201] * 11
    assert tokens[1, 1].tolist() == [200, 97, 32, 99] + [201] * 10
    assert "".join(map(chr, tokens[2, 1, 1:13])) == "a background" and tokens[2, 1, 13] == 201


def test_a_name_that_is_too_long():
    with pytest.raises(ConfigError, match=r"'abcdefghijk' is too long: in the sentence '\{\}' it makes 13 tokens.* reads 12\. Shorten it: in"):
        prompts.tokenize(["abcdefghijk"], ["{}"], Letters(), 12)
