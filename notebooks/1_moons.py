# %% [markdown]
# # 1. Points in the plane
#
# DDPM (Ho et al. 2020, [arXiv:2006.11239](https://arxiv.org/abs/2006.11239)) from beginning to end,
# on data that can be plotted. This notebook writes out the forward process, the loss and a sampler,
# trains a network, and draws the score as arrows. Equation numbers are those of the paper. Nothing
# is downloaded. It takes about a minute on two CPU cores.

# %%
import os
import sys

if not os.path.exists("train.py"):  # the notebook was started in notebooks/
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
from notebooks.interactive import slider
from sample import sample
from samplers import ddpm
from train import train
from utils import NoisePerImage
from visuals.pictures import scatter

QUICK = "TINY_DIFFUSION_QUICK" in os.environ  # set by the tests: runs all code, with poor pictures
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
# Points on two half circles around the origin, with coordinates of about unit size. Each point is a
# sample $x_0$ of the data distribution.

# %%
x_0 = load_dataset("moons").items  # (N, 2)
show([x_0, x_0[:100]], ["1,000 of the points", "100 of them"])

# %% [markdown]
# ## The forward process, step by step
#
# One step of the forward process shrinks $x$ slightly and adds a little Gaussian noise (eq. 2):
#
# $$q(x_t \mid x_{t-1}) = \mathcal N\left(\sqrt{1-\beta_t}\, x_{t-1},\; \beta_t I\right)$$
#
# The paper uses $T = 1000$ steps, and $\beta_t$ increases linearly from $10^{-4}$ to $0.02$
# (section 4). In the code, $t$ runs from 0 to $T - 1$. Here are 200 steps:

# %%
T = 1000
betas = torch.linspace(1e-4, 0.02, T)  # (T,)

x_t = x_0[:2000]
for beta in betas[:200]:
    x_t = (1 - beta).sqrt() * x_t + beta.sqrt() * torch.randn_like(x_t)

# %% [markdown]
# ## The forward process, in one step
#
# A sum of independent Gaussians is Gaussian. Therefore any number of steps can be made at once
# (eq. 4), with $\bar\alpha_t = \prod_{s \le t} (1 - \beta_s)$:
#
# $$q(x_t \mid x_0) = \mathcal N\left(\sqrt{\bar\alpha_t}\, x_0,\; (1 - \bar\alpha_t) I\right)
# \qquad\text{or}\qquad x_t = \alpha\, x_0 + \sigma\, \text{noise}$$
#
# `alpha` $= \sqrt{\bar\alpha_t}$ is the amount of signal, and `sigma` $= \sqrt{1 - \bar\alpha_t}$
# the amount of noise. This project uses these two names everywhere. The paper's $\alpha_t$ is
# different: it is $1 - \beta_t$.

# %%
alphas_cumprod = torch.cumprod(1 - betas, dim=0)  # (T,), the paper's alpha-bar
alpha, sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()


def q_sample(x_0, t, noise):
    return alpha[t][:, None] * x_0 + sigma[t][:, None] * noise  # eq. 4


def noisy_points(t):
    points = x_0[:2000]
    return q_sample(points, torch.full((2000,), t), torch.randn_like(points))


show([x_t, noisy_points(199)], ["200 steps of eq. 2", "one step of eq. 4"])

# %%
shown = [0, 50, 100, 200, 400, 999]
titles = [f"t = {t}\nalpha = {alpha[t]:.2f}\nsigma = {sigma[t]:.2f}" for t in shown]
show([noisy_points(t) for t in shown], titles, size=1.9)

# %% [markdown]
# If ipywidgets is installed (`pip install ipywidgets`), the next cell has a slider over $t$. The
# noise is the same at all its positions.

# %%
fixed_noise = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))


def show_at(t):
    x_t = q_sample(x_0[:2000], torch.full((2000,), t), fixed_noise)
    show([x_0, x_t], ["x_0", f"x_t at t = {t}"])


slider(show_at, range(0, 1000, 20), default=200, name="t")

