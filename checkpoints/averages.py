"""Post-hoc averages of the weights (Karras et al. 2023, arXiv:2312.02696, section 3).

A run of `train.py --post-hoc-ema` keeps two averages with powers of the step as their profiles,
and writes both from time to time. An average of any other length is a combination of these files,
by least squares between the profiles.

The length of a profile is its standard deviation as a fraction of the training so far (sigma_rel).
"""

import math
import re
from pathlib import Path

import numpy as np
from numpy.polynomial import Polynomial

from checkpoints.reading import CheckpointError, step_of
from checkpoints.runs import SNAPSHOTS, run_path
from checkpoints.weights import is_own_weights, load_weights, save_weights

LENGTHS = (0.05, 0.10)  # of the two averages of a run
KEPT = 24  # newest files of each average that are kept
SHOWN = 5  # steps in a message
# The files of `write_average`, next to the checkpoint
MADE = r"(checkpoints/)?model_[a-z0-9_]+_ema_0\.[0-9]{3}\.safetensors"
FILE = rf"{SNAPSHOTS}/average_([0-9]{{6,}})_({'|'.join(f'{each:.2f}' for each in LENGTHS)})"
FILE += r"\.safetensors"


def exponent(length: float) -> float:
    """gamma of the profile t^gamma with the length `length` (eq. 126, appendix C.1)."""
    square = length**-2
    roots = Polynomial([12 - square, 16 - square, 7, 1]).roots()
    return float(roots.real.max())


def power_decay(step: int, gamma: float) -> float:
    """The decay at a step, from 0 (section 3.1): (1 - 1/t)^(gamma + 1), with t = step + 1."""
    return (1 - 1 / (step + 1)) ** (gamma + 1)


def inner_products(t_a, gamma_a, t_b, gamma_b):
    """Inner products of profiles t^gamma_a to t_a and t^gamma_b to t_b (appendix C.3).

    The arguments are numbers or arrays that broadcast.
    """
    ratio = t_a / t_b
    power = np.where(t_a < t_b, gamma_b, -gamma_a)
    numerator = (gamma_a + 1) * (gamma_b + 1) * ratio**power
    return numerator / ((gamma_a + gamma_b + 1) * np.maximum(t_a, t_b))


def mixture(steps, gammas, step: int, gamma: float) -> np.ndarray:
    """The shares (N,) of averages in the sum that is nearest to the average with another profile.

    Args:
        steps, gammas: last steps and profiles of the averages (N,).
        step, gamma: last step and profile of the wanted average.
    """
    steps, gammas = np.asarray(steps, float), np.asarray(gammas, float)
    among = inner_products(steps[:, None], gammas[:, None], steps, gammas)
    shares = np.linalg.solve(among, inner_products(steps, gammas, float(step), gamma))
    return shares / shares.sum()  # so that the average of constant weights is these weights


def is_average_step(step: int) -> bool:
    """Are the averages written after this step? At about 16, 17, 19, ...: powers of 2^(1/8)."""
    return step >= 16 and step == round(2 ** (round(8 * math.log2(step)) / 8))


def average_path(folder: Path, step: int, length: float) -> Path:
    """The file of an average of a run."""
    return folder / SNAPSHOTS / f"average_{step:06d}_{length:.2f}.safetensors"


def average_files(folder: Path) -> dict[tuple[int, float], Path]:
    """The files of a run's averages, by step and length."""
    found = {}
    for path in (folder / SNAPSHOTS).glob("average_*.safetensors"):
        if match := re.fullmatch(FILE, path.relative_to(folder).as_posix()):
            found[int(match[1]), float(match[2])] = path
    return dict(sorted(found.items()))


def write_average(checkpoint: Path, length: float) -> Path:
    """Write the average with this length, at a checkpoint's step, to a file next to the checkpoint.

    Returns the file. Raises ValueError if its path is that of another program's file, and
    CheckpointError if the run has no averages at the checkpoint's step.
    """
    path = checkpoint.with_name(f"{checkpoint.stem}_ema_{length:.3f}.safetensors")
    if path.exists() and not is_own_weights(path):
        raise ValueError(f"{path} exists, and is no weights file: move it away")
    step = step_of(checkpoint)
    weights, config = averaged(run_path(checkpoint.parent), step, length)
    save_weights(path, config, step, "ema", weights)
    return path


def averaged(folder: Path, step: int, length: float) -> tuple[dict, dict]:
    """The average of the weights with this length, at a step of a run, and the configuration.

    Raises CheckpointError if the run has no averages at this step.
    """
    files = {key: file for key, file in average_files(folder).items() if key[0] <= step}
    if not any(key[0] == step for key in files):
        steps = ", ".join(f"{each:,}" for each in sorted({key[0] for key in files})[-SHOWN:])
        which = f"it has those of {steps}" if steps else "train.py --post-hoc-ema writes them"
        raise CheckpointError(
            f"no averages of the checkpoint's step, {step:,}, in {folder}; {which}"
        )
    steps, lengths = zip(*files, strict=True)
    shares = mixture(steps, [exponent(each) for each in lengths], step, exponent(length))
    total, config = {}, {}
    for share, file in zip(shares.tolist(), files.values(), strict=True):
        checkpoint = load_weights(file)
        config = checkpoint["config"]
        for name, tensor in checkpoint["ema"].items():
            if not tensor.is_floating_point():
                total[name] = tensor
                continue
            part = share * tensor.double()
            total[name] = part if name not in total else total[name] + part
    weights = {name: t.float() if t.is_floating_point() else t for name, t in total.items()}
    return weights, config
