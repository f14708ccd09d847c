"""Exercise 16: train a network and draw with it."""

from learn.catalogue.task_of_drawing import DRAW
from learn.catalogue.task_of_training import TRAIN
from learn.exercise import Exercise

EXERCISE = Exercise(
    file="16_train_and_draw",
    title="train and draw",
    chapter="06_training.md",
    tasks=[TRAIN, DRAW],
    done="All of it is yours: the process, the network, the training and the sampler.",
    trains_with=(1, 3, 4, 5, 6, 7, 8, 10),
)
