# %% [markdown]
# # 4. Your own data and network
#
# A tensor of your own, a network of your own, and this project's process, training and sampling.
# The data are made in this notebook, so nothing is downloaded. It takes about a minute on two CPU
# cores.

# %%
import os
import sys

if not os.path.exists("train.py"):  # the notebook was started in notebooks/
    os.chdir("..")
sys.path.insert(0, os.getcwd())

# %%
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from diffusion import DDPM
from evaluation.doctor.checks import examine
from evaluation.doctor.report import report_of
from evaluation.doctor.run import read_run
from sample import sample
from training.fit import fit
from visuals.pictures import ImagePictures

QUICK = "TINY_DIFFUSION_QUICK" in os.environ  # set by the tests: runs all code, with poor pictures
FOLDER = Path("outputs/notebooks/your_own")
shutil.rmtree(FOLDER, ignore_errors=True)  # of an earlier run of this notebook
torch.manual_seed(0)


def show(images, columns, value_range=(0, 1)):
    """One picture of images (N, C, H, W) with values in a range."""
    images = torch.as_tensor(images)
    return Image.fromarray(ImagePictures(value_range).grid(images, columns))


# %% [markdown]
# ## The data
#
# `fit()` takes a tensor or an array: images (N, C, H, W), or points (N, D). These are images of
# 8 x 8 pixels with one channel. Each shows a disc, a square or a cross, with a random centre and a
# random size. The brightness of a pixel depends on its distance from the edge of the shape, so the
# edges are smooth.


# %%
def make_shapes(count, rng):
    """Images (N, 1, 8, 8) in [0, 1] and labels (N): 0 for a disc, 1 for a square, 2 for a cross."""
    y, x = np.mgrid[:8, :8]
    labels = rng.integers(3, size=count)
    y_0, x_0 = rng.uniform(2.5, 4.5, size=(2, count, 1, 1))  # centres
    radius = rng.uniform(1.5, 3, size=(count, 1, 1))
    dy, dx = np.abs(y - y_0), np.abs(x - x_0)  # (N, 8, 8)
    disc = np.hypot(dy, dx) - radius  # distance from the edge, negative inside
    square = np.abs(np.maximum(dy, dx) - radius) - 0.5
    cross = np.maximum(np.minimum(dy, dx) - 0.5, np.maximum(dy, dx) - radius)
    distance = np.choose(labels[:, None, None], [disc, square, cross])
    return np.clip(0.5 - distance, 0, 1)[:, None].astype(np.float32), labels


images, labels = make_shapes(6000, np.random.default_rng(0))
show(images[:30], columns=15)

# %% [markdown]
# ## The network
#
# A network is any `nn.Module` that is called as `model(x_t, t)` and returns a tensor of the shape
# of $x_t$. $x_t$ is (B, 1, 8, 8) and $t$ is (B,), whole numbers from 0 to 999.
#
# The network must know $t$, because removing much noise is a different task from removing little.
# The time embedding represents $t$ by sines and cosines of several frequencies
# ([chapter 5 of the guide](../docs/guide/05_network.md#time-embedding)), and its vector is added to
# the features in every layer. A patch of 2 x 2 pixels becomes one position of the features, which
# saves three quarters of the time.


# %%
class MyNetwork(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        self.first = nn.Conv2d(1, width, 2, stride=2)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(4))
        self.last = nn.ConvTranspose2d(width, 1, 2, stride=2)

    def embed(self, t):
        angles = t[:, None] / 1000 * 2.0 ** torch.arange(8)  # (B, 8)
        return self.time(torch.cat([angles.sin(), angles.cos()], dim=1))  # (B, width)

    def forward(self, x_t, t):
        return self.denoise(x_t, self.embed(t))

    def denoise(self, x_t, embedding):
        h = self.first(x_t)  # (B, width, 4, 4)
        for layer in self.layers:
            h = h + layer(F.silu(h + embedding[:, :, None, None]))
        return self.last(F.silu(h))  # (B, 1, 8, 8)


# %% [markdown]
# ## A training loop of your own
#
# `DDPM` combines the network with a diffusion process. Calling it with clean data returns the loss
# of random timesteps and noise, and `sample` generates images. The data must be in [-1, 1]. This is
# all that is necessary:

# %%
x_0 = 2 * torch.from_numpy(images) - 1  # (N, 1, 8, 8) in [-1, 1]
ddpm = DDPM(MyNetwork(), schedule="cosine", timesteps=1000, prediction="flow")
optimizer = torch.optim.AdamW(ddpm.parameters(), lr=2e-3)
losses = []
for _ in range(10 if QUICK else 500):
    loss = ddpm(x_0[torch.randint(len(x_0), (128,))])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
samples = ddpm.sample(30, (1, 8, 8), sampler="ddim", steps=10 if QUICK else 50, seed=0)
show(samples, columns=15, value_range=(-1, 1))

