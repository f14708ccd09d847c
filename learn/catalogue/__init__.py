"""The exercises, in order: one module each, with the inputs and the typical mistakes.

A module has a list of `Task`, one for each function to write, and an `EXERCISE`. Those of the last
exercise are long and have modules of their own, `task_of_*`. The first mistake that behaves as the
student's function does is shown, so no two may behave alike on the cases.
"""

from learn.catalogue import (
    attention,
    consistency,
    ddim_step,
    ddpm_step,
    dpmpp_2m_step,
    ema,
    flow_matching,
    forward_process,
    guidance,
    heun_step,
    loss,
    posterior,
    predictions,
    residual_block,
    time_embedding,
    train_and_draw,
)
from learn.exercise import Exercise

EXERCISES: list[Exercise] = [
    forward_process.EXERCISE,
    posterior.EXERCISE,
    predictions.EXERCISE,
    loss.EXERCISE,
    time_embedding.EXERCISE,
    attention.EXERCISE,
    residual_block.EXERCISE,
    ema.EXERCISE,
    ddpm_step.EXERCISE,
    ddim_step.EXERCISE,
    guidance.EXERCISE,
    heun_step.EXERCISE,
    dpmpp_2m_step.EXERCISE,
    flow_matching.EXERCISE,
    consistency.EXERCISE,
    train_and_draw.EXERCISE,
]
