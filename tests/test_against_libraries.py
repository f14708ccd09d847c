"""Every sampler against other libraries: diffusers' schedulers, step by step, and torchdiffeq's
adaptive solver for the ODE that the deterministic samplers solve.

The network is the exact denoiser of a mixture of two Gaussians, converted to the output that the
process predicts. Each side interprets that output by its own code, computes its own coefficients,
and starts and ends a multistep method in its own way.
"""

import sys
from functools import cache
from itertools import pairwise
from math import expm1, log

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from diffusion import GaussianDiffusion
from samplers import SAMPLERS, ddim, ddpm, euler, heun, ipndm, unipc
from schedules import SCHEDULES, Level

BETA_SCHEDULES = {
    "linear": "linear",
    "quadratic": "scaled_linear",
    "cosine": "squaredcos_cap_v2",
}
PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction", "x_0": "sample"}

# NumPy reads the schedulers' tensors through a deprecated interface.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# DDIM is compared for every schedule with every prediction. The other samplers see only the x_0 and
# eps of the same denoiser, and are compared for each schedule and each prediction once.
every_process = pytest.mark.parametrize(
    ("schedule", "prediction"), [(s, p) for s in BETA_SCHEDULES for p in PREDICTION_TYPES]
)
three_processes = pytest.mark.parametrize(
    ("schedule", "prediction"), [*zip(BETA_SCHEDULES, PREDICTION_TYPES, strict=True)]
)


# --- the network ----------------------------------------------------------------------------------


def mixture(x_t, alpha, sigma):
    """E[x_0 | x_t] for data from 0.4 N(-0.5, 0.2^2) + 0.6 N(0.7, 0.3^2), element by element."""
    means, log_weights = [], []
    for weight, mean, std in [(0.4, -0.5, 0.2), (0.6, 0.7, 0.3)]:
        variance = alpha**2 * std**2 + sigma**2
        residual = x_t - alpha * mean
        means.append(mean + alpha * std**2 / variance * residual)
        log_weights.append(log(weight) - 0.5 * (residual**2 / variance + log(variance)))
    return torch.lerp(*means, (log_weights[1] - log_weights[0]).sigmoid())


class Unrounded(torch.Tensor):
    """A network output that stays in float64 where `Denoiser` converts to float32.

    Rounded, it would differ from the library's by 1e-7, and by a thousand times that where the
    cosine schedule divides by its last alpha.
    """

    def float(self):
        return self.as_subclass(torch.Tensor)


def network_of(diffusion, prediction):
    """The exact network (x_in, t) -> output; `network.calls` records its inputs and outputs.

    The formulas are written from the papers, independently of `objectives`.
    """
    levels = diffusion.levels()[::-1][1:]  # by t
    s = diffusion.sigma_data

    def output(x_in, t):
        _, alpha, sigma = levels[int(t[0])]
        x_t = x_in * (alpha**2 * s**2 + sigma**2) ** 0.5
        x_0 = mixture(x_t, alpha, sigma)
        eps = (x_t - alpha * x_0) / sigma
        if prediction == "edm":  # Karras et al. 2022, table 1, where alpha is 1
            c_skip = s**2 / (sigma**2 + s**2)
            c_out = sigma * s / (sigma**2 + s**2) ** 0.5
            return (x_0 - c_skip * x_t) / c_out
        if prediction == "v":  # Salimans & Ho 2022, appendix D, for any sigma_data
            return (alpha * s * eps - sigma * x_0 / s) / (alpha**2 * s**2 + sigma**2) ** 0.5
        return {"eps": eps, "x_0": x_0, "flow": eps - x_0}[prediction]

    def network(x_in, t):
        out = output(x_in, t)
        if diffusion.learn_sigma:
            out = torch.cat([out, x_in.sin()], dim=1)
        network.calls.append((x_in, out))
        return out.as_subclass(Unrounded)

    network.calls = []
    return network


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def start(level):
    """Noise at a level, from a fixed seed."""
    return level.scale * torch.randn(4, 3, dtype=torch.float64, generator=seeded(0))