# %% [markdown]
# At the end no trace of the moons is left: the last $x_t$ is practically standard normal noise,
# which is easy to sample. Generating data means to reverse this process, from noise to data.
#
# ## The loss
#
# A network $\epsilon_\theta$ receives $x_t$ and $t$ and predicts the noise in $x_t$. Its loss is
# the mean squared error (eq. 14):
#
# $$L_\text{simple} = \mathbb E_{t, x_0, \epsilon}
# \left\| \epsilon - \epsilon_\theta\left(\sqrt{\bar\alpha_t}\, x_0
# + \sqrt{1 - \bar\alpha_t}\, \epsilon,\; t\right) \right\|^2$$


# %%
def loss(model, x_0):
    t = torch.randint(T, (len(x_0),))
    noise = torch.randn_like(x_0)
    return (noise - model(q_sample(x_0, t, noise), t)).square().mean()  # eq. 14


print(f"a network that always predicts 0: {loss(lambda x_t, t: 0 * x_t, x_0):.3f}")

# %% [markdown]
# A network that always predicts 0 has a loss of 1, the variance of the noise. Training (Algorithm
# 1) repeats these lines with random batches, and updates the weights by the gradient of the loss:

# %%
model = MLP(dim=2)  # (x_t, t) -> predicted noise
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
steps = 10 if QUICK else 300
for _ in range(steps):
    batch = x_0[torch.randint(len(x_0), (512,))]
    error = loss(model, batch)
    optimizer.zero_grad()
    error.backward()
    optimizer.step()
print(f"loss after {steps} training steps: {error:.3f}")

# %% [markdown]
# `GaussianDiffusion` in `diffusion.py` is the same process. With the same $t$ and noise it gives
# the same numbers:

# %%
diffusion = GaussianDiffusion("linear", T, prediction="eps", clip=False)
t, noise = torch.randint(T, (512,)), torch.randn(512, 2)
torch.testing.assert_close(diffusion.q_sample(batch, t, noise), q_sample(batch, t, noise))
ours = (noise - model(q_sample(batch, t, noise), t)).square().mean()
torch.testing.assert_close(diffusion.loss(model, batch, t=t, noise=noise), ours)

# %% [markdown]
# ## A full training run
#
# `train()` does what the command `train.py` does; the flags are keyword arguments. It extends the
# loop above by a learning-rate schedule, a moving average of the weights, a validation loss on
# held-out data, and checkpoints.

# %%
run = train(
    dataset="moons",
    schedule="linear",
    prediction="eps",
    max_steps=20 if QUICK else 2500,
    sample_interval=0,  # write pictures and checkpoints only at the end
    save_interval=0,
    output_dir="outputs/notebooks/moons",
    overwrite=True,
)

# %% [markdown]
# The loss does not go to 0. Many pairs of $x_0$ and noise give the same $x_t$, so the noise cannot
# be determined from $x_t$. The best possible prediction is its mean given $x_t$.

# %%
rows = [row for row in run.metrics if "loss" in row]
plt.figure(figsize=(5, 2.4))
plt.plot([row["step"] for row in rows], [row["loss"] for row in rows])
plt.gca().set(xlabel="step", ylabel="loss", ylim=(0, 0.6))
plt.show()

# %% [markdown]
# ## Samples
#
# `sample()` does what the command `sample.py` does. It turns 2,000 points of noise into 2,000
# samples.

# %%
drawn = torch.from_numpy(sample(run.checkpoint, steps=10 if QUICK else 100))  # (2000, 2)
show([x_0, drawn], ["data", "samples"], size=3)

# %% [markdown]
# Do samples and data have the same distribution? The energy distance of two distributions is 0 only
# if they are equal. Estimated from 2,000 points it is always slightly above 0. Compare it with the
# distance between two independent sets of data, the floor:

# %%
ours, floor = point_distances(drawn, "moons")
print(f"samples to data: {ours:.2e}, data to other data (the floor): {floor:.2e}")

