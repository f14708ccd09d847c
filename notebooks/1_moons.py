# %% [markdown]
# # 1. Points in the plane
#
# The whole of DDPM (Ho et al. 2020, [arXiv:2006.11239](https://arxiv.org/abs/2006.11239)) on data
# that one sees at a glance: noise by hand, the loss by hand, a trained network, the score as
# arrows, and a sampler of one's own. Equation numbers are those of the paper. Nothing is
# downloaded. About a minute on two CPU cores.

# %%
import os
import sys

if not os.path.exists("train.py"):  # started from notebooks/
    os.chdir("..")
sys.path.insert(0, os.getcwd())

# %%
from itertools import pairwise
from math import sqrt

import matplotlib.pyplot as plt
import torch

from checkpoints.checkpoint import load_checkpoint, restore
from dataset.registry import load_dataset
from diffusion import GaussianDiffusion
from evaluation.points import point_distances
from models.mlp import MLP
from sample import sample
from samplers import ddpm
from train import train
from utils import NoisePerImage
from visuals.pictures import scatter

QUICK = "TINY_DIFFUSION_QUICK" in os.environ  # the tests set it: all the code, and ugly pictures
torch.manual_seed(0)


def show(columns, titles, size=2.4):
    """Scatter plots side by side."""
    _, row = plt.subplots(1, len(columns), figsize=(size * len(columns), size + 0.3))
    for axes, points, title in zip(row, columns, titles, strict=True):
        scatter(axes, points[:1000], title)
    plt.show()


# %% [markdown]
# ## The data
#
# Points on two half circles, of about unit size around the origin. One point is one $x_0$.

# %%
x_0 = load_dataset("moons").items  # (N, 2)
show([x_0, x_0[:100]], ["1,000 of the points", "100 of them"])

# %% [markdown]
# ## Noise, a little at a time
#
# A step of the forward process shrinks $x$ a little and adds a little noise (eq. 2):
#
# $$q(x_t \mid x_{t-1}) = \mathcal N\left(\sqrt{1-\beta_t}\, x_{t-1},\; \beta_t I\right)$$
#
# The paper takes $T = 1000$ steps, with $\beta$ on a line from $10^{-4}$ to $0.02$ (section 4).
# Indices in code begin at 0.

# %%
T = 1000
betas = torch.linspace(1e-4, 0.02, T)  # (T,)

x_t = x_0[:2000]
for beta in betas[:200]:
    x_t = (1 - beta).sqrt() * x_t + beta.sqrt() * torch.randn_like(x_t)

# %% [markdown]
# ## All steps at once
#
# Gaussians add up, so that any number of steps is a single one (eq. 4), with
# $\bar\alpha_t = \prod_{s \le t} (1 - \beta_s)$:
#
# $$q(x_t \mid x_0) = \mathcal N\left(\sqrt{\bar\alpha_t}\, x_0,\; (1 - \bar\alpha_t) I\right)
# \qquad\text{or}\qquad x_t = \alpha\, x_0 + \sigma\, \text{noise}$$
#
# where `alpha` $= \sqrt{\bar\alpha_t}$ is how much signal there is, and `sigma`
# $= \sqrt{1 - \bar\alpha_t}$ how much noise. These two names are used everywhere in this project.
# Mind that the paper's own $\alpha_t$ is another thing, $1 - \beta_t$.

# %%
alphas_cumprod = torch.cumprod(1 - betas, dim=0)  # (T,), the paper's alpha with a bar
alpha, sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()


def q_sample(x_0, t, noise):
    return alpha[t][:, None] * x_0 + sigma[t][:, None] * noise  # eq. 4


def at_t(t):
    points = x_0[:2000]
    return q_sample(points, torch.full((2000,), t), torch.randn_like(points))


show([x_t, at_t(199)], ["200 steps of eq. 2", "one step of eq. 4"])