def noise_from(seed):
    """The noise that diffusers draws from a generator with this seed."""
    generator = seeded(seed)
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


# --- the library's side ---------------------------------------------------------------------------


class Float64Module:
    """A module with its float32 replaced by float64."""

    def __init__(self, module):
        self.module, self.float32 = module, module.float64

    def __getattr__(self, name):
        return getattr(self.module, name)


@pytest.fixture
def library(monkeypatch):
    """Create a scheduler of diffusers in float64: library("DDIMScheduler", ...).

    The schedulers keep their tables in float32, and some round x to float32 at every step. That
    would hide small differences.
    """
    diffusers = pytest.importorskip("diffusers")

    def create(name, **options):
        scheduler = getattr(diffusers, name)
        module = sys.modules[scheduler.__module__]
        for alias, what in (("torch", torch), ("np", np)):
            if getattr(module, alias, None) is what:
                monkeypatch.setattr(module, alias, Float64Module(what))
        return scheduler(**options)

    return create


def process_and_options(schedule, prediction, **ours):
    """Our process, and the arguments that give a scheduler the same betas and prediction."""
    return GaussianDiffusion(schedule, prediction=prediction, clip=False, **ours), {
        "beta_schedule": BETA_SCHEDULES[schedule],
        "beta_start": 1e-4,  # some schedulers' defaults are those of Stable Diffusion
        "beta_end": 0.02,
        "prediction_type": PREDICTION_TYPES[prediction],
    }


def replay(scheduler, network, x, scale=None, **options):
    """The scheduler's x after each network call, with the outputs recorded from our sampler.

    Asserts that both call the network with the same inputs, up to the rounding of `scale_in`.

    Args:
        x: the scheduler's starting point.
        scale: (x, call) -> the network's input; the scheduler's own scaling by default.
        options: of the scheduler's step.
    """
    scale = scale or (lambda x, call: scheduler.scale_model_input(x, scheduler.timesteps[call]))
    steps = []
    calls = zip(scheduler.timesteps, network.calls, strict=True)
    for call, (t, (x_in, out)) in enumerate(calls):
        assert_close(scale(x, call), x_in, rtol=1e-6, atol=1e-6)
        x = scheduler.step(out, t, x, **options).prev_sample
        steps.append(x)
    return steps


def assert_same(ours, reference):
    for x, expected in zip(ours, reference, strict=True):
        assert_close(x, expected, rtol=1e-9, atol=1e-10)


def assert_same_timesteps(scheduler, levels):
    assert scheduler.timesteps.tolist() == [level.t for level in levels[:-1]]