# %% [markdown]
# ## The score
#
# The predicted noise points away from the data. Up to a negative factor it is the score, the
# gradient of the log-density of the noisy points, which is the direction in which this density
# increases fastest (Song et al. 2020, [arXiv:2011.13456](https://arxiv.org/abs/2011.13456)):
#
# $$\nabla_{x_t} \log p(x_t) \approx -\frac{\epsilon_\theta(x_t, t)}{\sigma}$$
#
# Samplers call the network as `denoise(x_t, level) -> (x_0, eps)`, where `level` is `(t, alpha,
# sigma)`, `eps` is the predicted noise, and `x_0` is the clean data that it implies.

# %%
model, diffusion = restore(load_checkpoint(run.checkpoint))  # the averaged weights
denoise = diffusion.denoiser(model)

line = torch.linspace(-2.6, 2.6, 15)
lattice = torch.cartesian_prod(line, line)  # (225, 2)
_, row = plt.subplots(1, 3, figsize=(10, 3.6))
for axes, t in zip(row, [600, 150, 50], strict=True):
    level = diffusion.levels()[T - 1 - t]  # from noisy to clean
    scatter(axes, noisy_points(t)[:500], f"t = {t}")
    _, eps = denoise(lattice, level)
    score = -eps / level.sigma
    length = score.norm(dim=1)
    arrows = (score / length[:, None]).T  # of equal length; the colour shows the true length
    axes.quiver(*lattice.T, *arrows, level.sigma * length, scale=22, width=0.005, cmap="viridis")
plt.show()

# %% [markdown]
# With much noise all arrows point to the centre of the data. With less noise they separate the two
# moons, and with little noise they point to the nearest part of a moon. A sampler follows the
# arrows while the noise decreases.
#
# ## A sampler of your own
#
# Algorithm 2 goes from $x_t$ to $x_{t-1}$ (eq. 11, with $\sigma_t^2 = \beta_t$ from section 3.2):
#
# $$x_{t-1} = \frac{1}{\sqrt{1-\beta_t}} \left(x_t - \frac{\beta_t}{\sqrt{1 - \bar\alpha_t}}\,
# \epsilon_\theta(x_t, t)\right) + \sqrt{\beta_t}\; z, \qquad z \sim \mathcal N(0, I)$$
#
# In this project a sampler is a generator. It receives levels from noisy to clean and yields $x$
# after every step. The step below is written for any two levels, so it also works if steps are
# skipped:


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
levels = diffusion.levels(10 if QUICK else 100)  # 100 of the 1,000 levels, and clean data
start = torch.randn(2000, 2)
trajectory = [start, *my_sampler(denoise, start, levels, torch.randn_like)]
shown = [round(len(levels[1:]) * fraction) for fraction in (0, 0.5, 0.75, 0.87, 0.95, 1)]
show([trajectory[i] for i in shown], [f"after {i} steps" for i in shown], size=1.9)

# %% [markdown]
# `samplers.ddpm` with the large variance is the same sampler. With the same noise it gives the same
# samples:

# %%
noises = [NoisePerImage(0, range(2000)) for _ in range(2)]  # the same noise twice
*_, mine = my_sampler(denoise, start, levels, noises[0])
*_, theirs = ddpm(denoise, start, levels, noises[1], variance="large")
torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=1e-3)
print(f"largest difference of a coordinate: {(mine - theirs).abs().max():.1e}")

# %% [markdown]
# ## Exercises
#
# - Train with `dataset="gaussians"` and with `"checkerboard"`. Which is harder to learn?
# - Remove `sqrt(beta) * noise_like(x)` from `my_sampler`. Where do the points go, and why?
# - Sample with `sample(run.checkpoint, sampler="ddim", steps=10)`. How few steps are enough?
# - Train with `timesteps=50`. Is such a short process enough for points?
#
# The mathematics, step by step: [chapters 1 to 4 and 7 of the guide](../docs/guide/README.md).
#
# Next: `2_digits.ipynb`, the same with images.
