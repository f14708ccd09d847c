"""Show the forward process, real data fading into noise, and what a model or a run has learned."""

from cli.parser import Parser, add_data_flags, add_device_flag, add_seed_flag, names, number, run

TIMESTEPS = 1000  # T of the process shown
COLUMNS = [0, 50, 100, 200, 400, 600, 800, 999]
# Flags that mean nothing to --field and --run, and those that mean something only to --run.
FORWARD = ("dataset", "data_dir", "image_size", "no_download", "skip_bad_images", "num_images")
FORWARD += ("schedule", "timesteps")
WALKS = ("steps", "device")


# fmt: off
def make_parser() -> Parser:
    parser = Parser(
        "Draw real images or points fading into noise, and the schedules over t, for which no "
        "trained model is needed; or how a run learned, or what a model has learned of the plane.",
        [
            "python visualize_diffusion.py --dataset digits --timesteps 0 250 500 999",
            "python visualize_diffusion.py --run outputs",
        ],
    )
    data = add_data_flags(parser, None, " (default: mnist where it is at hand, else digits)")
    data.add_argument("--num-images", type=number(int, 1, 64), default=8, metavar="N",
                      help="rows of images; of points, 2000 are shown")
    add_seed_flag(data)
    process = parser.add_argument_group("process")
    process.add_argument("--schedule", choices=names("schedules.py", "SCHEDULES"), default="cosine",
                         help="how noise grows over the timesteps")
    process.add_argument("--timesteps", type=number(int, 0, TIMESTEPS - 1), nargs="+",
                         default=COLUMNS, metavar="T",
                         help="columns: timesteps t to show")
    learned = parser.add_argument_group("what a model has learned")
    learned.add_argument("--checkpoint", metavar="FILE", help="of points, written by train.py")
    learned.add_argument("--field", action="store_true",
                         help="draw its score as arrows over the plane, at a few noise levels")
    learning = parser.add_argument_group("how a run learned")
    learning.add_argument("--run", metavar="DIR",
                          help="draw from the same noise by its checkpoints, and write a page with "
                          "that and its curves, DIR/report.html")
    learning.add_argument("--steps", type=number(int, 1), metavar="N",
                          help="steps of each walk, up to T (default: 50)")
    add_device_flag(learning)
    output = parser.add_argument_group("output")
    output.add_argument("--save-path", metavar="FILE",
                        help="the picture; the schedules go beside it, as NAME_schedules "
                        "(default: outputs/forward_process.png, outputs/score_field.png, "
                        "or learning.png in the folder of --run)")
    return parser


# fmt: on