# --- schedules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_betas_of_a_thousand_timesteps(library, schedule):
    """Only T = 1000 agrees: ours scale with 1000 / T, so that a short process ends in noise too."""
    scheduler = library("DDPMScheduler", beta_schedule=BETA_SCHEDULES[schedule])
    alpha, _ = SCHEDULES[schedule](1000)
    assert_close(alpha**2, scheduler.alphas_cumprod, rtol=1e-9, atol=0.0)
    betas = GaussianDiffusion(schedule).betas.double()  # a float32 buffer
    assert_close(betas, scheduler.betas, rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("schedule", ["linear", "quadratic", "cosine"])
def test_zero_terminal_snr(library, schedule):
    """Lin et al.'s rescaling, sampled with v from pure noise, where alpha is exactly 0."""
    diffusion = GaussianDiffusion(schedule, prediction="v", clip=False, zero_terminal_snr=True)
    levels, network = diffusion.levels(20), network_of(diffusion, "v")
    scheduler = library(
        "DDIMScheduler",
        clip_sample=False,
        beta_schedule=BETA_SCHEDULES[schedule],
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    scheduler.set_timesteps(20)
    assert_same_timesteps(scheduler, levels)
    assert scheduler.alphas_cumprod[-1] == 0
    x = start(levels[0])
    ours = list(ddim(diffusion.denoiser(network), x, levels, torch.randn_like))
    assert_same(ours, replay(scheduler, network, x))


def test_karras_spacing(library):
    """rho = 7 between 80 and 0.002; ours takes the nearest levels of the process."""
    levels = GaussianDiffusion("edm", prediction="edm").levels(20, "karras")
    scheduler = library("EDMEulerScheduler")
    scheduler.set_timesteps(20)
    spacing = log(80 / 0.002) / 999  # of neighbours in the table, in the logarithm
    for level, sigma in zip(levels, scheduler.sigmas[:-1].tolist(), strict=False):
        assert abs(log(level.ratio / sigma)) <= spacing / 2 + 1e-6


# --- DDPM and DDIM --------------------------------------------------------------------------------


@three_processes
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_ddpm(library, schedule, prediction, spacing, variance):
    learn_sigma = variance == "learned"
    diffusion, options = process_and_options(schedule, prediction, learn_sigma=learn_sigma)
    levels, network = diffusion.levels(20, spacing), network_of(diffusion, prediction)
    variance_types = {"small": "fixed_small", "large": "fixed_large", "learned": "learned_range"}
    scheduler = library(
        "DDPMScheduler",
        clip_sample=False,
        timestep_spacing=spacing,
        variance_type=variance_types[variance],
        **options,
    )
    scheduler.set_timesteps(20)
    assert_same_timesteps(scheduler, levels)
    x = start(levels[0])
    denoise = diffusion.denoiser(network)
    ours = list(ddpm(denoise, x, levels, noise_from(1), variance=variance))
    reference = replay(scheduler, network, x, generator=seeded(1))
    if spacing == "trailing" and variance != "small":
        # The last step is from t = 49 to clean data. Ours ends with the mean, like algorithm 2.
        # diffusers omits the noise only at t = 0, and here adds the noise of a full step.
        assert not torch.allclose(ours.pop(), reference.pop(), atol=1e-2)
    assert_same(ours, reference)


@every_process
@pytest.mark.parametrize(
    ("spacing", "eta"), [("trailing", 0.0), ("leading", 0.5), ("trailing", 1.0)]
)
def test_ddim(library, schedule, prediction, spacing, eta):
    diffusion, options = process_and_options(schedule, prediction)
    levels, network = diffusion.levels(20, spacing), network_of(diffusion, prediction)
    # Ours ends with clean data; diffusers does so with set_alpha_to_one.
    scheduler = library(
        "DDIMScheduler",
        clip_sample=False,
        timestep_spacing=spacing,
        set_alpha_to_one=True,
        **options,
    )
    scheduler.set_timesteps(20)
    assert_same_timesteps(scheduler, levels)
    x = start(levels[0])
    ours = list(ddim(diffusion.denoiser(network), x, levels, noise_from(1), eta=eta))
    assert_same(ours, replay(scheduler, network, x, eta=eta, generator=seeded(1)))


# --- multistep solvers ----------------------------------------------------------------------------


# Ours lowers the order only for the last step, to clean data, where lambda is infinite. diffusers
# does so too, but with fewer than 15 steps and lower_order_final it also lowers the order of the
# step before.
MULTISTEP = {
    "dpmpp_2m": {"algorithm_type": "dpmsolver++", "solver_order": 2},
    "dpmpp_3m": {"algorithm_type": "dpmsolver++", "solver_order": 3},
    "dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++", "solver_order": 2},
}


def with_the_full_last_term(scheduler):
    """The scheduler with the update that gives 3M its order 3.

    Between the levels, x_0 is m_0 + u D_1 + u^2 D_2, u from 0 to 1. The coefficient of D_2 is
    alpha exp(-h) times the integral of exp(u h) u^2 h. diffusers, like the authors' code, uses half
    of it and has order 2; `test_order_of_convergence` shows ours.
    """
    with_half_of_it = scheduler.multistep_dpm_solver_third_order_update

    def with_all_of_it(outputs, **arguments):
        i = scheduler.step_index
        levels = [
            scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[i + k]) for k in (1, 0, -1, -2)
        ]
        lambdas = [torch.log(alpha) - torch.log(sigma) for alpha, sigma in levels]
        h, h_0, h_1 = (float(after - before) for after, before in pairwise(lambdas))
        near, far = (outputs[-1] - outputs[-2]) / h_0, (outputs[-2] - outputs[-3]) / h_1
        d_2 = h**2 * (near - far) / (h_0 + h_1)
        return (
            with_half_of_it(outputs, **arguments)
            + levels[0][0] * (0.5 - (expm1(-h) + h) / h**2) * d_2
        )

    scheduler.multistep_dpm_solver_third_order_update = with_all_of_it
    return scheduler


