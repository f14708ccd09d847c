"""Measure generated images: those of a trained model, or anybody's."""

from cli.parser import (
    Parser,
    add_checkpoint_flags,
    add_runtime_flags,
    add_walk_flags,
    check_walk_flags,
    names,
    number,
    run,
)


METRICS = ["classifier", "copies", "inception", "bpd"]
DRAWN = 2000  # images of a set, if nothing else is asked for
LIKELY = 32  # images whose likelihood is computed then
# Flags of drawing: with --samples there is nothing to draw.
DRAWING = {"raw", "class_id", "guidance_scale", "guidance_interval", "guidance_rescale", "sampler"}
DRAWING |= {"steps", "spacing", "timesteps", "batch_size", "eta", "variance", "churn", "churn_min"}
DRAWING |= {"churn_max", "churn_noise", "order", "gamma", "mu", "precision", "ode_steps"}
OF_LIKELIHOOD = {"raw", "batch_size", "precision", "ode_steps"}  # that bpd looks at
FOLDER = ("skip_bad_images", "fit", "cache_dir", "cache_limit")  # how a folder was read in training


# fmt: off
def make_parser() -> Parser:
    parser = Parser(
        "Measure images that a model draws, or anybody's, against real ones: in the features of a "
        "classifier that is trained once, by their nearest training images, with Inception's "
        "features, and by bits per dimension.",
        [
            "python evaluate.py --checkpoint outputs/model_final.pt",
            "python evaluate.py --samples samples.npz --dataset mnist",
        ],
    )
    what = add_checkpoint_flags(parser, required=False)
    what.add_argument("--samples", metavar="PATH",
                      help="instead of a checkpoint: images in an .npz, an .npy or a folder")
    what.add_argument("--metrics", choices=METRICS, nargs="+",
                      help="classifier: classifier-FID and -KID, precision, recall, density, "
                      "coverage, classes; copies: near-copies of training images; inception: FID, "
                      "IS and KID by torch-fidelity; bpd: bits per dimension of held-out images "
                      "(default: classifier copies, and inception with --inception-weights; of "
                      "points bpd)")
    what.add_argument("--num-images", type=number(int, 2, 10**6), metavar="N",
                      help="images of a set (default: 2000, or all of --samples; for bpd 32 "
                      "held-out ones)")
    what.add_argument("--repeats", type=number(int, 1, 100), default=3, metavar="N",
                      help="sets that are drawn, with other seeds, and of real images, so that the "
                      "spread is seen")
    what.add_argument("--inception-weights", metavar="FILE",
                      help="weights-inception-2015-12-05-6726825d.pth of torch-fidelity")

    data = parser.add_argument_group("data (default: what the model was trained on)")
    data.add_argument("--dataset", choices=names("dataset/registry.py", "DATASETS"),
                      help="for --samples: what they are compared with")
    data.add_argument("--data-dir", metavar="DIR", help="where the data set is")
    data.add_argument("--split", choices=["test", "validation"], default="test",
                      help="what images are compared with: the test split, or what the run held "
                      "out of training (validation), for choices that the test split is not to "
                      "decide. Data without a test split always take the latter")
    data.add_argument("--image-size", type=number(int, 1, 4096), metavar="N",
                      help="for --samples: resize the data set to N x N pixels")

    add_walk_flags(parser)
    parser.add_argument_group("bits per dimension").add_argument(
                     "--ode-steps", type=number(int, 2), default=100, metavar="N",
                     help="steps of the ODE, at most T; the bound takes all T")
    add_runtime_flags(parser, None, "of the network (default: auto; for bpd fp32, which a "
                      "likelihood needs)")
    output = parser.add_argument_group("output")
    output.add_argument("--output", metavar="FILE",
                        help="the figures; pictures go beside it (default: metrics.json beside the "
                        "checkpoint or the samples)")
    return parser


# fmt: on


