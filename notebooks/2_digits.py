# %% [markdown]
# # 2. Digits
#
# The same process on images. Instead of two coordinates, $x_0$ has 8 x 8 or 28 x 28 pixels, and the
# network is a U-Net. Nothing else changes. The last part trains a network of your own.
# scikit-learn's digits need no network connection; MNIST is used if it is found. Equation numbers
# are those of DDPM (Ho et al. 2020, [arXiv:2006.11239](https://arxiv.org/abs/2006.11239)). It takes
# six minutes on two CPU cores, three of them for MNIST.

# %%
import os
import sys

if not os.path.exists("train.py"):  # the notebook was started in notebooks/
    os.chdir("..")
sys.path.insert(0, os.getcwd())

# %%
import matplotlib.pyplot as plt
import torch
from IPython.display import display
from PIL import Image
from torch import nn

from checkpoints.checkpoint import load_checkpoint, restore
from conditions import label_condition
from dataset.downloads import MissingData
from dataset.items import to_uint8, to_unit
from dataset.registry import load_dataset
from diffusion import DDPM, GaussianDiffusion
from notebooks.interactive import slider
from sample import sample
from samplers import ddpm
from train import train
from training.fit import fit
from visuals.pictures import ImagePictures

DATA = os.environ.get("TINY_DIFFUSION_DATA", "data")  # folder of MNIST
DOWNLOAD = False  # True downloads MNIST
QUICK = "TINY_DIFFUSION_QUICK" in os.environ  # set by the tests: runs all code, with poor pictures
torch.manual_seed(0)


def show(images, columns):
    """One picture of images (N, C, H, W), with so many columns."""
    images = images if images.dtype == torch.uint8 else to_uint8(images)
    return Image.fromarray(ImagePictures().grid(images, columns))


def samples(checkpoint, **options):
    """Images by sample(), with the axes in PyTorch's order (N, C, H, W)."""
    return torch.from_numpy(sample(checkpoint, **options)).permute(0, 3, 1, 2)


# %% [markdown]
# ## The data
#
# An image is a point in a space with one dimension per pixel. Grey levels from 0 to 255 are scaled
# to the interval from -1 to 1.

# %%
digits = load_dataset("digits")
x_0 = to_unit(digits.items)  # (1797, 1, 8, 8)
show(digits.items[:20], columns=10)

# %% [markdown]
# ## The forward process
#
# $$x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon
# \qquad\text{(eq. 4)}$$
#
# With the cosine schedule (Nichol & Dhariwal 2021,
# [arXiv:2102.09672](https://arxiv.org/abs/2102.09672), eq. 17) the signal fades more evenly than
# with the linear schedule. Each row is one image, from $t = 0$ to $t = 999$:

# %%
diffusion = GaussianDiffusion("cosine", timesteps=1000)
columns = []
for t in [0, 100, 200, 300, 400, 500, 600, 700, 800, 999]:
    batch, t = x_0[:3], torch.full((3,), t)
    columns.append(diffusion.q_sample(batch, t, torch.randn_like(batch)))
show(torch.stack(columns, dim=1).flatten(0, 1), columns=10)

# %% [markdown]
# ## Training
#
# The loss is eq. 14 with a different target. Instead of the noise, the network predicts the
# velocity, noise $- x_0$, which gives better images after a short training. Given $x_t$,
# the velocity determines the noise and $x_0$ (`objectives.py` has the formulas).
#
# The network is also conditioned on the class label, the digit. The label is dropped for one image
# in ten, so the network learns to denoise both with and without it.

# %%
run = train(
    dataset="digits",
    class_conditional=True,
    batch_size=64,
    **({"max_steps": 20, "channels": 16} if QUICK else {"max_steps": 1700, "channels": 32}),
    sample_interval=0,
    save_interval=0,
    output_dir="outputs/notebooks/digits",
    overwrite=True,
)

# %%
rows = [row for row in run.metrics if "loss" in row]
plt.figure(figsize=(5, 2.4))
plt.plot([row["step"] for row in rows], [row["loss"] for row in rows])
plt.gca().set(xlabel="step", ylabel="loss", ylim=(0, 0.6))
plt.show()