@three_processes
@pytest.mark.parametrize("name", MULTISTEP)
@pytest.mark.parametrize(("steps", "lower_order_final"), [(5, False), (20, True)])
def test_dpm_solver(library, schedule, prediction, name, steps, lower_order_final):
    diffusion, options = process_and_options(schedule, prediction)
    levels, network = diffusion.levels(steps), network_of(diffusion, prediction)
    scheduler = library(
        "DPMSolverMultistepScheduler",
        solver_type="midpoint",
        final_sigmas_type="zero",
        timestep_spacing="trailing",
        lower_order_final=lower_order_final,
        **MULTISTEP[name],
        **options,
    )
    scheduler.set_timesteps(steps)
    if name == "dpmpp_3m":
        scheduler = with_the_full_last_term(scheduler)
    assert_same_timesteps(scheduler, levels)
    x = start(levels[0])
    ours = list(SAMPLERS[name](diffusion.denoiser(network), x, levels, noise_from(1)))
    assert_same(ours, replay(scheduler, network, x, generator=seeded(1)))


@three_processes
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [5, 20])
def test_unipc(library, schedule, prediction, order, steps):
    diffusion, options = process_and_options(schedule, prediction)
    levels, network = diffusion.levels(steps), network_of(diffusion, prediction)
    scheduler = library(
        "UniPCMultistepScheduler",
        solver_type="bh2",
        predict_x0=True,
        solver_order=order,
        final_sigmas_type="zero",
        timestep_spacing="trailing",
        **options,
    )
    scheduler.set_timesteps(steps)
    assert_same_timesteps(scheduler, levels)
    x = start(levels[0])
    ours = list(unipc(diffusion.denoiser(network), x, levels, torch.randn_like, order=order))
    assert_same(ours, replay(scheduler, network, x))


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_ipndm(library, schedule):
    """diffusers' version has the formula of v and its own schedule, with sigma as its betas."""
    diffusion = GaussianDiffusion(schedule, prediction="v", clip=False)
    levels, network = diffusion.levels(20), network_of(diffusion, "v")
    sigmas = [level.sigma for level in levels]
    scheduler = library("IPNDMScheduler", trained_betas=sigmas)
    scheduler.set_timesteps(20)
    x = start(levels[0])
    ours = list(ipndm(diffusion.denoiser(network), x, levels, torch.randn_like))
    assert_same(ours, replay(scheduler, network, x))


# --- Euler and Heun -------------------------------------------------------------------------------


def in_ratio_frame(ours, levels):
    """x / alpha, the variable of diffusers here, with the noise level sigma / alpha."""
    return [x / level.alpha for x, level in zip(ours, levels[1:], strict=True)]


@three_processes
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_euler(library, schedule, prediction, spacing):
    """Without churn, where the two differ: ours adds noise up to a level of the process and calls
    the network there, diffusers calls the network before it adds the noise."""
    diffusion, options = process_and_options(schedule, prediction)
    levels, network = diffusion.levels(20, spacing), network_of(diffusion, prediction)
    scheduler = library("EulerDiscreteScheduler", timestep_spacing=spacing, **options)
    scheduler.set_timesteps(20)
    assert_same_timesteps(scheduler, levels)
    x = start(levels[0])
    ours = list(euler(diffusion.denoiser(network), x, levels, torch.randn_like))
    reference = replay(scheduler, network, x / levels[0].alpha)
    assert_same(in_ratio_frame(ours, levels), reference)


