"""A frozen pretrained text encoder, CLIP's or T5's: `train.py --text-encoder PATH`.

PATH is a folder that the package transformers has written (`save_pretrained`): config.json, weights
as .safetensors, and the files of the tokenizer. Nothing is downloaded, and no code of the folder
is run.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from conditions import PADDING, Condition
from utils import choose_device

# Classes of transformers that encode texts, by the model_type in config.json.
CLASSES = {"clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel", "t5": "T5EncoderModel"}
OTHER_FILES = ("config.json", "tokenizer_config.json", "tokenizer.json", "vocab.json", "merges.txt")
OTHER_FILES += ("special_tokens_map.json", "added_tokens.json", "spiece.model")
BATCH_SIZE = 64
STATES = torch.float16  # of the states, which are kept for all captions


class PretrainedTokenizer:
    """The tokenizer and encoder of a folder, with the interface of `models.tokenizer.Tokenizer`.

    Args:
        path: the folder.
        length: tokens of a caption, filled up with padding.
        sha256: the digest that the files of the folder must have; None for any.

    Raises:
        ValueError: transformers is missing, or the folder holds no such encoder, or another one.
    """

    def __init__(self, path: str | Path, length: int, sha256: str | None = None):
        self.path, self.length = Path(path), length
        self.width, self.longest = described(self.path)
        self.sha256 = folder_sha256(self.path)
        if sha256 not in (None, self.sha256):
            raise ValueError(
                f"--text-encoder {path}: these are not the files that the network was trained with"
            )
        self.tokenizer = loaded(self.path, "AutoTokenizer", trust_remote_code=False)

    def tokens(self, caption: str) -> list[int]:
        """All tokens of a caption: the number of each in the folder's vocabulary, plus 1."""
        if not caption.strip():
            return []  # the null caption
        return [number + 1 for number in self.tokenizer(caption, verbose=False)["input_ids"]]

    def encode(self, captions: Sequence[str]) -> Tensor:
        """The tokens (N, length) of captions; what does not fit is cut off, except for the end."""
        table = torch.full((len(captions), self.length), PADDING)
        for row, caption in zip(table, captions, strict=True):
            tokens = self.tokens(caption)
            if len(tokens) > self.length:
                tokens = [*tokens[: self.length - 1], tokens[-1]]
            row[: len(tokens)] = torch.tensor(tokens)
        return table

    def condition(
        self,
        captions: Sequence[str],
        progress: Callable[..., Iterable] = lambda items, **_: items,
    ) -> Condition:
        """The tokens of captions and their states; each different caption is encoded once."""
        different = list(dict.fromkeys(captions))
        tokens, device = self.encode(different), choose_device("auto")
        encoder = frozen_encoder(self.path, self.sha256, device)
        batches = tokens.split(BATCH_SIZE)
        bar = progress(batches, desc="encoding the captions", total=len(batches))
        states = torch.cat([states_of(encoder, batch.to(device)).cpu() for batch in bar])
        numbers = {caption: i for i, caption in enumerate(different)}
        rows = torch.tensor([numbers[caption] for caption in captions])
        return Condition(tokens=tokens[rows], states=states[rows])

    def pieces(self, caption: str) -> list[tuple[str, int]]:
        """The parts of a caption, each with its number of tokens."""
        numbers = [token - 1 for token in self.tokens(caption)]
        return [(self.tokenizer.decode([number]).strip() or "_", 1) for number in numbers]

    def unknown(self, caption: str) -> list[str]:
        """Words that are not known: none, because the encoder was trained on other texts, too."""
        return []


def described(path: Path) -> tuple[int, int]:
    """Width of the states of a folder's encoder, and the maximum number of its tokens.

    Raises ValueError for a folder without a CLIP or T5 encoder.
    """
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        kind = config["model_type"]
        if kind == "t5":
            return int(config["d_model"]), int(config.get("n_positions") or 512)
        config = config["text_config"] if kind == "clip" else config
        if kind in CLASSES:
            return int(config["hidden_size"]), int(config.get("max_position_embeddings") or 77)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"--text-encoder {path} is not a folder of the package transformers with a config.json "
            f"({explained(error)})"
        ) from None
    raise ValueError(f"--text-encoder {path}: a {kind}; CLIP and T5 are supported")


def folder_sha256(path: Path) -> str:
    """A digest of the weights in a folder, and of the files that decide the tokens.

    Raises ValueError if there are no weights as safetensors.
    """
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        raise ValueError(
            f"--text-encoder {path} has no weights as .safetensors; no others are read"
        )
    files = [*weights, *(path / name for name in OTHER_FILES if (path / name).exists())]
    states = [file.stat() for file in files]
    changed = tuple((state.st_size, state.st_mtime_ns) for state in states)
    return digest_of_files(tuple(files), changed)


@cache
def digest_of_files(files: tuple[Path, ...], changed: tuple) -> str:
    """A digest of files, cached as long as `changed`, their sizes and times, stays the same."""
    sha256 = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                sha256.update(block)
    return sha256.hexdigest()


@cache
def frozen_encoder(path: Path, sha256: str, device: torch.device) -> nn.Module:
    """The encoder of a folder, loaded once. Raises ValueError if weights are missing."""
    kind = json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"]
    options = {"use_safetensors": True, "output_loading_info": True}
    encoder, info = loaded(path, CLASSES[kind], **options)
    if missing := sorted(info["missing_keys"]):  # they would be random
        raise ValueError(f"--text-encoder {path} lacks {len(missing)} weights, as {missing[0]}")
    return encoder.float().eval().requires_grad_(False).to(device)


@torch.no_grad()
def states_of(encoder: nn.Module, tokens: Tensor) -> Tensor:
    """The states (B, L, D) of tokens (B, L); zeros for padding."""
    mask = tokens != PADDING
    attended = mask.clone()
    attended[:, 0] = True  # attention needs at least one key
    numbers = (tokens - 1).clamp(min=0)
    states = encoder(input_ids=numbers, attention_mask=attended.long()).last_hidden_state
    return torch.where(mask[:, :, None], states, 0).to(STATES)


def loaded(path: Path, name: str, **options):
    """Load a folder by a class of transformers. Raises ValueError if that fails."""
    try:
        import transformers
    except ImportError:
        raise ValueError(
            "--text-encoder needs the package transformers: pip install -r requirements-text.txt"
        ) from None
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        return getattr(transformers, name).from_pretrained(path, local_files_only=True, **options)
    except Exception as error:  # transformers and its packages raise many types
        raise ValueError(f"--text-encoder {path}: {explained(error)}") from error


def explained(error: Exception) -> str:
    """The kind of an error and its first line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
