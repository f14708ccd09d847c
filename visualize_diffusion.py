"""Show the forward process: real images that fade into noise, and the schedules behind it."""

from flags import Parser, add_data_flags, add_seed_flag, names, number, run

TIMESTEPS = 1000  # T of the process shown
COLUMNS = [0, 50, 100, 200, 400, 600, 800, 999]


# fmt: off
def make_parser() -> Parser:
    parser = Parser(
        "Draw real images fading into noise, and the schedules over t. Needs no trained model.",
        [
            "python visualize_diffusion.py",
            "python visualize_diffusion.py --dataset digits --timesteps 0 250 500 999",
        ],
    )
    data = add_data_flags(parser, None, " (default: mnist where it is at hand, else digits)")
    data.add_argument("--num-images", type=number(int, 1, 64), default=8, metavar="N", help="rows")
    add_seed_flag(data)
    process = parser.add_argument_group("process")
    process.add_argument("--schedule", choices=names("schedules.py", "SCHEDULES"), default="cosine",
                         help="how noise grows over the timesteps")
    process.add_argument("--timesteps", type=number(int, 0, TIMESTEPS - 1), nargs="+",
                         default=COLUMNS, metavar="T",
                         help="columns: timesteps t to show")
    output = parser.add_argument_group("output")
    output.add_argument("--save-path", default="outputs/forward_process.png", metavar="FILE",
                        help="the picture; the schedules go beside it, as NAME_schedules")
    return parser


# fmt: on


def parse_args(argv=None):
    return make_parser().parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports below, which take seconds

import sys
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from data import MissingData, epoch_order, load_dataset, to_uint8, to_unit
from diffusion import GaussianDiffusion
from schedules import SCHEDULES
from utils import NoisePerImage, check_writable, image_format, save_whole


def main(args) -> int:
    path = Path(args.save_path)
    image_format(path)
    check_writable(path.parent)
    images = some_images(args)
    diffusion = process(args.schedule)

    noise = NoisePerImage(args.seed, range(len(images))).draw(images.shape[1:])
    columns = []
    for t in args.timesteps:
        t = torch.full((len(images),), t)
        x_t = diffusion.q_sample(to_unit(images), t, noise)
        columns.append(diffusion.scaled(x_t, t))  # as a network sees it: edm's grow beyond a screen
    save_figure(path, draw_process(columns, args.timesteps, diffusion, args.schedule))
    schedules = path.with_stem(path.stem + "_schedules")
    save_figure(schedules, draw_schedules(args.schedule))
    print(f"{path}\n{schedules}")
    return 0


def process(schedule: str) -> GaussianDiffusion:
    """No network is asked; v is a prediction that every schedule takes."""
    return GaussianDiffusion(schedule, TIMESTEPS, prediction="v")


def some_images(args) -> Tensor:
    """uint8 images (N, C, H, W) of the data set, chosen by the seed."""

    def load(name: str, download: bool) -> Tensor:
        return load_dataset(
            name,
            args.data_dir,
            image_size=args.image_size,
            download=download,
            skip_bad_images=args.skip_bad_images,
            progress=partial(tqdm, disable=None),  # no bar off a terminal
        ).images

    if args.dataset is not None:
        images = load(args.dataset, not args.no_download)
    else:
        try:
            images = load("mnist", False)
        except MissingData:
            images = load("digits", False)
            print(f"mnist is not in {args.data_dir}; showing digits, which comes with scikit-learn")
    return images[epoch_order(len(images), args.seed, 0)[: args.num_images]]


def draw_process(
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


def save_figure(path: Path, figure: Figure) -> None:
    save_whole(
        path, lambda partial: figure.savefig(partial, dpi=130, format=image_format(path).lower())
    )


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