@three_processes
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_heun(library, schedule, prediction, spacing):
    diffusion, options = process_and_options(schedule, prediction)
    levels, network = diffusion.levels(20, spacing), network_of(diffusion, prediction)
    scheduler = library("HeunDiscreteScheduler", timestep_spacing=spacing, **options)
    scheduler.set_timesteps(20)
    # One call for Euler's step and one for its correction; the step to clean data has only one.
    calls = [levels[0]] + [level for level in levels[1:-1] for _ in range(2)]
    assert scheduler.timesteps.tolist() == [level.t for level in calls]
    x = start(levels[0])
    ours = list(heun(diffusion.denoiser(network), x, levels, torch.randn_like))
    halves = replay(scheduler, network, x / levels[0].alpha)
    assert_same(in_ratio_frame(ours, levels), [*halves[1::2], halves[-1]])


# --- EDM ------------------------------------------------------------------------------------------


def edm_process_and_scheduler(library, name, prediction, **options):
    """Process, levels, network and scheduler with the same sigmas and preconditioning.

    Our prediction edm is Karras et al.'s equation 7 for data of standard deviation 1, and the
    process passes it alpha sigma_data; diffusers has sigma_data in c_skip and c_out. Its
    v_prediction has the opposite sign of the output, and equals our v in this process.
    """
    diffusion = GaussianDiffusion(
        "edm", timesteps=20, prediction=prediction, clip=False, sigma_data=0.5
    )
    scheduler = library(
        name,
        sigma_data=0.5,
        sigma_schedule="exponential",
        prediction_type={"edm": "epsilon", "v": "v_prediction"}[prediction],
        **options,
    )
    levels = diffusion.levels()
    scheduler.set_timesteps(20)
    sigmas = torch.tensor([level.sigma for level in levels], dtype=torch.float64)
    assert_close(scheduler.sigmas.double(), sigmas, rtol=1e-5, atol=0.0)
    scheduler.sigmas = sigmas  # theirs are computed in float32
    return diffusion, levels, network_of(diffusion, prediction), scheduler


@pytest.mark.parametrize("prediction", ["edm", "v"])
def test_edm_preconditioning(library, prediction):
    diffusion, levels, _, scheduler = edm_process_and_scheduler(
        library, "EDMEulerScheduler", prediction
    )
    out, x = torch.randn(2, 4, 3, dtype=torch.float64, generator=seeded(0))
    for level in levels[:-1]:
        x_in = diffusion.scaled(x, torch.full((4,), level.t))
        assert_close(x_in, scheduler.precondition_inputs(x, level.sigma), rtol=1e-6, atol=1e-9)
        x_0 = diffusion.x_0(out, x, level.alpha, level.sigma)
        expected = scheduler.precondition_outputs(x, out, level.sigma)
        assert_close(x_0, expected, rtol=1e-12, atol=1e-12)
    c_noise = scheduler.timesteps.tolist()  # t up to an affine map
    steps = [a - b for a, b in pairwise(c_noise)]
    assert steps == pytest.approx([steps[0]] * 19, rel=1e-4)


@pytest.mark.parametrize("prediction", ["edm", "v"])
def test_edm_euler(library, prediction):
    diffusion, levels, network, scheduler = edm_process_and_scheduler(
        library, "EDMEulerScheduler", prediction
    )
    x = start(levels[0])
    ours = list(euler(diffusion.denoiser(network), x, levels, torch.randn_like))
    assert_same(ours, replay(scheduler, network, x))


@pytest.mark.parametrize("prediction", ["edm", "v"])
@pytest.mark.parametrize("name", MULTISTEP)
def test_edm_dpm_solver(library, prediction, name):
    diffusion, levels, network, scheduler = edm_process_and_scheduler(
        library,
        "EDMDPMSolverMultistepScheduler",
        prediction,
        solver_type="midpoint",
        **MULTISTEP[name],
    )
    if name == "dpmpp_3m":
        scheduler = with_the_full_last_term(scheduler)
    x = start(levels[0])
    ours = list(SAMPLERS[name](diffusion.denoiser(network), x, levels, noise_from(1)))
    assert_same(ours, replay(scheduler, network, x, generator=seeded(1)))