# %%
shown = [0, 50, 100, 200, 400, 999]
titles = [f"t = {t}\nalpha = {alpha[t]:.2f}\nsigma = {sigma[t]:.2f}" for t in shown]
show([at_t(t) for t in shown], titles, size=1.9)

# %% [markdown]
# At the end nothing is left of the moons: the last $x_t$ is standard normal noise, which anyone can
# draw. To generate is to walk this way back.
#
# ## The loss
#
# A network sees $x_t$ and $t$ and guesses the noise that is in it. Its loss is the squared error
# (eq. 14):
#
# $$L_\text{simple} = \mathbb E_{t, x_0, \epsilon}
# \left\| \epsilon - \epsilon_\theta\left(\sqrt{\bar\alpha_t}\, x_0
# + \sqrt{1 - \bar\alpha_t}\, \epsilon,\; t\right) \right\|^2$$


# %%
def loss(model, x_0):
    t = torch.randint(T, (len(x_0),))
    noise = torch.randn_like(x_0)
    return (noise - model(q_sample(x_0, t, noise), t)).square().mean()  # eq. 14


print(f"a network that always answers 0: {loss(lambda x_t, t: 0 * x_t, x_0):.3f}")

# %% [markdown]
# Whoever answers 0 has the loss of the noise's variance, 1. Algorithm 1, training, is a loop around
# these lines:

# %%
model = MLP(dim=2)  # (x_t, t) -> a guess of the noise
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
updates = 10 if QUICK else 300
for _ in range(updates):
    batch = x_0[torch.randint(len(x_0), (512,))]
    error = loss(model, batch)
    optimizer.zero_grad()
    error.backward()
    optimizer.step()
print(f"after {updates} updates: {error:.3f}")

# %% [markdown]
# `diffusion.py` holds the same process. With the same $t$ and noise its numbers are ours:

# %%
diffusion = GaussianDiffusion("linear", T, prediction="eps", clip=False)
t, noise = torch.randint(T, (512,)), torch.randn(512, 2)
torch.testing.assert_close(diffusion.q_sample(batch, t, noise), q_sample(batch, t, noise))
ours = (noise - model(q_sample(batch, t, noise), t)).square().mean()
torch.testing.assert_close(diffusion.loss(model, batch, t=t, noise=noise), ours)

# %% [markdown]
# ## Training in earnest
#
# `train()` is the script `train.py` with its flags as arguments. To the loop above it adds a
# learning rate that falls, a moving average of the weights, held-out data, and files.

# %%
run = train(
    dataset="moons",
    schedule="linear",
    prediction="eps",
    max_steps=20 if QUICK else 2500,
    sample_interval=0,  # no pictures and no checkpoints but at the end
    save_interval=0,
    output_dir="outputs/notebooks/moons",
    overwrite=True,
)

# %% [markdown]
# The loss does not fall to 0: where there is little noise it cannot be told from the data, and no
# network knows better.

# %%
rows = [row for row in run.metrics if "loss" in row]
plt.figure(figsize=(5, 2.4))
plt.plot([row["step"] for row in rows], [row["loss"] for row in rows])
plt.gca().set(xlabel="step", ylabel="loss", ylim=(0, 0.6))
plt.show()

# %% [markdown]
# ## Samples
#
# `sample()` is `sample.py` with its flags as arguments: 2,000 points from 2,000 draws of noise.

# %%
drawn = torch.from_numpy(sample(run.checkpoint, steps=10 if QUICK else 100))  # (2000, 2)
show([x_0, drawn], ["data", "samples"], size=3)

# %% [markdown]
# Are they the same distribution? The energy distance is 0 if they are. Of 2,000 points it is never
# quite 0, so that the distance between two fresh sets of data is the measure:

# %%
ours, floor = point_distances(drawn, "moons")
print(f"samples to data {ours:.2e}, data to other data {floor:.2e}")

