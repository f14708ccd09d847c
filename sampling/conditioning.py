"""The conditions of the samples that a request asks for: classes and prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cli.sampling import CLASSES, PROMPTS, SamplingRequest
from conditions import NULL_LABEL, Condition, label_condition
from dataset.folder_captions import MAX_CAPTION, is_unicode
from dataset.image_files import printable
from dataset.items import item_shape, kind_of
from models.pretrained import PretrainedTokenizer
from models.tokenizer import Tokenizer, tokenizer_of
from sampling.classes import ClassNames
from visuals.pictures import square

COUNT = {"images": 64, "points": 2000}  # default number of samples, and batch size
SHOWN = 60  # characters of a prompt in a message


class Wanted:
    """The classes and prompts of a request, resolved for one checkpoint.

    Args:
        request: what is asked for.
        config: the configuration of the checkpoint.
        judges: the configurations of the networks of --classifier and --clip, which know classes
            and captions that the checkpoint may not know.

    Attributes:
        count, columns: samples, and columns of their grid.
        condition: of all samples (N); None for an unconditional checkpoint.
        chosen, texts: the class (N,) and the prompt (N) of each sample; NULL_LABEL and "" for none.
        source: the `Wanted` of the first stage of a cascade, or this one.
        labels: the classes (N,) that --classifier guides to; None without it.
        captions: the condition (N) that --clip guides to; None without it.
        classes: the names of the checkpoint's classes.
        class_ids: the classes that the request names; None for no choice.
        prompts: the prompt of each row of the grid; empty without prompts.
        blend: with --interpolate between two prompts, the condition (N) of the second, and its
            share (N,); None otherwise.
        negative: the condition (1) that guidance leads away from; None for the unconditional form.

    Raises:
        ValueError: choices that do not fit the checkpoint or each other.
    """

    def __init__(self, request: SamplingRequest, config: dict, judges: Mapping[str, dict]):
        self.request, self.config = request, config
        self.own_classes = config["model"].get("num_classes")
        self.own_tokenizer = tokenizer_of(config)
        self.conditional = self.own_classes is not None or self.own_tokenizer is not None
        of_classifier, of_clip = judges.get("classifier"), judges.get("clip")
        clip = None if of_clip is None else tokenizer_of(of_clip)
        self.num_classes = self.own_classes
        if of_classifier is not None:
            self.num_classes = of_classifier["model"]["num_classes"]
        self.tokenizer = self.own_tokenizer or clip
        self.classes = ClassNames(config["data"]["classes"])
        self.require_possible()
        self.class_ids = None if request.class_id is None else self.named_classes(request.class_id)
        self.given = given_prompts(request)
        for prompt in self.given or []:
            require_fits(prompt, "--prompt", self.tokenizer)
        self.prompts: list[str] = []
        kind = kind_of(item_shape(config["data"]))
        self.count = request.num_images or (10 if request.interpolate else COUNT[kind])
        self.columns = self.count if request.interpolate else square(self.count)
        labels, row = self.choose()
        texts = [""] * self.count if row is None else [self.prompts[i] for i in row.tolist()]
        texts = [self.given[0]] * self.count if self.blends else texts
        self.chosen, self.texts, self.source = labels, texts, self
        self.condition, self.blend = self.own_condition(labels, texts), None
        if self.blends:
            other = self.own_condition(labels, [self.given[1]] * self.count)
            self.blend = other, torch.linspace(0, 1, self.count)
        self.labels = self.captions = self.clip = None
        if of_classifier is not None:
            self.labels = labels
            if bool((labels == NULL_LABEL).any()):
                raise ValueError("give the --class-id that --classifier guides to")
        if clip is not None:
            if self.given is None and not self.own_tokenizer:
                raise ValueError("give the --prompt that --clip guides to")
            if self.blends:
                raise ValueError("--clip guides to one prompt, and --interpolate has two here")
            for prompt in self.given or []:
                require_fits(prompt, "--prompt", clip)
                if not clip.tokens(prompt):
                    raise ValueError("--clip cannot guide to an empty prompt")
            self.clip, self.captions = clip, clip.condition(texts)
        self.negative = self.negative_condition()

    def require_possible(self) -> None:
        """Raise ValueError for flags that have no effect on this checkpoint."""
        request = self.request
        unknown = request.named(group=CLASSES) if self.num_classes is None else []
        unknown += request.named(group=PROMPTS) if self.tokenizer is None else []
        unknown += ["negative_prompt"] if self.own_tokenizer is None else []
        for name in (name for name in unknown if name in request.given):
            what, kind = "class labels", "class"
            if name in request.named(group=PROMPTS):
                what, kind = "captions", "text"
            knows = f"not conditioned on {what}" if self.conditional else "unconditional"
            raise ValueError(
                f"--{name.replace('_', '-')}: this checkpoint is {knows}; "
                f"train.py --{kind}-conditional trains one that is"
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
        """The indices of the classes of --class-id. Raises ValueError for unknown classes."""
        try:
            return self.classes.indices(text)
        except ValueError as error:
            raise ValueError(f"--class-id: {error}") from None

    @property
    def blends(self) -> bool:
        """Does the request lead from one prompt to another?"""
        return self.request.interpolate and len(self.given or []) == 2

    def choose(self) -> tuple[Tensor, Tensor | None]:
        """The class of each sample (N,), and the number of its prompt (N,), or None for no prompts.

        Sets `count`, `columns` and `prompts`. Raises ValueError for choices that do not fit.
        """
        request, ids = self.request, self.class_ids
        if self.given is not None:  # a row of samples of each prompt
            if len(ids or []) > 1:
                raise ValueError("--class-id: give one class, which all prompts share")
            self.prompts = list(self.given)
            if self.blends:
                self.prompts = [f"{self.given[0]} ... {self.given[1]}"]
                labels = torch.full((self.count,), NULL_LABEL if ids is None else ids[0])
                return labels, torch.zeros(self.count, dtype=torch.int64)
            row = self.repeated(torch.arange(len(self.prompts)), "prompts", "--prompt")
            return torch.full((self.count,), NULL_LABEL if ids is None else ids[0]), row
        if ids is not None:  # a row of samples of each class; the whole grid if there is only one
            return self.repeated(torch.tensor(ids), "classes", "--class-id"), None
        if request.mode and self.conditional:  # of any class
            by_condition = request.guidance_scale != 1 and request.guide is None
            if by_condition or self.config["train"]["label_dropout"] == 0:
                flag = "--class-id" if self.own_tokenizer is None else "--prompt"
                raise ValueError(f"give the {flag} of the images")
        elif self.own_tokenizer is not None:
            self.prompts = self.config["data"]["prompts"]
            if request.num_images is None:
                self.columns = self.count // 8
                self.count = self.columns * len(self.prompts)
            row = torch.arange(self.count) // self.columns % len(self.prompts)
            return torch.full((self.count,), NULL_LABEL), row
        elif self.num_classes is not None and not request.mode:
            return torch.arange(self.count) % self.num_classes, None
        return torch.full((self.count,), NULL_LABEL), None

    def repeated(self, choices: Tensor, what: str, flag: str) -> Tensor:
        """Choices (number,), each for a row of the grid: (count,). Sets `count` and `columns`."""
        request, number = self.request, len(choices)
        if number == 1:
            return choices.expand(self.count)
        if request.interpolate or request.invert:
            one = "class" if what == "classes" else "prompt"
            raise ValueError(f"{flag}: give one {one}, which all of these images share")
        if request.num_images is None:
            self.count = self.count // 8 * number
        if self.count % number:
            raise ValueError(f"--num-images {self.count} is not a multiple of {number} {what}")
        self.columns = self.count // number
        return choices.repeat_interleave(self.columns)

    def own_condition(self, labels: Tensor, captions: Sequence[str]) -> Condition | None:
        """The checkpoint's condition of classes (N,) and captions (N)."""
        if not self.conditional:
            return None
        tokenizer = self.own_tokenizer
        condition = Condition() if tokenizer is None else tokenizer.condition(captions)
        return condition if self.own_classes is None else replace(condition, label=labels)

    def negative_condition(self) -> Condition | None:
        """The condition (1) of --negative-prompt; None without this flag."""
        prompt = self.request.negative_prompt
        if prompt is None:
            return None
        require_fits(prompt, "--negative-prompt", self.own_tokenizer)
        return self.own_condition(torch.tensor([NULL_LABEL]), [prompt])

    def follow(self, before: "Wanted") -> None:
        """Use the classes and prompts of the previous stage of a cascade.

        Raises ValueError for a network that is conditioned on what the first stage is not.
        """
        source = self.source = before.source
        if self.own_classes is not None:
            if source.own_classes is None or source.classes.names != self.classes.names:
                raise ValueError("the first stage is not conditioned on the classes of this one")
            self.chosen = source.chosen
        if self.own_tokenizer is not None:
            if source.own_tokenizer is None:
                raise ValueError("the first stage is not conditioned on captions, and this one is")
            for prompt in source.given or source.prompts:
                require_fits(prompt, "--prompt", self.own_tokenizer)
        self.texts, self.prompts, self.columns = source.texts, source.prompts, source.columns
        self.condition = self.own_condition(self.chosen, self.texts)
        if source.blend is not None and self.own_tokenizer is not None:
            other = self.own_condition(self.chosen, [source.given[1]] * self.count)
            self.blend = other, source.blend[1]

    def of_data(self, condition: Condition, captions: Sequence[str] = ()) -> None:
        """Use the condition (N) of real data, unless the request names classes or prompts.

        `captions` (N) are those of the data, or empty; --clip guides to them.
        """
        if self.condition is not None and self.class_ids is None and self.given is None:
            self.condition, self.prompts = condition, []
            if self.clip is not None:
                self.captions = self.clip.condition(captions)

    def described(self) -> list[str]:
        """Lines for the user: what is drawn, and words that are unknown."""
        lines = []
        if self.class_ids is not None:
            lines.append(self.classes.drawn(self.class_ids))
        if self.given is None and self.prompts:
            kind = "held-out" if self.config["train"]["validation"] else "training"
            lines.append(f"prompts: {kind} captions (--prompt gives others)")
        given = self.given or []
        if any(not self.tokenizer.tokens(prompt) for prompt in given):
            lines.append("an empty prompt: samples of any caption")
        negative = self.request.negative_prompt
        texts = [*given, *([] if negative is None else [negative])]
        return lines + (unknown_words(texts, self.tokenizer) if texts else [])