# --- flow -----------------------------------------------------------------------------------------


def unit_size(levels):
    """Our networks see x_t at unit variance; those of diffusers' flow schedulers see x_t."""
    return lambda x, call: x / levels[call].scale


@pytest.mark.parametrize("timesteps", [20, 1000])
def test_flow_euler(library, timesteps):
    """From pure noise. diffusers' default levels end at 1 / T and ours cover all of T: by default
    they agree only where every timestep is used."""
    diffusion = GaussianDiffusion("flow", timesteps=timesteps, prediction="flow", clip=False)
    levels, network = diffusion.levels(20), network_of(diffusion, "flow")
    scheduler = library("FlowMatchEulerDiscreteScheduler", num_train_timesteps=timesteps)
    chosen = {"sigmas": [level.sigma for level in levels[:-1]]} if timesteps > 20 else {}
    scheduler.set_timesteps(20, **chosen)
    sigmas = torch.tensor([level.sigma for level in levels], dtype=torch.float64)
    assert_close(scheduler.sigmas.double(), sigmas, rtol=1e-6, atol=1e-12)
    x = start(levels[0])
    ours = list(euler(diffusion.denoiser(network), x, levels, torch.randn_like))
    assert_same(ours, replay(scheduler, network, x, unit_size(levels)))


def flow_levels(diffusion):
    """27 levels from 0.999 down in steps of 0.037, diffusers' default for 27 steps.

    They do not start from pure noise, where its solvers have no lambda.
    """
    levels = diffusion.levels()[::-1]
    return [levels[37 * k] for k in range(27, -1, -1)]


@pytest.mark.parametrize("name", MULTISTEP)
def test_flow_dpm_solver(library, name):
    diffusion = GaussianDiffusion("flow", prediction="flow", clip=False)
    levels, network = flow_levels(diffusion), network_of(diffusion, "flow")
    scheduler = library(
        "DPMSolverMultistepScheduler",
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        **MULTISTEP[name],
    )
    scheduler.set_timesteps(27)
    if name == "dpmpp_3m":
        scheduler = with_the_full_last_term(scheduler)
    scheduler.set_begin_index(0)  # their timesteps are truncated to integers
    sigmas = torch.tensor([level.sigma for level in levels], dtype=torch.float64)
    assert_close(scheduler.sigmas, sigmas, rtol=1e-9, atol=1e-12)
    x = start(levels[0])
    ours = list(SAMPLERS[name](diffusion.denoiser(network), x, levels, noise_from(1)))
    assert_same(ours, replay(scheduler, network, x, unit_size(levels), generator=seeded(1)))


@pytest.mark.parametrize("order", [1, 2, 3])
def test_flow_unipc(library, order):
    diffusion = GaussianDiffusion("flow", prediction="flow", clip=False)
    levels, network = flow_levels(diffusion), network_of(diffusion, "flow")
    scheduler = library(
        "UniPCMultistepScheduler",
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        solver_order=order,
    )
    scheduler.set_timesteps(sigmas=np.array([level.sigma for level in levels[:-1]]))
    scheduler.set_begin_index(0)
    x = start(levels[0])
    ours = list(unipc(diffusion.denoiser(network), x, levels, torch.randn_like, order=order))
    assert_same(ours, replay(scheduler, network, x, unit_size(levels)))


# --- the ODE --------------------------------------------------------------------------------------


def exact(x_t, level):
    """The denoiser of the mixture, in float64."""
    x_0 = mixture(x_t, level.alpha, level.sigma)
    return x_0, (x_t - level.alpha * x_0) / level.sigma


@cache
def solution(first, last):
    """x at the last level of the ODE d(x / alpha) / d(sigma / alpha) = eps that starts with
    `start(first)` (Song et al. 2020, eq. 14).

    x / alpha at sigma / alpha equals x in the process with alpha = 1 and that sigma.
    """
    torchdiffeq = pytest.importorskip("torchdiffeq")
    ratios = torch.tensor([first.ratio, last.ratio], dtype=torch.float64)
    path = torchdiffeq.odeint(
        lambda ratio, y: (y - mixture(y, 1.0, float(ratio))) / ratio,
        start(first) / first.alpha,
        ratios,
        method="dopri5",
        rtol=1e-10,
        atol=1e-10,
    )
    return last.alpha * path[-1]