def parse_args(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    if (args.checkpoint is None) == (args.samples is None):
        parser.error("give a --checkpoint, or --samples")
    if args.samples and not args.dataset:
        parser.error("--samples needs the --dataset that they are compared with")
    if args.samples and "bpd" in (args.metrics or []):
        parser.error("--metrics bpd is of a --checkpoint: images alone have no likelihood")
    if args.samples and args.split == "validation":
        parser.error("--split validation is for a --checkpoint, whose run held the images out")
    for flag in ("dataset", "image_size"):
        if args.checkpoint and flag in args.given:
            parser.error(f"--{flag.replace('_', '-')} is for --samples; a checkpoint knows its own")
    if args.samples and (unused := args.given & DRAWING):
        parser.error(f"--{min(unused).replace('_', '-')} is for a --checkpoint, which draws")
    if args.inception_weights and args.metrics and "inception" not in args.metrics:
        parser.error("--inception-weights is for --metrics inception")
    if "inception" in (args.metrics or []) and not args.inception_weights:
        parser.error("--metrics inception needs --inception-weights, as nothing is fetched unasked")
    check_walk_flags(parser, args)
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports below, which take seconds

import json
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor
from tqdm import tqdm

from dataset.registry import DATASETS, load_dataset
from dataset.types import Data
from dataset.items import epoch_order, item_shape, kind_of, to_unit
from sampling.drawing import PLAIN, Job, draw
from evaluation.classifier import judge_for, require_classes
from evaluation.copies import CLOSE, copies, pairs
from evaluation.images import load_images
from evaluation.inception import inception_figures
from evaluation.measures import NEIGHBOURS_OF_DENSITY, Measure, Reference, chosen
from evaluation.real import Real, real_data
from dataset.changes import digest_of
from evaluation.likelihood import flow_likelihood, variational_bound
from visuals.pictures import save_picture
from checkpoints.checkpoint import load_checkpoint, restore
from distributed import launched
from checkpoints.weights import WEIGHT_KINDS, weights_sha256
from utils import (
    DataError,
    NoisePerImage,
    autocast,
    check_writable,
    choose_device,
    choose_precision,
    describe,
    save_whole,
)

BAR = partial(tqdm, disable=None)  # none off a terminal


def main(args) -> int:
    source = Path(args.checkpoint or args.samples)
    output = Path(args.output or source.parent / "metrics.json")
    if launched():
        raise ValueError(
            "evaluate.py is for one process: let torchrun start sample.py with --output "
            "samples.npz, and measure those (--samples samples.npz)"
        )
    check_writable(output.parent)
    device = choose_device(args.device)
    checkpoint = load_checkpoint(source) if args.checkpoint else None
    real = compared_with(args, checkpoint)
    metrics = args.metrics or usual(args, real)
    require_used(args, metrics)
    report = {"checkpoint" if checkpoint else "samples": str(source)}
    if checkpoint:
        which = "model" if args.raw else "ema"
        report |= {"step": checkpoint["step"], "seed": args.seed, "weights": WEIGHT_KINDS[which]}
        there = which in checkpoint
        report["weights_sha256"] = weights_sha256({}, checkpoint[which]) if there else None
    report |= {"dataset": real.name, "compared_with": real.what, "torch": torch.__version__}
    print(f"{source}: {real.name}" + (f", step {checkpoint['step']:,}" if checkpoint else ""))
    if set(metrics) - {"bpd"}:
        require_enough(args, metrics, real)
        sets, labels, how = generated(args, real, source)
        report |= {"num_images": len(sets[0]), **how}
        if "classifier" in metrics:
            report["classifier"] = by_classifier(args, real, sets, labels, device, output.parent)
        if "copies" in metrics:
            report["copies"] = by_copies(real, sets[0], output)
        if "inception" in metrics:
            report["inception"] = by_inception(args, real, sets[0], device)
    if "bpd" in metrics:
        report |= likelihood(args, checkpoint, real, device)
    text = json.dumps(report, indent=2) + "\n"
    save_whole(output, lambda partial: partial.write_text(text, encoding="utf-8"))
    print(output)
    return 0


# --- real images ---------------------------------------------------------------------------------


def compared_with(args, checkpoint: dict | None) -> Real:
    """The data that a checkpoint was trained on, or that --dataset names."""
    validation, seed = None, args.seed
    config = {"dataset": args.dataset, "data_dir": "data", "image_size": args.image_size}
    if checkpoint:
        config, train = checkpoint["config"]["data"], checkpoint["config"]["train"]
        validation, seed = train["validation"], train["seed"]
    data_dir = args.data_dir or config["data_dir"]
    load = partial(
        load_dataset,
        config["dataset"],
        data_dir,
        image_size=config.get("image_size"),
        progress=BAR,
        **{key: config[key] for key in FOLDER if key in config},
    )
    data = load()
    if data.note:
        print(data.note)
    if checkpoint:
        require_same(checkpoint["config"], data)
    if args.split == "validation" and validation == 0:
        raise ValueError("--split validation: this run held nothing out of training")
    test = partial(load, split="test") if args.split == "test" else None
    real = real_data(config["dataset"], data, test, data_dir, validation, seed)
    now = len(data.items), digest_of(data.files)
    has_test = DATASETS[real.name].has_test
    if checkpoint and not has_test and (config["count"], config.get("digest")) != now:
        return real._replace(what="images of a folder that has changed, and may have been seen")
    return real


def require_same(config: dict, data: Data) -> None:
    """Raise a ValueError if a checkpoint's network was made for other data."""
    trained = config["data"]
    if data.items.shape[1:] != item_shape(trained):
        has, wants = (" x ".join(map(str, s)) for s in (data.items.shape[1:], item_shape(trained)))
        raise ValueError(f"the data's shape is {has}, that of the checkpoint's network {wants}")
    if config["model"].get("num_classes") and data.classes != trained["classes"]:
        raise ValueError("the data has other classes than the checkpoint was trained with")


def usual(args, real: Real) -> list[str]:
    """What is measured where nothing is asked for."""
    if kind_of(real.shape) == "points":
        return ["bpd"]
    metrics = ["classifier", "copies"] if len(real.train.classes) > 1 else ["copies"]
    if "classifier" not in metrics:
        print(f"{real.name} has no classes to train a classifier on: its figures are left out")
    return metrics + (["inception"] if args.inception_weights else [])


def require_used(args, metrics: list[str]) -> None:
    """Raise a ValueError for a flag that nothing which is measured would look at."""
    unused = {"ode_steps"} if "bpd" not in metrics else set()
    if metrics == ["bpd"]:
        unused = DRAWING - OF_LIKELIHOOD | {"repeats", "inception_weights"}
    if unused := unused & args.given:
        flag = min(unused).replace("_", "-")
        raise ValueError(f"--{flag} has no part in --metrics {' '.join(metrics)}")


def require_enough(args, metrics: list[str], real: Real) -> None:
    """Raise a ValueError for what cannot be measured, before time is spent on it."""
    if kind_of(real.shape) == "points":
        raise ValueError("these are points: --metrics bpd measures them, and train.py at its end")
    if "classifier" not in metrics:
        return
    if args.class_id is not None:
        raise ValueError(
            "--class-id: images of some classes cannot be compared with those of all; without it "
            "each class has the share that it has in the data"
        )
    require_classes(real)
    if len(real.held_out.items) <= NEIGHBOURS_OF_DENSITY:
        raise ValueError(
            f"the classifier's figures need more than {NEIGHBOURS_OF_DENSITY} held-out images; "
            f"there are {len(real.held_out.items)} (--metrics copies does without)"
        )
    if args.num_images is not None and args.num_images <= NEIGHBOURS_OF_DENSITY:
        raise ValueError(
            f"--num-images {args.num_images}: the classifier's figures need more than "
            f"{NEIGHBOURS_OF_DENSITY}"
        )


# --- generated images ----------------------------------------------------------------------------


def generated(args, real: Real, source: Path) -> tuple[list[Tensor], Tensor | None, dict]:
    """Sets of uint8 images (N, C, H, W), the classes (N,) that were asked for, and how they came
    to be."""
    if args.samples:
        images, how = load_images(source, real.shape, BAR)
        if len(images) <= NEIGHBOURS_OF_DENSITY:
            raise DataError(f"{source} holds {len(images)} images, which is too few to compare")
        if args.num_images and args.num_images > len(images):
            raise ValueError(f"--num-images {args.num_images}: there are {len(images)}")
        images = images[chosen(len(images), args.num_images or len(images), "samples")]
        print(f"{len(images):,} images, {how}", flush=True)
        return [images], None, {"read_as": how}

    wanted = {"num_images": args.num_images or DRAWN, "precision": args.precision or "auto"}
    job = Job(Namespace(**{**vars(args), **PLAIN, **wanted}))
    walk, seeds = job.walk, list(range(args.seed, args.seed + args.repeats))
    walk.ask_like(real.train.labels)
    how = {key: walk.chosen[key] for key in ("sampler", "steps", "spacing")}
    how |= {"seeds": seeds, "precision": job.precision, "guidance_scale": args.guidance_scale}
    print(
        f"drawing {args.repeats} x {walk.count:,} images: {walk.name}, {how['steps']} steps, "
        f"{describe(job.device, job.precision)}",
        flush=True,
    )
    sets, start = [], time.monotonic()
    for seed in seeds:
        job.args.seed = seed
        sets.append(draw(job).items)
    how["seconds_of_a_set"] = (time.monotonic() - start) / args.repeats
    return sets, walk.y, how


# --- by features ---------------------------------------------------------------------------------


def by_classifier(args, real: Real, sets, labels, device, folder: Path) -> dict:
    judge = judge_for(real, folder, device, progress=BAR)
    reference = Reference(judge, real)
    measures = reference.measures(sets, labels, args.repeats, args.seed)
    print(f"\nclassifier {judge.sha256[:12]}, right on {100 * judge.accuracy:.2f} % of the images")
    print(f"that are compared with ({real.what}, {len(real.held_out.items):,})\n")
    print(table(measures))
    return {
        "sha256": judge.sha256,
        "accuracy": judge.accuracy,
        **{name: measure.record() for name, measure in measures.items()},
    }


def table(measures: dict[str, Measure]) -> str:
    """Lines of name, figure, its spread, and what real images get."""
    rows = [("", "generated", "lowest, highest", "training images", "ratio")]
    for name, (values, floor) in measures.items():
        spread = f"{min(values):.4g}, {max(values):.4g}" if len(values) > 1 else ""
        distance = name == "classifier_fid" and mean(floor) > 0
        ratio = f"{mean(values) / mean(floor):.2f}" if distance else ""
        rows.append((name, f"{mean(values):.4g}", spread, f"{mean(floor):.4g}", ratio))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    layout = f"{{:<{widths[0]}}}" + "".join(f"  {{:>{width}}}" for width in widths[1:])
    return "\n".join(layout.format(*row) for row in rows)


def by_copies(real: Real, images: Tensor, output: Path) -> dict:
    found = copies(images, real.train.items, real.held_out.items)
    picture = output.with_name(f"{output.stem}_nearest.png")
    save_picture(picture, pairs(images, real.train.items, found))
    print(
        f"\nnear-copies: {100 * found.share:.2f} % of the images are as near to a training image "
        f"as the nearest {100 * CLOSE:.0f} % of the held-out ones\n"
        f"the ten nearest, each above its training image: {picture}"
    )
    return found.record()


# --- by Inception's features ----------------------------------------------------------------------


def by_inception(args, real: Real, images: Tensor, device: torch.device) -> dict:
    """The figures of a set; or why they cannot be had, and the rest of the report goes on."""
    print(f"\nInception: {len(images):,} images and {len(real.held_out.items):,} held-out ones")
    weights = Path(args.inception_weights)
    try:
        found = inception_figures(images, real.held_out.items, weights, device, real.what)
    except DataError as error:
        print(f"evaluate.py: inception is left out: {error}", file=sys.stderr)
        return {"left_out": str(error)}
    for name, value in found.items():
        print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
    return found


# --- likelihood ----------------------------------------------------------------------------------


def likelihood(args, checkpoint: dict, real: Real, device: torch.device) -> dict:
    """Bits per dimension of held-out images, by the bound and by the ODE."""
    precision = choose_precision(args.precision or "fp32", device)
    model, diffusion = restore(checkpoint, device, raw=args.raw)
    steps = min(args.ode_steps, diffusion.timesteps)
    data = real.held_out
    chosen = epoch_order(len(data.items), args.seed, 0)[: args.num_images or LIKELY]
    y = data.labels[chosen] if checkpoint["config"]["model"].get("num_classes") else None
    print(f"{len(chosen)} items ({real.what}), {describe(device, precision)}", flush=True)

    def bits(
        measure: Callable[..., Tensor], name: str, calls: int, **options
    ) -> tuple[float, float]:
        """Mean and standard error of a measure over the images."""
        results, start, at_once = [], time.monotonic(), args.batch_size or LIKELY
        batches = range(0, len(chosen), at_once)
        bar = tqdm(total=calls * len(batches), desc=name, disable=not sys.stderr.isatty())
        for first in batches:
            part = slice(first, first + at_once)
            x_0 = to_unit(data.items[chosen[part]].to(device))
            labels = None if y is None else y[part].to(device)
            noise_like = NoisePerImage(args.seed, range(first, first + len(x_0)))
            denoise = diffusion.denoiser(model, labels)
            with autocast(device, precision):
                results.append(measure(denoise, x_0, noise_like, done=bar.update, **options).cpu())
        bar.close()
        values = torch.cat(results)
        mean, error = values.mean().item(), values.std().item() / len(values) ** 0.5
        seconds = time.monotonic() - start
        print(f"{name}: {mean:.4f} +- {error:.4f} bits per dimension ({seconds:.0f} s)")
        return mean, error

    bound, bound_error = bits(variational_bound, "variational bound", diffusion.timesteps)
    ode, ode_error = bits(flow_likelihood, "ODE", steps, steps=steps)
    return {
        "bpd_bound": bound,
        "bpd_bound_standard_error": bound_error,
        "bpd_ode": ode,
        "bpd_ode_standard_error": ode_error,
        "bpd_ode_steps": steps,
        "bpd_num_images": len(chosen),
    }


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