# %% [markdown]
# ## The score as arrows
#
# To guess the noise is to know where the data is. Up to a factor the guess is the score, the
# direction in which the density of the noisy points grows fastest (Song et al. 2020,
# [arXiv:2011.13456](https://arxiv.org/abs/2011.13456)):
#
# $$\nabla_{x_t} \log p(x_t) \approx -\frac{\epsilon_\theta(x_t, t)}{\sigma}$$
#
# `denoise(x_t, level) -> (x_0, eps)` is the network as samplers see it. A level is `(t, alpha,
# sigma)`.

# %%
model, diffusion = restore(load_checkpoint(run.checkpoint))  # the averaged weights
denoise = diffusion.denoiser(model)

line = torch.linspace(-2.6, 2.6, 15)
lattice = torch.cartesian_prod(line, line)  # (225, 2)
_, row = plt.subplots(1, 3, figsize=(10, 3.6))
for axes, t in zip(row, [600, 150, 50], strict=True):
    level = diffusion.levels()[T - 1 - t]  # from noisy to clean
    scatter(axes, at_t(t)[:500], f"t = {t}")
    _, eps = denoise(lattice, level)
    score = -eps / level.sigma
    length = score.norm(dim=1)
    arrows = (score / length[:, None]).T  # all of one length, the true one as a color
    axes.quiver(*lattice.T, *arrows, level.sigma * length, scale=22, width=0.005, cmap="viridis")
plt.show()

# %% [markdown]
# With much noise all arrows point to the middle; with less they begin to tell the moons apart, and
# with little they point to the nearest part of one. A sampler follows them while the noise falls.
#
# ## A sampler of one's own
#
# Algorithm 2 walks back from $x_t$ to $x_{t-1}$ (eq. 11, and section 3.2's $\sigma_t^2 = \beta_t$):
#
# $$x_{t-1} = \frac{1}{\sqrt{1-\beta_t}} \left(x_t - \frac{\beta_t}{\sqrt{1 - \bar\alpha_t}}\,
# \epsilon_\theta(x_t, t)\right) + \sqrt{\beta_t}\; z, \qquad z \sim \mathcal N(0, I)$$
#
# In this project a sampler is a generator over levels from noisy to clean, that yields every $x$ on
# the way. Written for any two levels, so that it may leave out steps:


# %%
def my_sampler(denoise, x, levels, noise_like):
    for cur, nxt in pairwise(levels):
        _, eps = denoise(x, cur)
        step_alpha = cur.alpha / nxt.alpha  # sqrt(1 - beta)
        beta = cur.sigma**2 - step_alpha**2 * nxt.sigma**2
        x = (x - beta / cur.sigma * eps) / step_alpha  # eq. 11
        if nxt.sigma > 0:  # the last step adds no noise
            x = x + sqrt(beta) * noise_like(x)
        yield x


# %%
levels = diffusion.levels(10 if QUICK else 100)  # 100 of the 1,000 steps, and clean data
start = torch.randn(2000, 2)
walk = [start, *my_sampler(denoise, start, levels, torch.randn_like)]
moments = [round(len(levels[1:]) * share) for share in (0, 0.5, 0.75, 0.87, 0.95, 1)]
show([walk[i] for i in moments], [f"after {i} steps" for i in moments], size=1.9)

# %% [markdown]
# `samplers.ddpm` with the large variance is the same walk, as the same noise shows:

# %%
noises = [NoisePerImage(0, range(2000)) for _ in range(2)]  # twice the same noise
*_, mine = my_sampler(denoise, start, levels, noises[0])
*_, theirs = ddpm(denoise, start, levels, noises[1], variance="large")
torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)
print(f"largest difference of a coordinate: {(mine - theirs).abs().max():.1e}")

# %% [markdown]
# ## To try
#
# - `dataset="gaussians"`, or `"checkerboard"`: what is harder to learn?
# - Leave out `sqrt(beta) * noise_like(x)` in `my_sampler`. Where do the points go, and why?
# - `sample(run.checkpoint, sampler="ddim", steps=10)`: how few steps still give moons?
# - `timesteps=50` in `train()`: is a short process enough for the plane?
#
# Next: `2_digits.ipynb`, the same with images.
