"""Captions as tokens: words that occur in the training captions, and bytes for all other words."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from conditions import PADDING, Condition
from models.pretrained import PretrainedTokenizer

FIRST_BYTE = PADDING + 1
FIRST_WORD = FIRST_BYTE + 256
MAX_WORDS = 8192  # of a vocabulary; rarer words are spelled in bytes
MAX_LENGTH = 128  # tokens of a caption
ROOM = 4  # tokens that a prompt may have beyond the longest caption, at least
WORD = re.compile(r"\w+|[^\w\s]")  # letters and digits, or a single punctuation mark


class Tokenizer:
    """Splits captions into the tokens of one checkpoint. Any text has tokens.

    Token 0 is padding, 1 to 256 are bytes, and the words follow. A word that is not in the
    vocabulary becomes a blank and its UTF-8 bytes.

    Args:
        words: the vocabulary.
        length: tokens of a caption, filled up with padding.
    """

    def __init__(self, words: Sequence[str], length: int):
        self.words, self.length = list(words), length
        self.numbers = {word: FIRST_WORD + i for i, word in enumerate(self.words)}

    @classmethod
    def of_captions(cls, captions: Iterable[str]) -> "Tokenizer":
        """A tokenizer with the words of the captions, the most frequent first, and their length."""
        captions = [words_of(caption) for caption in captions]
        counts = Counter(word for caption in captions for word in caption)
        ranked = sorted(counts, key=lambda word: (-counts[word], word))[:MAX_WORDS]
        tokenizer = cls(ranked, MAX_LENGTH)
        longest = max(sum(map(len, map(tokenizer.tokens_of_word, words))) for words in captions)
        tokenizer.length = min(MAX_LENGTH, with_room(longest))
        return tokenizer

    @property
    def size(self) -> int:
        """The number of different tokens."""
        return FIRST_WORD + len(self.words)

    def tokens_of_word(self, word: str) -> list[int]:
        """The tokens of a word: one if it is in the vocabulary, otherwise those of its bytes."""
        if word in self.numbers:
            return [self.numbers[word]]
        return [FIRST_BYTE + byte for byte in f" {word}".encode()]

    def tokens(self, caption: str) -> list[int]:
        """All tokens of a caption, without padding."""
        return [token for word in words_of(caption) for token in self.tokens_of_word(word)]

    def encode(self, captions: Sequence[str]) -> Tensor:
        """The tokens (N, length) of captions; what does not fit is cut off."""
        table = torch.full((len(captions), self.length), PADDING)
        known: dict[str, list[int]] = {}
        for row, caption in zip(table, captions, strict=True):
            if caption not in known:
                known[caption] = self.tokens(caption)[: self.length]
            row[: len(known[caption])] = torch.tensor(known[caption])
        return table

    def condition(
        self,
        captions: Sequence[str],
        progress: Callable[..., Iterable] = lambda items, **_: items,
    ) -> Condition:
        """The condition of captions (N)."""
        return Condition(tokens=self.encode(captions))

    def pieces(self, caption: str) -> list[tuple[str, int]]:
        """The parts of a caption, each with its number of tokens."""
        return [(word, len(self.tokens_of_word(word))) for word in words_of(caption)]

    def unknown(self, caption: str) -> list[str]:
        """The words of a caption that are not in the vocabulary."""
        return [word for word in dict.fromkeys(words_of(caption)) if word not in self.numbers]


def with_room(longest: int) -> int:
    """The caption length of a network if the longest caption has `longest` tokens."""
    return -(-(longest + ROOM) // 8) * 8


def words_of(caption: str) -> list[str]:
    """The words and punctuation marks of a caption, without regard to case."""
    return WORD.findall(unicodedata.normalize("NFC", caption).casefold())


def tokenizer_of(config: dict) -> Tokenizer | PretrainedTokenizer | None:
    """The tokenizer of a checkpoint with this configuration; None if it takes no captions.

    Raises ValueError if its pretrained text encoder cannot be read.
    """
    length, data = config["model"].get("caption_length"), config["data"]
    if length is None:
        return None
    if config["model"].get("text_width"):
        return PretrainedTokenizer(data["text_encoder"], length, data["text_encoder_sha256"])
    return Tokenizer(data["words"], length)