# %% [markdown]
# ## Samples
#
# One column per digit, from one seed and not selected:

# %%
drawn = samples(run.checkpoint, num_images=60, steps=10 if QUICK else 50)
show(drawn, columns=10)

# %% [markdown]
# Are these new images, or copies of training images? The upper row has the first ten samples, the
# lower row the nearest image of the data to each:

# %%
distances = torch.cdist(drawn[:10].flatten(1).float(), digits.items.flatten(1).float())
nearest = digits.items[distances.argmin(dim=1)]  # of (10, 1797) distances
show(torch.cat([drawn[:10], nearest]), columns=10)

# %% [markdown]
# ## From noise to images
#
# A sampler yields $x$ after every step. This is Algorithm 2 in 100 steps. In each step the
# network's output implies a prediction of the clean image (eq. 15):
#
# $$\hat x_0 = \frac{x_t - \sqrt{1 - \bar\alpha_t}\; \epsilon_\theta(x_t, t)}{\sqrt{\bar\alpha_t}}$$

# %%
model, diffusion = restore(load_checkpoint(run.checkpoint))
denoise = diffusion.denoiser(model, label_condition(torch.tensor([2, 3, 5, 8])))
levels = diffusion.levels(20 if QUICK else 100)  # from noisy to clean

noisy, predicted = [], []
for x_t in ddpm(denoise, torch.randn(4, 1, 8, 8), levels, torch.randn_like):
    noisy.append(x_t)
    predicted.append(denoise.seen)  # the prediction of x_0 in this step
every = len(noisy) // 10

# %% [markdown]
# $x_t$, from noise on the left to clean images on the right:

# %%
show(torch.stack(noisy[every - 1 :: every], dim=1).flatten(0, 1), columns=10)

# %% [markdown]
# The prediction $\hat x_0$ in the same steps. At first it is close to the mean of all images of the
# digit. Large shapes appear first, details last.

# %%
show(torch.stack(predicted[every - 1 :: every], dim=1).flatten(0, 1), columns=10)

# %% [markdown]
# If ipywidgets is installed (`pip install ipywidgets`), the next cell has a slider over the steps.
# The upper row is $x_t$, the lower row the prediction:


# %%
def show_step(step):
    return show(torch.cat([noisy[step - 1], predicted[step - 1]]), columns=4)