def require_fits(prompt: str, flag: str, tokenizer: Tokenizer | PretrainedTokenizer) -> None:
    """Raise ValueError for a prompt that is too long or not valid Unicode."""
    if len(prompt) > MAX_CAPTION:
        raise ValueError(
            f"{flag}: {len(prompt):,} characters; at most {MAX_CAPTION:,} are possible"
        )
    if not is_unicode(prompt):
        raise ValueError(
            f"{flag} {shortened(prompt)!r} is not UTF-8; the terminal uses another encoding"
        )
    count = len(tokenizer.tokens(prompt))
    if count > tokenizer.length:
        raise ValueError(
            f"{flag} {shortened(prompt)!r} has {count} tokens, and this checkpoint takes at "
            f"most {tokenizer.length}{spelled(prompt, tokenizer)}"
        )


def unknown_words(texts: Sequence[str], tokenizer: Tokenizer | PretrainedTokenizer) -> list[str]:
    """A list with a line for the user that names unknown words; empty if there are none."""
    unknown = dict.fromkeys(word for text in texts for word in tokenizer.unknown(text))
    named = ", ".join(repr(shortened(word)) for word in unknown)
    return [f"not in the training captions: {named}"] if unknown else []


def spelled(prompt: str, tokenizer: Tokenizer | PretrainedTokenizer) -> str:
    """Words that cost a token for each letter, for a message; "" if there are none."""
    named = ", ".join(repr(shortened(word)) for word in tokenizer.unknown(prompt)[:5])
    return f"; words outside the training captions take one a letter: {named}" if named else ""


def grid_condition(config: dict, indices: Tensor, columns: int) -> Condition | None:
    """The default condition of the samples with these indices (N,) in a grid.

    Each row has a prompt of the configuration; without captions, each column has a class.
    """
    num_classes, tokenizer = config["model"].get("num_classes"), tokenizer_of(config)
    if tokenizer is None:
        return label_condition(indices % columns % num_classes if num_classes else None)
    prompts = config["data"]["prompts"]
    rows = indices // columns % len(prompts)
    condition = tokenizer.condition(prompts).to(indices.device)[rows]
    any_class = torch.full_like(indices, NULL_LABEL)
    return replace(condition, label=any_class) if num_classes else condition


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
