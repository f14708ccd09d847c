"""What the network of a run is conditioned on: the choice, and the condition of each item."""

from conditions import Condition
from dataset.items import split
from dataset.types import Data
from models.tokenizer import Tokenizer, tokenizer_of

PROMPTS = 8  # captions that sample grids show, and that sample.py draws by default
FEW = 1000  # items to train on that are searched for prompts, if too few are held out


def condition_of(data: Data, config: dict) -> Condition | None:
    """The condition of all items (N) of a data set; None for an unconditional network.

    Args:
        data: the data set that the configuration was made for.
        config: of the run.
    """
    tokenizer = tokenizer_of(config)
    condition = Condition(
        label=data.labels if config["model"].get("num_classes") else None,
        tokens=None if tokenizer is None else tokenizer.encode(data.captions),
    )
    return condition if condition.tensors() else None


def caption_config(data: Data, held_out: int, seed: int) -> tuple[dict, dict]:
    """The caption fields of a new configuration: those of "data", and of the network.

    The vocabulary is that of the items to train on, and the prompts are those of held-out ones.
    """
    indices, others = (part.tolist() for part in split(len(data.captions), held_out, seed))
    tokenizer = Tokenizer.of_captions(data.captions[i] for i in indices)
    prompts = dict.fromkeys(data.captions[i] for i in others + indices[:FEW])
    of_data = {"words": tokenizer.words, "prompts": list(prompts)[:PROMPTS]}
    return of_data, {"vocabulary_size": tokenizer.size, "caption_length": tokenizer.length}


def saved_caption_config(saved: dict) -> tuple[dict, dict]:
    """The caption fields of a saved configuration: a resumed run keeps its vocabulary."""
    return (
        {key: saved["data"][key] for key in ("words", "prompts")},
        {key: saved["model"][key] for key in ("vocabulary_size", "caption_length")},
    )


def cut_captions(data: Data, config: dict) -> str:
    """A line for the user if captions are longer than the network takes; "" otherwise."""
    tokenizer = tokenizer_of(config)
    if tokenizer is None:
        return ""
    lengths = {caption: len(tokenizer.tokens(caption)) for caption in set(data.captions)}
    count = sum(lengths[caption] > tokenizer.length for caption in data.captions)
    if not count:
        return ""
    has = "caption has" if count == 1 else "captions have"
    return f"{count:,} {has} more than {tokenizer.length} tokens: the rest is ignored"