slider(show_step, range(1, len(noisy) + 1), default=len(noisy) // 2, name="step")

# %% [markdown]
# ## Guidance
#
# Classifier-free guidance uses two predictions, with the class label $c$ and without it. It
# extrapolates from the unconditional prediction through the conditional one and beyond (Ho &
# Salimans 2022, [arXiv:2207.12598](https://arxiv.org/abs/2207.12598), eq. 6):
#
# $$\tilde\epsilon = (1 + w)\, \epsilon_\theta(x_t, c) - w\, \epsilon_\theta(x_t)$$
#
# `guidance_scale` is $1 + w$. With 0 the label is ignored, with 1 the conditional prediction is
# used unchanged, and larger values strengthen the label. The rows have the scales 0, 1, 2 and 4,
# and start from the same noise:

# %%
options = {"class_id": [3], "num_images": 10, "steps": 10 if QUICK else 50}
scales = [samples(run.checkpoint, guidance_scale=scale, **options) for scale in (0, 1, 2, 4)]
show(torch.cat(scales), columns=10)

# %% [markdown]
# The first row has all kinds of digits; the other rows have threes. With a larger scale they become
# more alike. With ipywidgets, the next cell has a slider over the scale, with ten digits of each of
# four classes; a new position takes some seconds.

# %%
pictures = {}


def show_scale(scale):
    if scale not in pictures:
        options = {"class_id": [2, 3, 5, 8], "num_images": 40, "steps": 5 if QUICK else 25}
        drawn = samples(run.checkpoint, guidance_scale=scale, **options)
        pictures[scale] = show(
            drawn.unflatten(0, (10, 4)).transpose(0, 1).flatten(0, 1), columns=10
        )
    return pictures[scale]


slider(show_scale, [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0], default=3.0, name="scale")

# %% [markdown]
# ## MNIST
#
# MNIST has 60,000 digits of 28 x 28 pixels. The call is the same. The images have twelve times as
# many pixels, so 500 training steps take three minutes. This part is skipped if MNIST is not found.

# %%
try:
    mnist = load_dataset("mnist", DATA, download=DOWNLOAD)
except MissingData:
    mnist = None
    print(f"MNIST was not found in {DATA}. DOWNLOAD = True at the top downloads it.")

# %%
if mnist:
    run = train(
        dataset="mnist",
        data_dir=DATA,
        class_conditional=True,
        batch_size=64,
        **({"max_steps": 5, "channels": 16} if QUICK else {"max_steps": 500}),
        sample_interval=0,
        save_interval=0,
        output_dir="outputs/notebooks/mnist",
        overwrite=True,
    )

# %%
if mnist:
    drawn = samples(run.checkpoint, num_images=10 if QUICK else 60, steps=5 if QUICK else 50)
    display(show(drawn, columns=10))

# %% [markdown]
# The network has seen only half of the images, each of them once. Most of the samples are legible,
# some are not.
#
# ## A network of your own
#
# A network is any PyTorch module that maps $x_t$ and $t$ to a tensor of the shape of $x_t$. This
# one treats the pixels as a vector. The timestep is a further input, as sines and cosines.


# %%
class MyNetwork(nn.Module):
    def __init__(self, pixels=64, width=512):
        super().__init__()
        self.layers = nn.Sequential(
            *[nn.Linear(pixels + 16, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()],
            *[nn.Linear(width, width), nn.SiLU(), nn.Linear(width, pixels)],
        )

    def forward(self, x_t, t):
        phases = t[:, None] / 1000 * torch.arange(1, 9)  # (B, 8)
        inputs = torch.cat([x_t.flatten(1), phases.sin(), phases.cos()], dim=1)
        return self.layers(inputs).view_as(x_t)


# %% [markdown]
# `DDPM` combines a network with a diffusion process. Calling it returns the loss of a batch, and
# `sample` generates images. This is a complete training loop:

# %%
my_ddpm = DDPM(MyNetwork(), schedule="cosine", timesteps=1000, prediction="flow")
optimizer = torch.optim.AdamW(my_ddpm.parameters(), lr=1e-3)
for _ in range(10 if QUICK else 2000):
    loss = my_ddpm(x_0[torch.randint(len(x_0), (128,))])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
show(my_ddpm.sample(20, (1, 8, 8), sampler="ddim", steps=50), columns=10)

# %% [markdown]
# `fit()` trains the same network with the loop of `train.py`: it adds a learning-rate schedule, a
# moving average of the weights, held-out data, sample grids, and checkpoints from which the same
# call resumes. `sample()` needs the network, because the checkpoint contains only its weights.

# %%
model = MyNetwork()
run = fit(
    model,
    digits.items,  # uint8 (N, C, H, W)
    folder="outputs/notebooks/my_network",
    max_steps=10 if QUICK else 2000,
    sample_interval=0,
    save_interval=0,
)
show(samples(run.checkpoint, model=model, num_images=20, steps=10 if QUICK else 50), columns=10)

# %% [markdown]
# These digits are noisier than those of the U-Net, because its convolutions suit images better.
#
# ## Exercises
#
# - Use `class_id=[0, 1, 2]` and `num_images=30` in `samples()`.
# - Sample with `sampler="ddim", steps=10`. How few steps are enough?
# - Train with `prediction="eps"`, the paper's target, for as many steps.
# - Make `MyNetwork` conditional: pass `labels=digits.labels` and another `folder` to `fit()`. Its
#   `forward` then gets a third argument, `condition`, and `condition.label` is (B,), with -1 for a
#   dropped label.
# - Train on MNIST for ten minutes: `python train.py --dataset mnist --max-minutes 10`.
#
# The guide explains the [network](../docs/guide/05_network.md),
# [sampling](../docs/guide/07_sampling.md)
# and [guidance](../docs/guide/08_conditions_and_guidance.md).
#
# Next: `3_cifar10.ipynb`, photographs.
