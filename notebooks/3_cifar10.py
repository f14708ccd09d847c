# %% [markdown]
# # 3. Photographs
#
# CIFAR-10: 50,000 colour photographs of 32 x 32 pixels, and a few hundred updates, which is far
# from enough. What has a network learned by then, what not yet, and what to run on a GPU? Equation
# numbers are those of DDPM (Ho et al. 2020,
# [arXiv:2006.11239](https://arxiv.org/abs/2006.11239)). About four minutes on two CPU cores.

# %%
import os
import sys

if not os.path.exists("train.py"):  # started from notebooks/
    os.chdir("..")
sys.path.insert(0, os.getcwd())

# %%
import torch
from PIL import Image

from checkpoints.checkpoint import load_checkpoint, restore
from dataset.downloads import MissingData
from dataset.items import split, to_uint8, to_unit
from dataset.registry import load_dataset
from sample import sample
from samplers import dpmpp_2m_sde
from sampling import editing
from train import train
from visuals.pictures import ImagePictures

DATA = os.environ.get("TINY_DIFFUSION_DATA", "data")  # the folder with CIFAR-10, or to put it
QUICK = "TINY_DIFFUSION_QUICK" in os.environ  # the tests set it: all the code, and ugly pictures
torch.manual_seed(0)


def show(images, columns):
    """Images (N, C, H, W) as one picture, in rows of so many."""
    images = images if images.dtype == torch.uint8 else to_uint8(images)
    return Image.fromarray(ImagePictures().grid(images, columns))


# %% [markdown]
# ## The data
#
# It is downloaded (170 MB) if it is not in `data/`. Without a network connection, scikit-learn's
# digits at 32 x 32 pixels take its place.

# %%
try:
    items = load_dataset("cifar10", DATA, download=not QUICK).items
    chosen = {"dataset": "cifar10", "data_dir": DATA}
except MissingData:
    print("No CIFAR-10 here, and no way to download it: digits at 32 x 32 take its place.")
    items = load_dataset("digits", image_size=32).items
    chosen = {"dataset": "digits", "image_size": 32}
show(items[:20], columns=10)

# %% [markdown]
# ## A few hundred updates
#
# The network learns from `x_t` and `t` (eq. 14, with the velocity noise $- x_0$ as its target).

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
# Colours, a light and a dark side, large shapes; no things yet. That is not for want of method, but
# of time. What the network has learned by now shows when it is asked for less.
#
# ## What it sees in noisy pictures
#
# Above, a held-out picture with more and more noise (eq. 4); below, the $\hat x_0$ that the network
# sees in it (eq. 15). The checkpoint says which pictures were held out of training.

# %%
content = load_checkpoint(run.checkpoint)
model, diffusion = restore(content)
settings = content["config"]["train"]
_, held_out = split(len(items), settings["validation"], settings["seed"])
x_0 = to_unit(items[held_out[:2]])  # (2, C, 32, 32)

denoise = diffusion.denoiser(model)
levels = diffusion.levels()  # t = 999, 998, ..., 0, and clean
noise = torch.randn_like(x_0)
noisy = [level.alpha * x_0 + level.sigma * noise for level in levels[-2::-110]]
seen = [denoise(x_t, level)[0] for x_t, level in zip(noisy, levels[-2::-110], strict=True)]
picture = torch.stack([torch.stack(noisy), torch.stack(seen)])  # (2, 10, 2, C, 32, 32)
show(picture.transpose(1, 2).transpose(0, 1).flatten(0, 2), columns=10)

# %% [markdown]
# With little noise it sees nearly everything, in the middle the large shapes, and at the end the
# mean of all pictures. The end of the walk is the easy part, and its beginning decides what there
# will be to see.
#
# ## Beginning half-way
#
# So give it a picture with the noise of the middle, and let it walk from there (SDEdit, Meng et al.
# 2021, [arXiv:2108.01073](https://arxiv.org/abs/2108.01073)). The first column is the picture; the
# others begin at 20, 40, 60, 80 and 100 % of the walk. The last of them has forgotten it.

# %%
levels = diffusion.levels(5 if QUICK else 50)
columns = [x_0]
for strength in (0.2, 0.4, 0.6, 0.8, 1.0):
    part = editing.last_part(levels, strength)
    *_, x = dpmpp_2m_sde(denoise, editing.noised(x_0, part[0], noise), part, torch.randn_like)
    columns.append(x)
show(torch.stack(columns, dim=1).flatten(0, 1), columns=6)

# %% [markdown]
# ## On a GPU
#
# The same call goes on there by itself, in bfloat16 where the hardware has it:
#
# ```
# python train.py --dataset cifar10 --max-minutes 60 --output-dir outputs/cifar10
# ```
#
# and these are the paper's choices (section 4 and appendix B) as far as this U-Net is theirs:
#
# ```
# python train.py --dataset cifar10 --output-dir outputs/cifar10_paper --max-steps 800000 \
#     --schedule linear --prediction eps --patch-size 1 --channels 128 --multipliers 1 2 2 2 \
#     --blocks 2 --attention-resolutions 16 --dropout 0.1 \
#     --optimizer adamw --lr 2e-4 --lr-decay none --warmup-steps 5000
# ```
#
# Neither has been run or measured for this notebook, and so it gives no figures of them; their
# `metrics.jsonl` and `samples/` will. To go on after an interruption, and to draw from the result:
#
# ```
# python train.py --resume --output-dir outputs/cifar10
# python sample.py --checkpoint outputs/cifar10/model_final.pt
# ```
