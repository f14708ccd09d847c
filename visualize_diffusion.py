"""Show the forward process, real data fading into noise, and what a model or a run has learned.

python visualize_diffusion.py --dataset digits --timesteps 0 250 500 999
python visualize_diffusion.py --run outputs
python visualize_diffusion.py --doctor outputs
"""

from cli.process import run
from cli.visualization import TIMESTEPS, VISUALIZE, VisualizationRequest

if __name__ == "__main__":
    REQUEST = VISUALIZE.parse()  # before the imports below, which take seconds

import sys
from pathlib import Path

import torch
from torch import Tensor

from cli.activity import Bar, activity, tell
from checkpoints.checkpoint import load_checkpoint, restore
from checkpoints.runs import find_checkpoint, run_path
from dataset.downloads import MissingData
from dataset.own_files import is_own_figure, require_own
from dataset.items import epoch_order, item_shape, kind_of, noise_shape, to_unit
from dataset.registry import READING, load_dataset
from diffusion import GaussianDiffusion
from models.tokenizer import tokenizer_of
from samplers import AUTO, SAMPLERS, Denoise, generate
from schedules import Level
from evaluation.doctor.checks import examine
from evaluation.doctor.length import progress_of
from evaluation.doctor.report import report_of
from evaluation.doctor.run import read_run
from evaluation.report import learning_rows, write_report
from sampling.attention import attention_over_trajectory
from sampling.conditioning import require_fits, unknown_words
from sampling.draw import use_text_encoder
from sampling.plan import default_sampler, default_steps, require_untuned_network
from schedules import SCHEDULES
from training.folder import RunFolder
from training.foreign import foreign_files
from utils import NoisePerImage, check_output, check_writable, choose_device
from visuals.attention import draw_attention
from visuals.compared_runs import draw_progress
from visuals.forward_process import draw_noising, draw_schedules
from visuals.pictures import image_format, pictures_of, require_size, save_figure
from visuals.paths import Paths, draw_paths, spread, straightness
from visuals.score_field import draw_score_field, lattice

NUM_POINTS = 2000  # of a scatter plot
ATTENTION_STEPS, ATTENTION_ROWS = 20, 5  # sampling steps, and rows of the picture
NUM_PATHS, PATH_STEPS = 150, 100  # trajectories, and their sampling steps
FIELD_RATIOS = (5.0, 1.0, 0.4, 0.1)  # noise levels of the score field, sigma / alpha


def main(request: VisualizationRequest) -> int:
    for name in ("run", "doctor"):  # also from a checkpoint, or the folder of checkpoints
        if folder := getattr(request, name):
            given = Path(folder)
            found = RunFolder.of(given).path if given.is_file() else run_path(given)
            setattr(request, name, str(found))
    path = Path(request.save_path or default_path(request))
    image_format(path)
    if request.doctor:  # before the check: reports even if it cannot write
        return diagnose(request, path)
    check_output(path, *request.read())
    if request.save_path is None and not request.run:  # show_run() has its own check
        require_own(path, is_own_figure, "another --save-path")
    modes = {"run": show_run, "field": show_field, "attention": show_attention}
    modes["paths"] = show_paths
    show = next((modes[m] for m in modes if getattr(request, m)), show_forward_process)
    with activity("drawing"):
        return show(request, path)


def default_path(request: VisualizationRequest) -> str | Path:
    """The picture's path where --save-path is not given."""
    if request.run:
        return RunFolder(request.run).learning
    if request.doctor:
        return RunFolder(request.doctor).doctor
    if request.attention:
        return "outputs/attention.png"
    if request.paths:
        return "outputs/paths.png"
    return "outputs/score_field.png" if request.field else "outputs/forward_process.png"