def parse_args(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    if bool(args.checkpoint) != args.field:
        parser.error("--checkpoint and --field go together")
    if args.run and args.field:
        parser.error("give one of --run and --field")
    mode = "--run" if args.run else "--field" if args.field else ""
    for flag in [flag for flag in FORWARD if mode and flag in args.given]:
        parser.error(f"--{flag.replace('_', '-')} has no effect on {mode}")
    for flag in [flag for flag in WALKS if not args.run and flag in args.given]:
        parser.error(f"--{flag} is for --run")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports below, which take seconds

import sys
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from dataset.downloads import MissingData
from dataset.items import epoch_order, item_shape, kind_of, to_uint8, to_unit
from dataset.registry import load_dataset
from diffusion import Denoise, GaussianDiffusion, Level
from visuals.pictures import EXTENT, frame, image_format, pictures_of, save_figure, scatter
from evaluation.report import learning_rows, write_report
from schedules import SCHEDULES
from checkpoints.checkpoint import load_checkpoint, restore
from training.folder import RunFolder
from utils import NoisePerImage, check_writable, choose_device

NUM_POINTS = 2000  # of a scatter plot
ARROWS = 21  # of the score field, in each direction
FIELD_RATIOS = (5.0, 1.0, 0.4, 0.1)  # the noise levels at which it is drawn, sigma / alpha


def main(args) -> int:
    path = Path(args.save_path or default_path(args))
    image_format(path)
    check_writable(path.parent)
    if args.run:
        return show_run(args, path)
    if args.field:
        save_figure(path, draw_field(args.checkpoint, args.seed))
        print(path)
        return 0

    items = some_items(args)
    diffusion = process(args.schedule)
    noise = NoisePerImage(args.seed, range(len(items))).draw(items.shape[1:])
    columns = []
    for t in args.timesteps:
        t = torch.full((len(items),), t)
        x_t = diffusion.q_sample(to_unit(items), t, noise)
        columns.append(diffusion.scaled(x_t, t))  # as a network sees it: edm's grow beyond a screen
    draw = draw_points if kind_of(items.shape[1:]) == "points" else draw_images
    save_figure(path, draw(columns, args.timesteps, diffusion, args.schedule))
    schedules = path.with_stem(path.stem + "_schedules")
    save_figure(schedules, draw_schedules(args.schedule))
    print(f"{path}\n{schedules}")
    return 0


def default_path(args) -> str | Path:
    if args.run:
        return RunFolder(args.run).learning
    return "outputs/score_field.png" if args.field else "outputs/forward_process.png"


def show_run(args, path: Path) -> int:
    """Draw by the checkpoints of a run, write the picture and the page, and say what is amiss."""
    check_writable(Path(args.run))
    say = partial(print, file=sys.stderr)
    learning = learning_rows(
        args.run,
        steps=args.steps,
        seed=args.seed,
        device=choose_device(args.device),
        say=say if sys.stderr.isatty() else lambda line: None,
    )
    page = write_report(args.run, learning)
    for note in learning.notes:
        say(note)
    if learning.rows:
        items = next(iter(learning.rows.values()))
        save_figure(path, pictures_of(items.shape[1:]).comparison(learning.rows))
        print(path)
    print(page)
    return 0


def process(schedule: str) -> GaussianDiffusion:
    """No network is asked; v is a prediction that every schedule takes."""
    return GaussianDiffusion(schedule, TIMESTEPS, prediction="v")


def some_items(args) -> Tensor:
    """uint8 images (N, C, H, W), or points (N, 2), of the data set, chosen by the seed."""

    def load(name: str, download: bool) -> Tensor:
        data = load_dataset(
            name,
            args.data_dir,
            image_size=args.image_size,
            download=download,
            skip_bad_images=args.skip_bad_images,
            fit=args.fit,
            cache_dir=args.cache_dir,
            cache_limit=args.cache_limit,
            progress=partial(tqdm, disable=None),  # no bar off a terminal
        )
        if data.note:
            print(data.note)
        return data.items

    if args.dataset is not None:
        items = load(args.dataset, not args.no_download)
    else:
        try:
            items = load("mnist", False)
        except MissingData:
            items = load("digits", False)
            print(f"mnist is not in {args.data_dir}; showing digits, which comes with scikit-learn")
    count = NUM_POINTS if kind_of(items.shape[1:]) == "points" else args.num_images
    return items[epoch_order(len(items), args.seed, 0)[:count]]


def draw_images(
    columns: list[Tensor], timesteps: list[int], diffusion: GaussianDiffusion, schedule: str
) -> Figure:
    """One row an image, one column a timestep, with t and the signal-to-noise ratio above."""
    rows = len(columns[0])
    figure = Figure(figsize=(1.15 * len(columns), 1.15 * rows + 0.9), layout="constrained")
    figure.suptitle(f"q(x_t | x_0), {schedule} schedule, T = {diffusion.timesteps}", fontsize=11)
    grid = figure.subplots(rows, len(columns), squeeze=False)
    for j, (t, x_t) in enumerate(zip(timesteps, columns, strict=True)):
        snr = diffusion.log_snr[t].exp().item()
        grid[0, j].set_title(f"t = {t}\nSNR {snr:.2g}", fontsize=9)
        for i, image in enumerate(to_uint8(x_t).permute(0, 2, 3, 1)):
            grid[i, j].imshow(image.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=255)
            grid[i, j].axis("off")
    return figure


def draw_points(
    columns: list[Tensor], timesteps: list[int], diffusion: GaussianDiffusion, schedule: str
) -> Figure:
    """A row of scatter plots, with t and the signal-to-noise ratio above."""
    figure = Figure(figsize=(1.6 * len(columns), 2.5), layout="constrained")
    figure.suptitle(f"q(x_t | x_0), {schedule} schedule, T = {diffusion.timesteps}", fontsize=11)
    row = figure.subplots(1, len(columns), squeeze=False)[0]
    for axes, t, x_t in zip(row, timesteps, columns, strict=True):
        scatter(axes, x_t, f"t = {t}\nSNR {diffusion.log_snr[t].exp().item():.2g}")
    return figure


def draw_field(checkpoint: str, seed: int) -> Figure:
    """The learned score, grad log p(x_t), as arrows over the plane, from much noise to little.

    Behind it, the data with that much noise. Arrows have one length, and the color of the score's
    norm times sigma, which is comparable between the levels.
    """
    content = load_checkpoint(checkpoint)
    model, diffusion = restore(content)
    data = content["config"]["data"]
    if kind_of(item_shape(data)) != "points":
        raise ValueError(f"--field is for points; {checkpoint} draws images of {data['dataset']}")
    items = load_dataset(data["dataset"], split="test").items[:NUM_POINTS]
    noise = NoisePerImage(seed, range(len(items))).draw(items.shape[1:])
    denoise = diffusion.denoiser(model)

    figure = Figure(figsize=(3.4 * len(FIELD_RATIOS) + 0.6, 3.7), layout="constrained")
    figure.suptitle(f"score of {data['dataset']}: grad log p(x_t), learned", fontsize=11)
    row = figure.subplots(1, len(FIELD_RATIOS))
    for axes, ratio in zip(row, FIELD_RATIOS, strict=True):
        level = diffusion.nearest(ratio)
        shown = level.scale  # so that all levels fit the same square of the plane
        x_t = (level.alpha * items + level.sigma * noise) / shown
        scatter(axes, x_t)
        x, y, score = field(denoise, level)
        length = score.norm(dim=1)
        u, v = (score / length[:, None]).T
        arrows = axes.quiver(
            x, y, u, v, level.sigma * length, cmap="viridis", clim=(0, 3), scale=28, width=0.005
        )
        frame(axes, f"t = {level.t}, sigma / alpha = {level.ratio:.2g}")
    figure.colorbar(arrows, ax=row[-1], label="sigma times norm")
    return figure


def field(denoise: Denoise, level: Level) -> tuple[Tensor, Tensor, Tensor]:
    """x and y (N,) of a lattice in the plane, in units of the level's scale, and the score (N, 2)
    there: -eps / sigma (Song et al. 2020, arXiv:2011.13456, section 3.1)."""
    line = torch.linspace(-EXTENT, EXTENT, ARROWS + 2)[1:-1]
    points = torch.cartesian_prod(line, line)
    _, eps = denoise(level.scale * points, level)
    return *points.T, -eps / level.sigma


def draw_schedules(shown: str) -> Figure:
    """alphas_cumprod and log-SNR over t, one line a schedule; the one shown is drawn thicker.

    Where a process does not preserve the variance, alphas_cumprod is alpha^2 / (alpha^2 + sigma^2).
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in SCHEDULES:
        diffusion = process(name)
        width = 2.5 if name == shown else 1.2
        left.plot(diffusion.log_snr.sigmoid().numpy(), label=name, linewidth=width)
        right.plot(diffusion.log_snr.numpy(), label=name, linewidth=width)
    left.set(xlabel="t", ylabel="alphas_cumprod", title="signal that is left")
    right.set(xlabel="t", ylabel="log SNR", title="log signal-to-noise ratio")
    for axes in (left, right):
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
