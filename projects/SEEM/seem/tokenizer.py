"""CLIP's tokenizer: byte pair encoding of lower-case words, with the published vocabulary.

The vocabulary file bpe_simple_vocab_16e6.txt.gz comes with several packages. It is read from the files of an installed
one, which is not imported: open_clip_torch would import torchvision.
"""
import functools
import gzip
import importlib.metadata
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from lowrank_d2.errors import ConfigError

FILE_NAME = "bpe_simple_vocab_16e6.txt.gz"
PACKAGES = ("open_clip_torch", "clip-anytorch")
NUM_MERGES = 49152 - 256 - 2  # the file has more; the first so many are used
SPECIAL = ("<|startoftext|>", "<|endoftext|>")
CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
END_OF_WORD = "</w>"


class Tokenizer:
    """Text to token ids and back.

    Attributes:
        start, end: ids of the marks around a text, the two largest.
    """

    def __init__(self, merges: Sequence[tuple[str, str]]):
        """
        Args:
            merges: pairs of symbols that become one, the most important first.
        """
        letters = list(_letter_of_byte().values())
        symbols = letters + [letter + END_OF_WORD for letter in letters] + ["".join(pair) for pair in merges]
        symbols += SPECIAL
        self._ids = {symbol: index for index, symbol in enumerate(symbols)}
        self._symbols = symbols
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.start, self.end = (self._ids[mark] for mark in SPECIAL)

    @classmethod
    def load(cls, path: str = "") -> "Tokenizer":
        """The tokenizer of the vocabulary file `path`, "" for that of an installed package.

        Raises:
            ConfigError: there is none, or the file is no such vocabulary.
        """
        return _load(path or find_vocabulary())

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end."""
        letter_of_byte = _letter_of_byte()
        ids = []
        for word in split_words(cleaned(text)):
            if word in SPECIAL:
                ids.append(self._ids[word])
                continue
            letters = "".join(letter_of_byte[byte] for byte in word.encode("utf-8"))
            ids += [self._ids[symbol] for symbol in self._merge(letters)]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, with one blank behind every word."""
        byte_of_letter = {letter: byte for byte, letter in _letter_of_byte().items()}
        letters = "".join(self._symbols[index] for index in ids).replace(END_OF_WORD, " ")
        return bytes(byte_of_letter.get(letter, ord(" ")) for letter in letters).decode("utf-8", errors="replace")

    def _merge(self, letters: str) -> list[str]:
        """The symbols of a word: again and again, the most important pair that it has becomes one symbol."""
        symbols = [*letters[:-1], letters[-1] + END_OF_WORD]
        while len(symbols) > 1:
            pair = min(zip(symbols, symbols[1:]), key=lambda pair: self._ranks.get(pair, len(self._ranks)))
            if pair not in self._ranks:
                break
            merged, rest = [], iter(range(len(symbols)))
            for i in rest:
                if tuple(symbols[i : i + 2]) == pair:
                    merged.append("".join(pair))
                    next(rest)
                else:
                    merged.append(symbols[i])
            symbols = merged
        return symbols


def find_vocabulary() -> str:
    """The vocabulary file of an installed package.

    Raises:
        ConfigError: no package that carries it is installed.
    """
    for package in PACKAGES:
        try:
            files = importlib.metadata.files(package) or ()
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in files:
            path = Path(file.locate())
            if file.name == FILE_NAME and path.is_file():
                return str(path)
    raise ConfigError(
        f"SEEM reads class names, for which it needs CLIP's vocabulary {FILE_NAME}, and no installed package has it. "
        f"Run `pip install --no-deps {PACKAGES[0]}`, or set MODEL.SEEM.TEXT.VOCABULARY to the file."
    )


def cleaned(text: str) -> str:
    """A text as it is read: in lower case, one blank between words, letters with their accents composed."""
    return " ".join(unicodedata.normalize("NFC", text).split()).lower()


def split_words(text: str) -> Iterator[str]:
    """Contractions, runs of letters, single digits, runs of anything else; blanks only separate."""
    position = 0
    while position < len(text):
        found = next((mark for mark in SPECIAL + CONTRACTIONS if text.startswith(mark, position)), "")
        kind = _kind(text[position])
        end = position + (len(found) or 1)
        if not found and kind in ("letter", "other"):
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != "blank":
            yield text[position:end]
        position = end


def _kind(character: str) -> str:
    if character.isspace():
        return "blank"
    return {"L": "letter", "N": "digit"}.get(unicodedata.category(character)[0], "other")


@functools.cache
def _letter_of_byte() -> dict[int, str]:
    """A visible letter for each byte, in the order of the vocabulary; bytes that show nothing get letters from 256 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


@functools.lru_cache(maxsize=2)
def _load(path: str) -> Tokenizer:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            lines = stream.read().split("\n")[1 : NUM_MERGES + 1]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise ConfigError(f"MODEL.SEEM.TEXT.VOCABULARY {path} cannot be read: {error}. Name CLIP's {FILE_NAME}.") from error
    merges = [tuple(line.split()) for line in lines]
    if len(merges) < NUM_MERGES or any(len(pair) != 2 for pair in merges):
        raise ConfigError(f"MODEL.SEEM.TEXT.VOCABULARY {path} is no vocabulary of CLIP. Name its {FILE_NAME}.")
    return Tokenizer(merges)