def show_forward_process(request: VisualizationRequest, path: Path) -> int:
    """Draw data fading into noise, and the noise schedules."""
    schedules = path.with_stem(path.stem + "_schedules")
    require_own(schedules, is_own_figure, "another --save-path")
    if request.dataset == "folder" and path.resolve().is_relative_to(
        Path(request.data_dir).resolve()
    ):
        require_own(path, is_own_figure, "a --save-path outside the data set")
    items = choose_items(request)
    # No network is needed; v is a prediction that suits every schedule.
    processes = {name: GaussianDiffusion(name, TIMESTEPS, prediction="v") for name in SCHEDULES}
    diffusion = processes[request.schedule]
    noise = NoisePerImage(request.seed, range(len(items))).draw(items.shape[1:])
    columns = []
    for t in request.timesteps:
        t = torch.full((len(items),), t)
        x_t = diffusion.q_sample(to_unit(items), t, noise)
        columns.append(diffusion.scaled(x_t, t))  # the network's input: edm's x_t grows too large
    heading = f"q(x_t | x_0), {request.schedule} schedule, T = {TIMESTEPS}"
    save_figure(path, draw_noising(columns, request.timesteps, diffusion.log_snr, heading))
    log_snr = {name: process.log_snr for name, process in processes.items()}
    save_figure(schedules, draw_schedules(log_snr, highlighted=request.schedule))
    print(f"{path}\n{schedules}")
    return 0


def choose_items(request: VisualizationRequest) -> Tensor:
    """uint8 images (N, C, H, W) or points (N, 2) of the data set, chosen by the seed."""

    def load(name: str, download: bool) -> Tensor:
        with activity("loading the data", has_bar=True):
            data = load_dataset(name, download=download, progress=Bar, **request.chosen(READING))
        if data.note:
            print(data.note)
        return data.items

    if request.dataset is not None:
        items = load(request.dataset, not request.no_download)
    else:
        try:
            items = load("mnist", False)
        except MissingData:
            items = load("digits", False)
            print(f"mnist is not in {request.data_dir}; showing digits, which need no download")
    count = NUM_POINTS if kind_of(items.shape[1:]) == "points" else request.num_images
    return items[epoch_order(len(items), request.seed, 0)[:count]]


def show_run(request: VisualizationRequest, path: Path) -> int:
    """Sample from the checkpoints of a run, and write the picture and the report."""
    check_writable(Path(request.run))
    require_size(path, 100 * len(set(request.epochs or ())), 0)  # a row of 100 pixels for each
    folder = RunFolder(request.run)
    if foreign := {folder.report, path} & set(foreign_files(folder.path)):
        raise ValueError(f"{min(foreign)} was not written by this command: rename it")
    with activity("sampling by the checkpoints of the run"):
        learning = learning_rows(
            request.run,
            epochs=request.epochs,
            steps=request.steps,
            seed=request.seed,
            device=choose_device(request.device),
            say=tell,
        )
    with activity("writing the report"):
        report = write_report(request.run, learning)
    for note in learning.notes:
        print(note, file=sys.stderr)
    if learning.samples:
        items = next(iter(learning.samples.values()))
        save_figure(path, pictures_of(items.shape[1:]).comparison(learning.samples))
        print(path)
    print(report)
    return 0


def diagnose(request: VisualizationRequest, path: Path) -> int:
    """Print what is wrong with a run and what to do, and draw it next to measured runs.

    Returns 1 if something was found, else 0.
    """
    if request.save_path is not None:
        check_output(path, *request.read())
    with activity("reading the run"):
        examined = read_run(Path(request.doctor), tell)
        findings = examine(examined)
    print(report_of(examined, findings.values()))
    if examined.losses[0]:
        try:
            if request.save_path is None:
                check_output(path)
                require_own(path, is_own_figure, "another --save-path")
            with activity("drawing"):
                save_figure(path, draw_progress(progress_of(examined), str(examined.path)))
            print(f"\n{path}")
        except (OSError, ValueError) as error:
            if request.save_path is not None:
                raise
            print(f"the picture was not drawn: {error}", file=sys.stderr)
    return 1 if findings else 0


