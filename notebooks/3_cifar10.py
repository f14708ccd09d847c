# %% [markdown]
# # 3. Photographs
#
# CIFAR-10 has 50,000 colour photographs of 32 x 32 pixels. A few hundred training steps are far
# from enough for them. This notebook shows what a network has learned by then and what it has not,
# and ends with the commands to run on a GPU. Equation numbers are those of DDPM (Ho et al. 2020,
# [arXiv:2006.11239](https://arxiv.org/abs/2006.11239)). It takes about four minutes on two CPU
# cores.

# %%
import os
import sys

if not os.path.exists("train.py"):  # the notebook was started in notebooks/
    os.chdir("..")
sys.path.insert(0, os.getcwd())

# %%
import torch
from PIL import Image

from checkpoints.checkpoint import load_checkpoint, restore
from dataset.downloads import MissingData
from dataset.items import split, to_uint8, to_unit
from dataset.registry import load_dataset
from notebooks.interactive import slider
from sample import sample
from samplers import generate
from sampling.editing import last_part, noised
from train import train
from visuals.pictures import ImagePictures

DATA = os.environ.get("TINY_DIFFUSION_DATA", "data")  # folder of CIFAR-10
QUICK = "TINY_DIFFUSION_QUICK" in os.environ  # set by the tests: runs all code, with poor pictures
torch.manual_seed(0)


def show(images, columns):
    """One picture of images (N, C, H, W), with so many columns."""
    images = images if images.dtype == torch.uint8 else to_uint8(images)
    return Image.fromarray(ImagePictures().grid(images, columns))


# %% [markdown]
# ## The data
#
# CIFAR-10 (170 MB) is downloaded unless it is in `data/`. Without a network connection this
# notebook uses scikit-learn's digits, enlarged to 32 x 32 pixels.

# %%
try:
    items = load_dataset("cifar10", DATA, download=not QUICK).items
    chosen = {"dataset": "cifar10", "data_dir": DATA}
except MissingData:
    print("CIFAR-10 was not found and could not be downloaded: using digits at 32 x 32 pixels.")
    items = load_dataset("digits", image_size=32).items
    chosen = {"dataset": "digits", "image_size": 32}
show(items[:20], columns=10)

# %% [markdown]
# ## A few hundred training steps
#
# The network is unconditional. Its loss is eq. 14 with the velocity, noise $- x_0$, as the target.

# %%
run = train(
    **chosen,
    batch_size=64,
    **({"max_steps": 3, "channels": 16} if QUICK else {"max_steps": 400}),
    sample_interval=0,
    save_interval=0,
    output_dir="outputs/notebooks/cifar10",
    overwrite=True,
)

# %%
drawn = sample(run.checkpoint, num_images=10 if QUICK else 40, steps=3 if QUICK else 50)
show(torch.from_numpy(drawn).permute(0, 3, 1, 2), columns=10)

# %% [markdown]
# The samples have colours, light and dark areas and large shapes, but no recognizable objects. The
# method is the same as for digits; only the training is too short. Easier tasks show what the
# network has learned so far.
#
# ## Denoising
#
# Each of the two held-out photographs below has two rows. The upper row is the photograph with more
# and more noise (eq. 4). The lower row is the network's prediction $\hat x_0$ of the clean
# photograph (eq. 15). The configuration in the checkpoint determines which photographs were held
# out of training.

# %%
content = load_checkpoint(run.checkpoint)
model, diffusion = restore(content)
settings = content["config"]["train"]
_, held_out = split(len(items), settings["validation"], settings["seed"])
x_0 = to_unit(items[held_out[:2]])  # (2, C, 32, 32)

denoise = diffusion.denoiser(model)
levels = diffusion.levels()  # t = 999, 998, ..., 0, and clean data
noise = torch.randn_like(x_0)
noisy, predicted = [], []
for level in levels[-2::-110]:  # ten levels, from t = 0
    noisy.append(level.alpha * x_0 + level.sigma * noise)
    predicted.append(denoise(noisy[-1], level)[0])
rows = torch.stack([torch.stack(noisy, dim=1), torch.stack(predicted, dim=1)], dim=1)
show(rows.flatten(0, 2), columns=10)  # from (2, 2, 10, C, 32, 32)

# %% [markdown]
# With little noise the prediction shows nearly all details, with more noise only large shapes. With
# almost pure noise it is close to the mean of all photographs. So the last sampling steps, which
# add details, are easy. The first steps, which decide what the image shows, are hard.
#
# ## Image to image
#
# The network can skip the hard steps if sampling starts from a photograph with some noise instead
# of from pure noise (SDEdit, Meng et al. 2021,
# [arXiv:2108.01073](https://arxiv.org/abs/2108.01073)). The first column is the photograph. The
# other columns take the last 20, 40, 60, 80 and 100 % of the sampling steps. With 100 % nothing of
# the photograph is left.

# %%
levels = diffusion.levels(5 if QUICK else 50)
columns = [x_0]
for strength in (0.2, 0.4, 0.6, 0.8, 1.0):
    part = last_part(levels, strength)
    *_, x = generate(denoise, noise, part, torch.randn_like, x_0=x_0)
    columns.append(x)
show(torch.stack(columns, dim=1).flatten(0, 1), columns=6)

# %% [markdown]
# If ipywidgets is installed (`pip install ipywidgets`), the next cell has a slider over this
# strength. The first row has the photographs, the second the photographs with the noise from which
# sampling starts, the third the result. A new position takes some seconds.

# %%
results = {}


def show_strength(percent):
    if percent not in results:
        part = last_part(levels, percent / 100)
        *_, x = generate(denoise, noise, part, torch.randn_like, x_0=x_0)
        results[percent] = show(torch.cat([x_0, noised(x_0, part[0], noise), x]), columns=2)
    return results[percent]


slider(show_strength, range(10, 101, 10), default=50, name="percent")

# %% [markdown]
# ## On a GPU
#
# `train.py` uses a GPU by itself, in bfloat16 if the hardware supports it:
#
# ```
# python train.py --dataset cifar10 --max-minutes 60 --output-dir outputs/cifar10
# ```
#
# These are the paper's choices (section 4 and appendix B), as far as this U-Net has them:
#
# ```
# python train.py --dataset cifar10 --output-dir outputs/cifar10_paper --max-steps 800000 \
#     --schedule linear --prediction eps --patch-size 1 --no-efficient --channels 128 \
#     --multipliers 1 2 2 2 --blocks 2 --attention-resolutions 16 --dropout 0.1 \
#     --optimizer adamw --lr 2e-4 --lr-decay none --warmup-steps 5000
# ```
#
# Neither command was run for this notebook. To resume after an interruption, and to sample from the
# result:
#
# ```
# python train.py --resume --output-dir outputs/cifar10
# python sample.py --checkpoint outputs/cifar10/model_final.pt
# ```
#
# The guide explains how to [measure the result](../docs/guide/10_measuring.md), and
# [what large models do differently](../docs/guide/12_latents_text_few_steps.md).
#
# Next: `4_your_own.ipynb`, your own data and network.
