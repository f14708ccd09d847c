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
from torch import Tensor
from tqdm import tqdm

from checkpoints.checkpoint import load_checkpoint, restore
from dataset.downloads import MissingData
from dataset.items import epoch_order, item_shape, kind_of, to_unit
from dataset.registry import load_dataset
from diffusion import Denoise, GaussianDiffusion, Level
from evaluation.report import learning_rows, write_report
from schedules import SCHEDULES
from training.folder import RunFolder
from utils import NoisePerImage, check_writable, choose_device
from visuals.forward_process import draw_noising, draw_schedules
from visuals.pictures import image_format, pictures_of, save_figure
from visuals.score_field import draw_score_field, lattice

NUM_POINTS = 2000  # of a scatter plot
FIELD_RATIOS = (5.0, 1.0, 0.4, 0.1)  # noise levels of the score field, sigma / alpha


def main(args) -> int:
    path = Path(args.save_path or default_path(args))
    image_format(path)
    check_writable(path.parent)
    if args.run:
        return show_run(args, path)
    if args.field:
        return show_field(args, path)
    return show_forward_process(args, path)


def default_path(args) -> str | Path:
    """The picture's path where --save-path is not given."""
    if args.run:
        return RunFolder(args.run).learning
    return "outputs/score_field.png" if args.field else "outputs/forward_process.png"


def show_forward_process(args, path: Path) -> int:
    """Draw data fading into noise, and the noise schedules."""
    items = choose_items(args)
    # No network is needed; v is a prediction that suits every schedule.
    processes = {name: GaussianDiffusion(name, TIMESTEPS, prediction="v") for name in SCHEDULES}
    diffusion = processes[args.schedule]
    noise = NoisePerImage(args.seed, range(len(items))).draw(items.shape[1:])
    columns = []
    for t in args.timesteps:
        t = torch.full((len(items),), t)
        x_t = diffusion.q_sample(to_unit(items), t, noise)
        columns.append(diffusion.scaled(x_t, t))  # the network's input: edm's x_t grows too large
    heading = f"q(x_t | x_0), {args.schedule} schedule, T = {TIMESTEPS}"
    save_figure(path, draw_noising(columns, args.timesteps, diffusion.log_snr, heading))
    schedules = path.with_stem(path.stem + "_schedules")
    log_snr = {name: process.log_snr for name, process in processes.items()}
    save_figure(schedules, draw_schedules(log_snr, highlighted=args.schedule))
    print(f"{path}\n{schedules}")
    return 0


def choose_items(args) -> Tensor:
    """uint8 images (N, C, H, W) or points (N, 2) of the data set, chosen by the seed."""

    def load(name: str, download: bool) -> Tensor:
        names = ["data_dir", "image_size", "skip_bad_images", "fit", "cache_dir", "cache_limit"]
        bar = partial(tqdm, disable=None)  # no bar off a terminal
        data = load_dataset(name, download=download, progress=bar, **args.chosen(names))
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
            print(f"mnist is not in {args.data_dir}; showing digits, which need no download")
    count = NUM_POINTS if kind_of(items.shape[1:]) == "points" else args.num_images
    return items[epoch_order(len(items), args.seed, 0)[:count]]


def show_run(args, path: Path) -> int:
    """Sample by the checkpoints of a run, and write the picture and the report."""
    check_writable(Path(args.run))
    say = partial(print, file=sys.stderr)
    learning = learning_rows(
        args.run,
        epochs=args.epochs,
        steps=args.steps,
        seed=args.seed,
        device=choose_device(args.device),
        say=say if sys.stderr.isatty() else lambda line: None,
    )
    report = write_report(args.run, learning)
    for note in learning.notes:
        say(note)
    if learning.samples:
        items = next(iter(learning.samples.values()))
        save_figure(path, pictures_of(items.shape[1:]).comparison(learning.samples))
        print(path)
    print(report)
    return 0


def show_field(args, path: Path) -> int:
    """Draw the score that a model of points has learned, from much noise to little."""
    content = load_checkpoint(args.checkpoint)
    model, diffusion = restore(content)
    data = content["config"]["data"]
    if kind_of(item_shape(data)) != "points":
        raise ValueError(f"--field is for points; {args.checkpoint} is of images")
    x_0 = load_dataset(data["dataset"], split="test").items[:NUM_POINTS]
    noise = NoisePerImage(args.seed, range(len(x_0))).draw(x_0.shape[1:])
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


def score(denoise: Denoise, x_t: Tensor, level: Level) -> Tensor:
    """grad log p(x_t) = -eps / sigma (Song et al. 2020, arXiv:2011.13456, section 3.1)."""
    _, eps = denoise(x_t, level)
    return -eps / level.sigma


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