# %% [markdown]
# The loss of single batches varies, because timesteps and noise are random. The line is the mean of
# the last 20 batches:

# %%
means = np.convolve(losses, np.full(20, 1 / 20), mode="valid") if len(losses) > 20 else losses
plt.figure(figsize=(5, 2.4))
plt.plot(losses, color="0.8")
plt.plot(np.arange(len(means)) + len(losses) - len(means), means)
plt.gca().set(xlabel="step", ylabel="loss", ylim=(0, 1))
plt.show()

# %% [markdown]
# ## Labels
#
# A conditional network has a third argument, `condition`. `condition.label` has the class labels
# (B,). In training, one label in ten is replaced by -1, "any class", so the network also learns to
# denoise without a label, which guidance needs. Here each label has a vector, which is added to the
# time embedding. The first row of the table is that of -1.


# %%
class MyConditionalNetwork(MyNetwork):
    def __init__(self, classes=3, width=64):
        super().__init__(width)
        self.label = nn.Embedding(1 + classes, width)

    def forward(self, x_t, t, condition):
        return self.denoise(x_t, self.embed(t) + self.label(condition.label + 1))


# %% [markdown]
# ## Training with `fit`
#
# `fit()` trains the network with the loop of `train.py`. The keyword arguments are flags of
# `train.py` ([docs/flags.md](../docs/flags.md)). `value_range` says which values of the data are
# black and white; `fit` scales them to [-1, 1].

# %%
model = MyConditionalNetwork()
options = {"value_range": (0, 1), "folder": FOLDER, "sample_interval": 10, "save_interval": 0}
run = fit(model, images, labels, max_steps=10 if QUICK else 300, **options)
print(run.checkpoint)

# %% [markdown]
# The same call again resumes from the newest checkpoint in the folder: after Ctrl-C, after a crash,
# and with a larger `max_steps`. The new network below starts from the saved weights. Interrupted
# and resumed, a run of a given length ends with the same weights as an uninterrupted one.

# %%
model = MyConditionalNetwork()
run = fit(model, images, labels, max_steps=20 if QUICK else 700, **options)
rows = [row for row in run.metrics if "loss" in row]
print(f"steps in the log: {rows[0]['step']} to {rows[-1]['step']}")

# %% [markdown]
# ## Sampling
#
# `sample()` needs the network, because a checkpoint has only its weights. `class_id` selects the
# class, and `guidance_scale` strengthens it. A row for each class:


# %%
def draw(**options):
    """Images (N, 1, 8, 8) in [0, 1] by sample()."""
    options = {"steps": 10 if QUICK else 30, "num_images": 15, "seed": 1} | options
    return torch.from_numpy(sample(run.checkpoint, model=model, **options)).permute(0, 3, 1, 2)


show(torch.cat([draw(class_id=[label], guidance_scale=1.5) for label in range(3)]), columns=15)

# %% [markdown]
# ## What `fit` adds
#
# **The moving average of the weights (EMA).** The checkpoint has the trained weights and their
# moving average. `sample` uses the average; `raw=True` uses the weights of the last step. The upper
# row has the average, the lower row the last weights, from the same noise. They differ little here,
# because the learning rate falls to zero at the end; they differ more in the middle of a run:

# %%
show(torch.cat([draw(), draw(raw=True)]), columns=15)

# %% [markdown]
# **A run folder** with checkpoints, the log, the configuration and grids of samples:

# %%
print(*sorted(path.name for path in FOLDER.glob("[!.]*")), sep="\n")

# %% [markdown]
# **The doctor** reads this folder and says what is wrong with the run, why, and what to do. In a
# terminal this is `python visualize_diffusion.py --doctor outputs/notebooks/your_own`.

# %%
doctor = read_run(FOLDER)
print(report_of(doctor, examine(doctor).values()))

# %% [markdown]
# Also included: a learning-rate schedule, a validation loss on held-out data, time budgets
# (`max_minutes=10`), mixed precision (`precision="auto"`), every schedule, prediction and sampler.
#
# ## Exercises
#
# - Replace `make_shapes` with your own array. Images in uint8 need no `value_range`.
# - Remove `self.embed(t)` from `forward`. How much larger is the loss, and what do samples look
#   like?
# - Give `make_shapes` a fourth shape, and `MyConditionalNetwork` a fourth class. Choose another
#   `FOLDER`: a folder has one run.
# - Guide with scales from 0 to 8: which classes change first?
#
# The guide explains the [loss](../docs/guide/04_loss.md), the
# [network](../docs/guide/05_network.md), [training](../docs/guide/06_training.md), and
# [conditions and guidance](../docs/guide/08_conditions_and_guidance.md). The page
# [training.md](../docs/training.md) describes runs, resume and the doctor.
#
# Next: `5_text.ipynb`, pictures from words.
