"""Exercise 11: classifier-free guidance."""

import torch

from learn.exercise import Case, Exercise, Mistake, Task, random


def dropped_in_place(labels, dropped, null):
    labels[dropped] = null
    return labels


def dropped_all(labels, dropped, null):
    return torch.full_like(labels, null)


def as_floats(labels, dropped, null):
    return torch.where(dropped, float(null), labels.float())


def removed(labels, dropped, null):
    return labels[~dropped]


DROP_LABELS = Task(
    "drop_labels",
    hint="torch.where(condition, value where true, value where false).",
    cases=[
        Case(
            "labels 1, 2, 3; the second is dropped",
            lambda: (torch.tensor([1, 2, 3]), torch.tensor([False, True, False]), 10),
        ),
        Case(
            "labels 0, 4; none is dropped",
            lambda: (torch.tensor([0, 4]), torch.tensor([False, False]), 10),
        ),
    ],
    mistakes=[
        Mistake(
            "the wrong ones are dropped",
            "You keep the labels where dropped is True and replace the others. Exchange both "
            "values in torch.where.",
            lambda labels, dropped, null: torch.where(dropped, labels, null),
        ),
        Mistake(
            "the input is changed in place",
            "Your result is right, but you write into the caller's labels, which are then wrong "
            "in the next epoch. Use torch.where, or clone first.",
            dropped_in_place,
        ),
        Mistake(
            "all labels dropped",
            "You replace all labels. Only those where dropped is True become null.",
            dropped_all,
        ),
        Mistake(
            "none dropped",
            "You return the labels as they were. Where dropped is True they become null.",
            lambda labels, dropped, null: labels.clone(),
        ),
        Mistake(
            "0 for null",
            "You set dropped labels to 0, which is a class (the digit 0). Use null, a label of its "
            "own.",
            lambda labels, dropped, null: labels * ~dropped,
        ),
        Mistake(
            "labels are no longer whole numbers",
            "You return floats. An nn.Embedding needs int64 labels.",
            as_floats,
        ),
        Mistake(
            "dropped items removed",
            "You leave dropped items out, so the labels no longer fit the images. Replace them by "
            "null.",
            removed,
        ),
    ],
)

GUIDED = Task(
    "guided",
    hint="A step from the unconditional prediction in the direction of the conditional one, of "
    "`scale` times their difference.",
    linear=["cond", "uncond"],
    cases=[
        Case(
            "cond = 3, uncond = 1, scale = 2",
            lambda: (torch.tensor([3.0]), torch.tensor([1.0]), 2.0),
        ),
        Case("images, scale = 0", lambda: (random(2, 1, 2, 2), random(2, 1, 2, 2, seed=1), 0.0)),
        Case("images, scale = 1", lambda: (random(2, 1, 2, 2), random(2, 1, 2, 2, seed=1), 1.0)),
        Case("images, scale = 7.5", lambda: (random(2, 1, 2, 2), random(2, 1, 2, 2, seed=1), 7.5)),
    ],
    mistakes=[
        Mistake(
            "scale and 1 - scale exchanged",
            "You compute scale * uncond + (1 - scale) * cond. It is the other way round: scale 0 "
            "must give uncond, and scale 1 cond.",
            lambda cond, uncond, scale: scale * uncond + (1 - scale) * cond,
        ),
        Mistake(
            "scale 0 is conditional",
            "You compute cond + scale * (cond - uncond). Ho & Salimans write it with "
            "w = scale - 1. Here it is uncond + scale * (cond - uncond).",
            lambda cond, uncond, scale: cond + scale * (cond - uncond),
        ),
        Mistake(
            "away from the condition",
            "Your difference is uncond - cond, which leads away from the condition. Write cond - "
            "uncond.",
            lambda cond, uncond, scale: uncond + scale * (uncond - cond),
        ),
        Mistake(
            "the weights do not sum to 1",
            "You add scale * cond to uncond, so the prediction grows with the scale. Subtract "
            "uncond first: uncond + scale * (cond - uncond).",
            lambda cond, uncond, scale: uncond + scale * cond,
        ),
        Mistake(
            "only the difference",
            "You return scale * (cond - uncond). Add uncond, from which the difference counts.",
            lambda cond, uncond, scale: scale * (cond - uncond),
        ),
        Mistake(
            "the mean of both",
            "You average both predictions and ignore the scale. Guidance goes beyond the "
            "conditional one for scale > 1.",
            lambda cond, uncond, scale: (cond + uncond) / 2,
        ),
        Mistake(
            "not guided",
            "You return the conditional prediction, whatever the scale.",
            lambda cond, uncond, scale: cond.clone(),
        ),
        Mistake(
            "clipped",
            "You clip the result to [-1, 1]. These are predictions of noise, which has no bounds.",
            lambda cond, uncond, scale: (uncond + scale * (cond - uncond)).clamp(-1, 1),
        ),
    ],
)

EXERCISE = Exercise(
    file="11_guidance",
    title="classifier-free guidance",
    chapter="08_conditions_and_guidance.md",
    tasks=[DROP_LABELS, GUIDED],
    done="You can ask for a 7, and say how strongly.",
)
