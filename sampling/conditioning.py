"""The conditions of the samples that a request asks for: classes and prompts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from cli.sampling import CLASSES, PROMPTS, SamplingRequest
from conditions import NULL_LABEL, Condition, label_condition
from dataset.folder_captions import MAX_CAPTION
from dataset.image_files import printable
from dataset.items import item_shape, kind_of
from models.tokenizer import tokenizer_of
from sampling.classes import ClassNames
from visuals.pictures import square

COUNT = {"images": 64, "points": 2000}  # default number of samples, and batch size
SHOWN = 60  # characters of a prompt in a message


class Wanted:
    """What a request asks for, for one checkpoint.

    Args:
        request: what is asked for.
        config: the configuration of the checkpoint.
        steered: does a classifier guide to the classes?

    Attributes:
        count, columns: samples, and columns of their grid.
        condition: of all samples (N); None for an unconditional checkpoint.
        labels: the classes (N) that a classifier guides to; None without one.
        classes: the names of the checkpoint's classes.
        class_ids: the classes that the request names; None for no choice.
        prompts: the prompt of each row of the grid; none without prompts.
        negative: the condition (1) that guidance leads away from; None for the unconditional form.

    Raises:
        ValueError: choices that do not fit the checkpoint or each other.
    """

    def __init__(self, request: SamplingRequest, config: dict, *, steered: bool = False):
        self.request, self.config = request, config
        self.conditional = any(config["model"].get(k) for k in ("num_classes", "caption_length"))
        self.num_classes = len(config["data"]["classes"]) if steered else None
        self.num_classes = config["model"].get("num_classes") or self.num_classes
        self.tokenizer = tokenizer_of(config)
        self.classes = ClassNames(config["data"]["classes"])
        self.require_possible()
        self.class_ids = None if request.class_id is None else self.named_classes(request.class_id)
        self.given = given_prompts(request)
        for prompt in self.given or []:
            self.require_fits(prompt, "--prompt")
        self.prompts: list[str] = []
        kind = kind_of(item_shape(config["data"]))
        self.count = request.num_images or (10 if request.interpolate else COUNT[kind])
        self.columns = self.count if request.interpolate else square(self.count)
        self.condition, self.labels = self.choose(), None
        if steered:
            self.labels = self.condition.label
            if bool((self.labels == NULL_LABEL).any()):
                raise ValueError("give the --class-id that --classifier guides to")
            if config["model"].get("num_classes") is None:
                self.condition = replace(self.condition, label=None)
            self.condition = self.condition if self.conditional else None
        self.negative = self.negative_condition()

    def require_possible(self) -> None:
        """Raise ValueError for flags that this checkpoint has no use for."""
        request = self.request
        missing = {CLASSES: self.num_classes is None, PROMPTS: self.tokenizer is None}
        what = {CLASSES: "class labels", PROMPTS: "captions"}
        way = {CLASSES: "--class-conditional", PROMPTS: "--text-conditional"}
        for group in (group for group, absent in missing.items() if absent):
            for name in request.named(group=group):
                if name in request.given:
                    is_not = (
                        f"not conditioned on {what[group]}"
                        if self.conditional
                        else ("unconditional")
                    )
                    raise ValueError(
                        f"--{name.replace('_', '-')}: this checkpoint is {is_not}; "
                        f"train.py {way[group]} trains one that is"
                    )
        by_condition = request.guidance_scale != 1 and request.guide is None
        if by_condition and not self.conditional:
            raise ValueError(
                "--guidance-scale: this checkpoint is unconditional; give a weaker model to guide "
                "with, such as --guide outputs/snapshots/step_001024.safetensors"
            )
        if by_condition and self.config["train"]["label_dropout"] == 0:
            raise ValueError(
                "--guidance-scale: this checkpoint was trained with --label-dropout 0, and has no "
                "unconditional prediction"
            )

    def named_classes(self, text: str) -> list[int]:
        """The classes of --class-id. Raises ValueError for others."""
        try:
            return self.classes.indices(text)
        except ValueError as error:
            raise ValueError(f"--class-id: {error}") from None

    def require_fits(self, prompt: str, flag: str) -> None:
        """Raise ValueError for a prompt that is too long."""
        if len(prompt) > MAX_CAPTION:
            raise ValueError(
                f"{flag}: {len(prompt):,} characters; at most {MAX_CAPTION:,} are possible"
            )
        count = len(self.tokenizer.tokens(prompt))
        if count > self.tokenizer.length:
            raise ValueError(
                f"{flag} {shortened(prompt)!r} has {count} tokens, and this checkpoint takes at "
                f"most {self.tokenizer.length}{self.spelled(prompt)}"
            )

    def spelled(self, prompt: str) -> str:
        """Words that cost a token for each letter, for a message; "" if there are none."""
        named = ", ".join(map(repr, self.tokenizer.unknown(prompt)[:5]))
        return f"; words outside the training captions take one a letter: {named}" if named else ""

    def choose(self) -> Condition | None:
        """The condition of all samples; sets `count`, `columns` and `prompts`."""
        if self.num_classes is None and self.tokenizer is None:
            return None
        if self.given is not None:
            return self.of_prompts(self.given)
        if self.class_ids is not None:
            return self.of_classes(self.class_ids)
        request, has_null = self.request, self.config["train"]["label_dropout"] > 0
        if request.mode:  # of any class
            if (request.guidance_scale != 1 and request.guide is None) or not has_null:
                flag = "--class-id" if self.tokenizer is None else "--prompt"
                raise ValueError(f"give the {flag} of the images")
            return self.rows(self.tokens([""]), torch.tensor([NULL_LABEL]), self.count)
        if self.tokenizer is not None:
            self.prompts = self.config["data"]["prompts"]
            if request.num_images is None:
                self.columns = self.count // 8
                self.count = self.columns * len(self.prompts)
            tokens = grid_condition(self.config, torch.arange(self.count), self.columns).tokens
            return self.rows(tokens, None)
        return self.rows(None, torch.arange(self.count) % self.num_classes)

    def of_prompts(self, prompts: Sequence[str]) -> Condition:
        """A row of samples of each prompt, of one class if one is named."""
        if len(self.class_ids or []) > 1:
            raise ValueError("--class-id: give one class, which all prompts share")
        labels = None if self.class_ids is None else torch.tensor(self.class_ids)
        tokens = self.repeated(len(prompts), "prompts", "--prompt", self.tokens(prompts))
        self.prompts = list(prompts)
        return self.rows(tokens, None if labels is None else labels.expand(self.count))

    def of_classes(self, ids: list[int]) -> Condition:
        """A row of samples of each class; the whole grid if there is only one."""
        labels = self.repeated(len(ids), "classes", "--class-id", torch.tensor(ids))
        return self.rows(None, labels)

    def repeated(self, number: int, what: str, flag: str, choices: torch.Tensor) -> torch.Tensor:
        """Choices (number, ...), each for a row of the grid: (count, ...). Sets count, columns."""
        request = self.request
        if number == 1:
            return choices.expand(self.count, *choices.shape[1:])
        if request.interpolate or request.invert:
            one = "class" if what == "classes" else "prompt"
            raise ValueError(f"{flag}: give one {one}, which all of these images share")
        if request.num_images is None:
            self.count = self.count // 8 * number
        if self.count % number:
            raise ValueError(f"--num-images {self.count} is not a multiple of {number} {what}")
        self.columns = self.count // number
        return choices.repeat_interleave(self.columns, dim=0)

    def tokens(self, captions: Sequence[str]) -> torch.Tensor | None:
        return None if self.tokenizer is None else self.tokenizer.encode(captions)

    def rows(
        self, tokens: torch.Tensor | None, labels: torch.Tensor | None, repeats: int = 1
    ) -> Condition:
        """A condition of tokens and labels; null where the checkpoint knows of more than these."""
        count = len(tokens if labels is None else labels)
        if tokens is None and self.tokenizer is not None:
            tokens = self.tokens([""]).expand(count, -1)
        if labels is None and self.num_classes is not None:
            labels = torch.full((count,), NULL_LABEL)
        labels = labels if self.num_classes is not None else None
        return Condition(labels, tokens).map(lambda t: t.repeat_interleave(repeats, dim=0))

    def negative_condition(self) -> Condition | None:
        """The condition of --negative-prompt; None where there is none."""
        prompt = self.request.negative_prompt
        if prompt is None:
            return None
        self.require_fits(prompt, "--negative-prompt")
        return self.rows(self.tokens([prompt]), None)

    def of_data(self, condition: Condition) -> None:
        """Take the condition of data (N), for samples like them, unless the request has its own."""
        if self.condition is not None and self.class_ids is None and self.given is None:
            self.condition, self.prompts = condition, []

    def described(self) -> list[str]:
        """Lines for the user: what is drawn, and words that are unknown."""
        lines = []
        if self.class_ids is not None:
            lines.append(self.classes.drawn(self.class_ids))
        if self.given is None and self.prompts:
            lines.append("prompts: held-out captions (--prompt gives others)")
        given = self.given or []
        if any(not self.tokenizer.tokens(prompt) for prompt in given):
            lines.append("an empty prompt: unconditional samples")
        negative = self.request.negative_prompt
        texts = [*given, *([] if negative is None else [negative])]
        unknown = dict.fromkeys(word for text in texts for word in self.tokenizer.unknown(text))
        if unknown:
            lines.append(f"not in the training captions: {', '.join(map(repr, unknown))}")
        return lines


def grid_condition(config: dict, indices: torch.Tensor, columns: int) -> Condition | None:
    """The condition of the samples with these indices (N,) in a grid, where none is asked for.

    A prompt of the configuration in each row, or else a class in each column.
    """
    num_classes, tokenizer = config["model"].get("num_classes"), tokenizer_of(config)
    if tokenizer is None:
        return label_condition(indices % columns % num_classes if num_classes else None)
    prompts = config["data"]["prompts"]
    tokens = tokenizer.encode(prompts).to(indices.device)[indices // columns % len(prompts)]
    any_class = torch.full_like(indices, NULL_LABEL)
    return Condition(any_class if num_classes else None, tokens)


def given_prompts(request: SamplingRequest) -> list[str] | None:
    """The prompts of --prompt or --prompts; None without them. Raises ValueError for a bad file."""
    if request.prompts is None:
        return request.prompt
    path = Path(request.prompts)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts {path} is not UTF-8: {error}") from None
    if not (prompts := [line.strip() for line in lines if line.strip()]):
        raise ValueError(f"--prompts {path} has no prompts: one is expected in each line")
    return prompts


def shortened(prompt: str) -> str:
    """A prompt for a message."""
    text = printable(prompt)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
