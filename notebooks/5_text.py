# %% [markdown]
# # 5. Pictures from words
#
# A network that is conditioned on text draws what a prompt says. The trained network is in
# `weights/avatars.safetensors`; its images have 32 x 32 pixels. This notebook shows its tokens,
# guidance, negative prompts, interpolation between prompts, and where the network looks for each
# word. Nothing is downloaded. It takes half a minute on two CPU cores.

# %%
import os
import sys

if not os.path.exists("train.py"):  # the notebook was started in notebooks/
    os.chdir("..")
sys.path.insert(0, os.getcwd())

# %%
from pathlib import Path

import torch
from PIL import Image

from checkpoints.checkpoint import load_checkpoint, restore
from models.tokenizer import tokenizer_of
from notebooks.interactive import slider
from sample import sample
from sampling.attention import attention_over_trajectory
from visuals.attention import draw_attention
from visuals.pictures import ImagePictures, save_figure

WEIGHTS = "weights/avatars.safetensors"
QUICK = "TINY_DIFFUSION_QUICK" in os.environ  # set by the tests: runs all code, with poor pictures
COLUMNS = 1 if QUICK else 5


def draw(*prompts, count=COLUMNS, **options):
    """Images (N, 3, 32, 32), `count` for each prompt."""
    options = {"steps": 2 if QUICK else 20, "guidance_scale": 2.0, "seed": 0} | options
    drawn = sample(WEIGHTS, prompt=list(prompts), num_images=count * len(prompts), **options)
    return torch.from_numpy(drawn).permute(0, 3, 1, 2)


def show(images, columns=COLUMNS, captions=()):
    """One picture of images (N, C, H, W), with a caption below each row."""
    return Image.fromarray(ImagePictures().grid(images, columns, captions=captions))


# %% [markdown]
# ## Prompts
#
# Each row has one prompt. The images of a row differ in their noise, and show what the prompt
# leaves open: a caption names some attributes of an avatar, not all.

# %%
prompts = [
    "a person with a red beanie, small glasses and a green hoodie",
    "a smiling person with long blond hair and a blue dress",
]
show(draw(*prompts), captions=prompts)

# %% [markdown]
# ## Tokens
#
# The network has learned each word that occurs in the training captions as one token. The
# vocabulary is part of the checkpoint. Case does not matter, and a punctuation mark is a token too:

# %%
content = load_checkpoint(WEIGHTS)
tokenizer = tokenizer_of(content["config"])
print(f"{len(tokenizer.words)} words, {tokenizer.size} tokens, {tokenizer.length} in a caption")
print(tokenizer.pieces("A person with a red beanie, and green eyes"))
print(tokenizer.tokens("A person with a red beanie, and green eyes"))

# %% [markdown]
# A word that does not occur in them is spelled in bytes: a blank and its letters in UTF-8. "fedora"
# has seven tokens. Every text has tokens, but no training caption had these, so the network has not
# learned what they mean. The upper row has no fedora:

# %%
unknown = "a person with a turquoise fedora"
print(tokenizer.pieces(unknown))
print("unknown:", tokenizer.unknown(unknown))
prompts = [unknown, "a person with a blue hat"]
show(draw(*prompts), captions=prompts)

# %% [markdown]
# ## Guidance
#
# The network is trained with captions, and for one image in ten with the empty caption. Guidance
# extrapolates from the prediction without the caption through the prediction with it (Ho & Salimans
# 2022, [arXiv:2207.12598](https://arxiv.org/abs/2207.12598), eq. 6). With scale 0 the prompt is
# ignored, and with 1 the conditional prediction is used unchanged. The images of a column start
# from the same noise:

# %%
prompt = "a bald person with a full ginger beard, sunglasses and a purple hoodie"
scales = [0.0, 1.0, 2.0, 4.0, 8.0]
pictures = {scale: draw(prompt, guidance_scale=scale) for scale in scales}
show(torch.cat(list(pictures.values())), captions=[f"guidance scale {s:g}" for s in scales])

# %% [markdown]
# Up to about 3, guidance makes the pictures agree better with the prompt. Beyond that, colours
# become too strong and shapes distorted; [text.md](../docs/text.md#measured) has measurements.
#
# If ipywidgets is installed (`pip install ipywidgets`), the next cell has a slider over the scale.
# Each new position takes a second or two.


# %%
def show_at(scale):
    if scale not in pictures:
        pictures[scale] = draw(prompt, guidance_scale=scale)
    return show(pictures[scale], captions=[f"guidance scale {scale:g}"])


slider(show_at, [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0], default=2.0, name="scale")

# %% [markdown]
# ## Negative prompts
#
# A negative prompt takes the place of the empty caption: guidance leads away from it. Here the
# prompt says nothing about the colour of the hat, and the hats of the upper row are grey. Guidance
# away from blue, with the same noise, makes them orange:

# %%
prompt, negative = "a person with a hat", "a blue hat"
both = [draw(prompt), draw(prompt, negative_prompt=negative)]
show(torch.cat(both), captions=[prompt, f"negative prompt: {negative}"])

# %% [markdown]
# ## Between two prompts
#
# Each image starts from the same noise. The predictions for the two prompts are mixed, from the
# first prompt alone to the second alone (Liu et al. 2022,
# [arXiv:2206.01714](https://arxiv.org/abs/2206.01714)):

# %%
ends = ["a person with long black hair and a red dress", "a bald person with a green hoodie"]
strip = sample(
    WEIGHTS,
    prompt=ends,
    interpolate=True,
    num_images=2 if QUICK else 7,
    steps=2 if QUICK else 20,
    guidance_scale=2.0,
    seed=3,
)
show(torch.from_numpy(strip).permute(0, 3, 1, 2), columns=len(strip))

# %% [markdown]
# ## Where the network looks
#
# In cross-attention, each position of the image distributes attention over the tokens. The pictures
# show the share of each word, from much noise at the top to little at the bottom. The first column
# has the predicted $x_0$. The second has the share of a learned token that stands for the whole
# caption. "red" and "beanie" receive attention from the head, "green" from the body. Elsewhere the
# attention goes to words without content.

# %%
model, diffusion = restore(content)
prompt = "a red beanie and a green hoodie"
words, moments = attention_over_trajectory(
    model, diffusion, tokenizer, prompt, (3, 32, 32), steps=3 if QUICK else 20, moments=3, seed=0
)
rows = [(f"t = {moment.t}", moment.x_0, moment.maps) for moment in moments]
path = Path("outputs/notebooks/attention.png")
save_figure(path, draw_attention(words, rows, prompt), dpi=72)
Image.open(path)

# %% [markdown]
# ## Exercises
#
# - Which words does the network know? `sorted(tokenizer.words)` lists them.
# - Change one word of a prompt, with the same `seed`. What else changes in the picture?
# - Use contradictory prompts, such as "a bald person with long hair". Which word wins?
# - How many steps are enough? `draw(prompt, steps=5)`.
# - Train such a network: `pip install -r requirements-avatars.txt`, then
#   `python train.py --dataset avatars --max-minutes 10`.
#
# The guide explains [conditions and guidance](../docs/guide/08_conditions_and_guidance.md) and
# [text](../docs/guide/12_latents_text_few_steps.md#text-a-condition-of-many-parts). The page
# [text.md](../docs/text.md) describes captions, prompts, and measures of whether a picture shows
# what its prompt says.
