# %% [markdown]
# # 2. Digits
#
# The same process on images: a point of the plane becomes a picture of 8 x 8 or 28 x 28 pixels, and
# the small network a U-Net. Nothing else changes. scikit-learn's digits need no network connection;
# MNIST is used if it is at hand. Equation numbers are those of DDPM (Ho et al. 2020,
# [arXiv:2006.11239](https://arxiv.org/abs/2006.11239)). Five and a half minutes on two CPU cores,
# three of them for MNIST.

# %%
import os
import sys

if not os.path.exists("train.py"):  # started from notebooks/
    os.chdir("..")
sys.path.insert(0, os.getcwd())

# %%
import matplotlib.pyplot as plt
import torch
from IPython.display import display
from PIL import Image

from checkpoints.checkpoint import load_checkpoint, restore
from dataset.downloads import MissingData
from dataset.items import to_uint8, to_unit
from dataset.registry import load_dataset
from diffusion import GaussianDiffusion
from sample import sample
from samplers import ddpm
from train import train
from visuals.pictures import ImagePictures

DATA = os.environ.get("TINY_DIFFUSION_DATA", "data")  # the folder with MNIST, if there is one
DOWNLOAD = False  # True fetches MNIST
QUICK = "TINY_DIFFUSION_QUICK" in os.environ  # the tests set it: all the code, and ugly pictures
torch.manual_seed(0)


def show(images, columns):
    """Images (N, C, H, W) as one picture, in rows of so many."""
    images = images if images.dtype == torch.uint8 else to_uint8(images)
    return Image.fromarray(ImagePictures().grid(images, columns))


def draw(checkpoint, **flags):
    """sample(), with the channels where torch has them."""
    return torch.from_numpy(sample(checkpoint, **flags)).permute(0, 3, 1, 2)  # (N, C, H, W)


# %% [markdown]
# ## The data
#
# An image is a point in a space of as many dimensions as it has pixels. Its grey levels 0 ... 255
# become -1 ... 1.

# %%
digits = load_dataset("digits")
x_0 = to_unit(digits.items)  # (1797, 1, 8, 8)
show(digits.items[:20], columns=10)

# %% [markdown]
# ## Noise
#
# $$x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon
# \qquad\text{(eq. 4)}$$
#
# The cosine schedule (Nichol & Dhariwal 2021, [arXiv:2102.09672](https://arxiv.org/abs/2102.09672),
# eq. 17) spreads the loss of the signal over the steps more evenly than the linear one.

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
# The loss is eq. 14 with another target. Instead of the noise, the network puts out a velocity,
# noise $- x_0$, which learns faster in minutes; the noise follows from it by school algebra
# (`objectives.py` has the two lines). And it is told the digit that is in the image, but for one
# image in ten, so that it learns both: to draw a given digit, and to draw any.

# %%
run = train(
    dataset="digits",
    class_conditional=True,
    batch_size=64,
    **({"max_steps": 20, "channels": 16} if QUICK else {"max_minutes": 2, "channels": 32}),
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
# One column for each digit, all from the same seed, none left out.

# %%
drawn = draw(run.checkpoint, num_images=60, steps=10 if QUICK else 50)
show(drawn, columns=10)

# %% [markdown]
# Are they new, or learned by heart? Below the first ten, the nearest image of the data to each.

# %%
apart = torch.cdist(drawn[:10].flatten(1).float(), digits.items.flatten(1).float())  # (10, 1797)
nearest = digits.items[apart.argmin(dim=1)]
show(torch.cat([drawn[:10], nearest]), columns=10)

# %% [markdown]
# ## The walk from noise
#
# A sampler is a generator that yields $x$ after every step, here Algorithm 2 in 100 steps. At each
# of them the network's output implies the clean image that it believes in (eq. 15):
#
# $$\hat x_0 = \frac{x_t - \sqrt{1 - \bar\alpha_t}\; \epsilon_\theta(x_t, t)}{\sqrt{\bar\alpha_t}}$$

# %%
model, diffusion = restore(load_checkpoint(run.checkpoint))
denoise = diffusion.denoiser(model, y=torch.tensor([2, 3, 5, 8]))
levels = diffusion.levels(20 if QUICK else 100)  # from noisy to clean

x = torch.randn(4, 1, 8, 8)
walk, seen = [], []
for step in ddpm(denoise, x, levels, torch.randn_like):
    walk.append(step)
    seen.append(denoise.seen)  # x_0 in the x before the step
every = len(walk) // 10

# %% [markdown]
# $x_t$, from noise on the left to clean images on the right:

# %%
show(torch.stack(walk[every - 1 :: every], dim=1).flatten(0, 1), columns=10)

# %% [markdown]
# $\hat x_0$ at the same moments. At first it is a mean of all images that might come, and then it
# makes up its mind: the large shapes first, the details last.

# %%
show(torch.stack(seen[every - 1 :: every], dim=1).flatten(0, 1), columns=10)

# %% [markdown]
# ## Guidance
#
# The network answers twice, with the digit $c$ and without, and one goes beyond the first, away
# from the second (Ho & Salimans 2022, [arXiv:2207.12598](https://arxiv.org/abs/2207.12598), eq. 6):
#
# $$\tilde\epsilon = (1 + w)\, \epsilon_\theta(x_t, c) - w\, \epsilon_\theta(x_t)$$
#
# `guidance_scale` is $1 + w$: 0 ignores the digit, 1 is the network as it is, more exaggerates.
# Each row has the same noise.

# %%
flags = {"class_id": [3], "num_images": 10, "steps": 10 if QUICK else 50}
scales = [draw(run.checkpoint, guidance_scale=scale, **flags) for scale in (0, 1, 2, 4)]
show(torch.cat(scales), columns=10)

# %% [markdown]
# The first row holds any digits, the others threes: the further down, the more alike.
#
# ## MNIST
#
# 60,000 digits of 28 x 28 pixels. The same call, with three minutes for some 12 times as many
# pixels. Where MNIST is not at hand, this part is left out.

# %%
try:
    mnist = load_dataset("mnist", DATA, download=DOWNLOAD)
except MissingData:
    mnist = None
    print(f"No MNIST in {DATA}: the rest is left out. DOWNLOAD = True at the top fetches it.")

# %%
if mnist:
    run = train(
        dataset="mnist",
        data_dir=DATA,
        class_conditional=True,
        batch_size=64,  # more updates in the same time
        **({"max_steps": 5, "channels": 16} if QUICK else {"max_minutes": 3}),
        sample_interval=0,
        save_interval=0,
        output_dir="outputs/notebooks/mnist",
        overwrite=True,
    )

# %%
if mnist:
    drawn = draw(run.checkpoint, num_images=10 if QUICK else 60, steps=5 if QUICK else 50)
    display(show(drawn, columns=10))

# %% [markdown]
# On two CPU cores this is about half a pass over the data: most of them can be read, some not yet.
#
# ## To try
#
# - `class_id=[0, 1, 2]` and `num_images=30` in `draw()`.
# - `sampler="ddim", steps=10`: how few steps will do?
# - `prediction="eps"` in `train()`: the paper's own target, in the same minutes.
# - Let MNIST train for ten minutes: `python train.py --dataset mnist --max-minutes 10`.
#
# Next: `3_cifar10.ipynb`, photographs.