def show_field(request: VisualizationRequest, path: Path) -> int:
    """Draw the score that a model of points has learned, from much noise to little."""
    request.checkpoint = str(find_checkpoint(request.checkpoint, print))
    content = load_checkpoint(request.checkpoint)
    model, diffusion = restore(content)
    data = content["config"]["data"]
    require_untuned_network(content["config"], "--field")
    if kind_of(item_shape(data)) != "points":
        raise ValueError(f"--field is for points; {request.checkpoint} is of images")
    x_0 = load_dataset(data["dataset"], split="test").items[:NUM_POINTS]
    noise = NoisePerImage(request.seed, range(len(x_0))).draw(x_0.shape[1:])
    denoise = diffusion.denoiser(model)
    panels = {}
    for level in map(diffusion.nearest, FIELD_RATIOS):
        x_t = level.alpha * x_0 + level.sigma * noise
        arrows = level.sigma * score(denoise, level.scale * lattice(), level)
        title = f"t = {level.t}, sigma / alpha = {level.ratio:.2g}"
        panels[title] = x_t / level.scale, arrows  # scaled to fit the same square
    heading = f"score of {data['dataset']}: grad log p(x_t), learned"
    save_figure(path, draw_score_field(panels, heading))
    print(path)
    return 0


def show_paths(request: VisualizationRequest, path: Path) -> int:
    """Draw the trajectories of models of points, from the same noise."""
    columns = []
    for name in request.paths:
        content = load_checkpoint(find_checkpoint(name, print))
        model, diffusion = restore(content)
        config = content["config"]
        if kind_of(item_shape(config["data"])) != "points":
            raise ValueError(f"--paths is for points; {name} is of images")
        sampler, tuned = default_sampler(config), config["train"].get("tune")
        steps = default_steps(config, PATH_STEPS)
        if sampler in ("consistency", AUTO):  # their fresh noise would bend trajectories
            sampler, steps = ("ddim", 1 if tuned else PATH_STEPS)
        levels = diffusion.levels(min(steps, diffusion.timesteps))
        denoise, noise = diffusion.denoiser(model), spread(NUM_POINTS, request.seed)
        sampled = generate(denoise, noise, levels, torch.randn_like, SAMPLERS[sampler])
        scales = [level.alpha + level.sigma for level in levels]  # those of flow matching
        positions = torch.stack([x / scale for x, scale in zip(sampled, scales, strict=True)])
        heading = f"{tuned or 'not tuned'}, {len(levels) - 1} steps"
        if len(levels) == 2:
            heading = heading.removesuffix("s")
        else:
            heading += f", {straightness(positions):.2f} times the distance"
        columns.append(Paths(heading, positions[:, :NUM_PATHS], positions[-1]))
    save_figure(path, draw_paths(columns))
    print(path)
    return 0


def show_attention(request: VisualizationRequest, path: Path) -> int:
    """Draw where the cross-attention looks for each word of a prompt, over the trajectory."""
    request.checkpoint = str(find_checkpoint(request.checkpoint, print))
    content = load_checkpoint(request.checkpoint)
    config = content["config"]
    require_untuned_network(config, "--attention")
    use_text_encoder(config, request.text_encoder)
    if (tokenizer := tokenizer_of(config)) is None:
        raise ValueError(f"--attention: {request.checkpoint} is not conditioned on captions")
    prompt = config["data"]["prompts"][0] if request.prompt is None else request.prompt
    require_fits(prompt, "--prompt", tokenizer)
    if not tokenizer.tokens(prompt):
        raise ValueError("--attention needs a --prompt with words")
    for line in unknown_words([prompt], tokenizer):
        print(line)
    model, diffusion = restore(content)
    words, moments = attention_over_trajectory(
        model,
        diffusion,
        tokenizer,
        prompt,
        noise_shape(config),
        steps=ATTENTION_STEPS,
        moments=ATTENTION_ROWS,
        seed=request.seed,
    )
    rows = [(f"t = {moment.t}", moment.x_0, moment.maps) for moment in moments]
    save_figure(path, draw_attention(words, rows, prompt))
    print(path)
    return 0


def score(denoise: Denoise, x_t: Tensor, level: Level) -> Tensor:
    """grad log p(x_t) = -eps / sigma (Song et al. 2020, arXiv:2011.13456, section 3.1)."""
    _, eps = denoise(x_t, level)
    return -eps / level.sigma


if __name__ == "__main__":
    sys.exit(run(main, REQUEST))
