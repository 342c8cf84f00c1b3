"""CLIP's byte pair encoding, against transformers and known ids."""
import gzip
import random
import string

import pytest

from lowrank_d2.errors import ConfigError
from seem import tokenizer
from seem.tokenizer import Tokenizer, split_words

TEXTS = (
    "a photo of a dolphin.", "Recyclabel_PlasticBottle", "rigid_plastic", "the dog's bone isn't they'll we've I'M",
    "itap of my 3 cats, 42nd!", "naïve café ÀÉ", "中文 字符", "x²+½ Ⅷ ٣٤", "  many   spaces\tand\nlines ", "!!?? ... ''s a_b__c",
    "<|startoftext|> hi", "hello🙂world", "e-mail@x.org", "kidney bean (red)", "ǅ smörgåsbord", "",
)


@pytest.fixture(scope="module")
def clip():
    try:
        return Tokenizer.load()
    except ConfigError as error:
        pytest.skip(str(error))


def test_known_ids(clip):
    assert (clip.start, clip.end) == (49406, 49407)
    assert clip.encode("a photo of a") == [320, 1125, 539, 320]
    assert clip.encode("A  Photo of\na") == [320, 1125, 539, 320]
    assert clip.decode(clip.encode("two metal boxes")) == "two metal boxes "


def test_it_is_the_tokenizer_of_transformers(clip):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: nothing to compare with")
    merges = sorted(clip._ranks, key=clip._ranks.get)
    peer = transformers.CLIPTokenizer(vocab={symbol: i for i, symbol in enumerate(clip._symbols)}, merges=merges)
    draw = random.Random(0)
    letters = string.ascii_letters + string.digits + "'.,-_!? é ß中🙂½"
    texts = [*TEXTS, *("".join(draw.choices(letters, k=draw.randint(1, 25))) for _ in range(300))]
    for text in texts:
        assert clip.encode(text) == peer(text)["input_ids"][1:-1], text


@pytest.mark.parametrize("text, words", [
    ("it's 42", ["it", "'s", "4", "2"]), ("''s", ["''", "s"]), ("a_b", ["a", "_", "b"]), ("", []), (" ", []),
    ("we'll!?<|endoftext|>", ["we", "'ll", "!?<|", "endoftext", "|>"]),
])
def test_words(text, words):
    assert list(split_words(text)) == words


def test_without_a_vocabulary_one_error_says_what_to_get(monkeypatch):
    monkeypatch.setattr(tokenizer, "PACKAGES", ("open_clip_torch_absent",))
    with pytest.raises(ConfigError, match="pip install --no-deps open_clip_torch_absent.*MODEL.SEEM.TEXT.VOCABULARY"):
        Tokenizer.load()


DAMAGED = gzip.compress(b"a b\nc d\n" * 99)[:10] + b"\xff" * 40


@pytest.mark.parametrize("content", [b"", b"no gzip", gzip.compress(b"a b\nc d\n"), DAMAGED])
def test_a_file_that_is_no_vocabulary(tmp_path, content):
    path = tmp_path / "vocabulary.gz"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="MODEL.SEEM.TEXT.VOCABULARY .*vocabulary.gz"):
        Tokenizer.load(str(path))


def test_a_named_file_is_read(clip, tmp_path):
    path = tmp_path / "copy.gz"
    path.write_bytes(open(tokenizer.find_vocabulary(), "rb").read())
    assert Tokenizer.load(str(path)).encode("rigid_plastic") == clip.encode("rigid_plastic")
