"""The conditions of a run's network: its vocabulary and prompts, and the condition of each item."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from conditions import Condition
from dataset.changes import first_names
from dataset.items import split
from dataset.types import Data
from models.pretrained import PretrainedTokenizer
from models.tokenizer import MAX_LENGTH, Tokenizer, tokenizer_of, with_room

PROMPTS = 8  # captions that sample grids show, and that sample.py draws by default
CAPTION_SIZES = ("vocabulary_size", "caption_length", "text_width")  # arguments of a network
FEW = 1000  # items to train on that are searched for prompts, if too few are held out


def condition_of(
    data: Data, config: dict, progress: Callable[..., Iterable] = lambda items, **_: items
) -> Condition | None:
    """The condition of all items (N) of a data set; None for an unconditional network.

    Args:
        data: the data set that the configuration was made for.
        config: of the run.
        progress: maps an iterable to one that shows its progress.
    """
    tokenizer = tokenizer_of(config)
    condition = Condition() if tokenizer is None else tokenizer.condition(data.captions, progress)
    if config["model"].get("num_classes"):
        condition = replace(condition, label=data.labels)
    return condition if condition.tensors() else None


def caption_config(
    data: Data, held_out: int, seed: int, text_encoder: str | None
) -> tuple[dict, dict]:
    """The caption fields of a new configuration: those of "data", and of the network.

    The vocabulary is that of the items to train on, and the prompts are those of held-out ones.
    A pretrained text encoder has its own vocabulary.
    """
    indices, others = (part.tolist() for part in split(len(data.captions), held_out, seed))
    prompts = dict.fromkeys(data.captions[i] for i in others + indices[:FEW])
    captions, of_data = [data.captions[i] for i in indices], {"prompts": list(prompts)[:PROMPTS]}
    if text_encoder is None:
        tokenizer = Tokenizer.of_captions(captions)
        of_data["words"] = tokenizer.words
        return of_data, {"vocabulary_size": tokenizer.size, "caption_length": tokenizer.length}
    pretrained = PretrainedTokenizer(text_encoder, MAX_LENGTH)
    longest = max(len(pretrained.tokens(caption)) for caption in set(captions))
    length = min(MAX_LENGTH, pretrained.longest, with_room(longest))
    of_data["text_encoder_sha256"] = pretrained.sha256
    return of_data, {"text_width": pretrained.width, "caption_length": length}


def saved_caption_config(saved: dict) -> tuple[dict, dict]:
    """The caption fields of a saved configuration: a resumed run keeps its vocabulary."""
    of_data, sizes = ("prompts", "words", "text_encoder_sha256"), CAPTION_SIZES
    return (
        {key: saved["data"][key] for key in of_data if key in saved["data"]},
        {key: saved["model"][key] for key in sizes if key in saved["model"]},
    )


def cut_captions(data: Data, config: dict) -> str:
    """A line for the user if captions are longer than the network takes; "" otherwise."""
    tokenizer = tokenizer_of(config)
    if tokenizer is None:
        return ""
    lengths = {caption: len(tokenizer.tokens(caption)) for caption in set(data.captions)}
    long = [i for i, text in enumerate(data.captions) if lengths[text] > tokenizer.length]
    if not long:
        return ""
    names = list(data.files) if len(data.files) == len(data.captions) else []
    where = f" ({first_names([names[i] for i in long])})" if names else ""
    has = "caption has" if len(long) == 1 else "captions have"
    return f"{len(long):,} {has} more than {tokenizer.length} tokens: the rest is ignored{where}"