@cache
def solution_from_pure_noise(last):
    """x at a level of flow, from `start` at alpha = 0, where there is no x / alpha.

    There the ODE is dx / dsigma = E[noise - x_0 | x_t].
    """
    torchdiffeq = pytest.importorskip("torchdiffeq")
    return torchdiffeq.odeint(
        lambda sigma, x: (x - mixture(x, 1 - float(sigma), float(sigma))) / sigma,
        start(Level(1000, 0.0, 1.0)),
        torch.tensor([1.0, last.sigma], dtype=torch.float64),
        method="dopri5",
        rtol=1e-10,
        atol=1e-10,
    )[-1]


# For the largest error, for data of size 1. dpmpp_3m and unipc make most of their error in the last
# steps, where the levels of cosine and flow are far apart in lambda. Without the thirty cleanest
# levels it is about 1e-6 and 1e-7; for edm it is 1e-7 and 3e-9 with all levels.
TOLERANCE = {
    "ddim": 4e-3,
    "euler": 4e-3,
    "gamma": 4e-3,
    "heun": 2e-5,
    "dpmpp_2m": 3e-4,
    "dpmpp_3m": 1e-4,
    "unipc": 8e-5,
    "ipndm": 2e-5,
}


@pytest.mark.parametrize("schedule", ["cosine", "edm"])  # flow: in the next test
@pytest.mark.parametrize("name", TOLERANCE)
def test_a_thousand_steps_solve_the_ode(schedule, name):
    """From the noisiest level to the cleanest that is not clean."""
    alpha, sigma = SCHEDULES[schedule](1001)
    rows = zip(range(1001), alpha.tolist(), sigma.tolist(), strict=False)
    levels = [Level(*row) for row in rows][::-1]
    *_, x = SAMPLERS[name](exact, start(levels[0]), levels, torch.randn_like)
    assert_close(x, solution(levels[0], levels[-1]), rtol=0.0, atol=TOLERANCE[name])


@pytest.mark.parametrize("name", TOLERANCE)
def test_a_thousand_steps_solve_the_ode_from_pure_noise(name):
    levels = GaussianDiffusion("flow", timesteps=1001, prediction="flow").levels()[:-1]
    assert levels[0] == Level(1000, 0.0, 1.0)
    *_, x = SAMPLERS[name](exact, start(levels[0]), levels, torch.randn_like)
    assert_close(x, solution_from_pure_noise(levels[-1]), rtol=0.0, atol=TOLERANCE[name])


# UniPC's corrector adds one order to its predictor's. ipndm is missing: its first steps have a low
# order, and dominate the error in equal steps of lambda.
@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("ddim", {}, 1),
        ("euler", {}, 1),
        ("heun", {}, 2),
        ("dpmpp_2m", {}, 2),
        ("dpmpp_3m", {}, 3),
        ("unipc", {"order": 1}, 2),
        ("unipc", {"order": 2}, 3),
        ("unipc", {"order": 3}, 4),
    ],
)
def test_order_of_convergence(name, options, order):
    """Half the step gives 2^-order of the error, in equal steps of lambda. The first level is so
    noisy that the low order of a multistep method's start does not show."""
    errors = []
    for steps in (100, 200):
        ratios = torch.linspace(log(20), log(0.05), steps + 1, dtype=torch.float64).exp().tolist()
        ratios[0], ratios[-1] = 20.0, 0.05  # without their rounding errors: one ODE for all
        levels = [Level(0, 1.0, ratio) for ratio in ratios]
        *_, x = SAMPLERS[name](exact, start(levels[0]), levels, torch.randn_like, **options)
        errors.append((x - solution(levels[0], levels[-1])).abs().max().item())
    assert log(errors[0] / errors[1], 2) == pytest.approx(order, abs=0.15)
