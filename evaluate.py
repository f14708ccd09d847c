"""Measure a trained model."""

from flags import Parser, add_checkpoint_flags, add_runtime_flags, number, run


METRICS = ["bpd"]
FOLDER = ("skip_bad_images", "fit", "cache_dir", "cache_limit")  # how a folder was read in training


# fmt: off
def make_parser() -> Parser:
    parser = Parser(
        "Measure a trained model. bpd: bits per dimension of held-out images, by the variational "
        "bound and by the probability-flow ODE.",
        [
            "python evaluate.py --checkpoint outputs/model_final.pt --metrics bpd",
            "python evaluate.py --checkpoint outputs/model_final.pt --metrics bpd --num-images 256",
        ],
    )
    what = add_checkpoint_flags(parser)
    what.add_argument("--metrics", choices=METRICS, nargs="+", default=["bpd"],
                      help="what to measure")
    what.add_argument("--num-images", type=number(int, 2), default=32, metavar="N",
                      help="images of the data set to measure on, chosen by the seed")
    what.add_argument("--data-dir", metavar="DIR",
                      help="where the data set is (default: where the model was trained on it)")
    how = parser.add_argument_group("how")
    how.add_argument("--steps", type=number(int, 2), default=100, metavar="N",
                     help="steps of the ODE, at most T; the bound takes all T")
    how.add_argument("--batch-size", type=number(int, 1), default=32, metavar="N",
                     help="images that are computed at once")
    add_runtime_flags(parser, "fp32", "fp32 is what a likelihood needs")
    output = parser.add_argument_group("output")
    output.add_argument("--output", metavar="FILE",
                        help="the figures (default: metrics.json beside the checkpoint)")
    return parser


# fmt: on


def parse_args(argv=None):
    return make_parser().parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports below, which take seconds

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from data import DATASETS, Data, epoch_order, item_shape, load_dataset, to_unit
from diffusion import pick
from likelihood import flow_likelihood, variational_bound
from training.checkpoint import load_checkpoint, restore
from utils import (
    NoisePerImage,
    autocast,
    check_writable,
    choose_device,
    choose_precision,
    describe,
    save_whole,
)


def main(args) -> int:
    output = Path(args.output or Path(args.checkpoint).parent / "metrics.json")
    check_writable(output.parent)
    device = choose_device(args.device)
    precision = choose_precision(args.precision, device)
    checkpoint = load_checkpoint(args.checkpoint)
    config = checkpoint["config"]
    model, diffusion = restore(checkpoint, device, raw=args.raw)
    steps = min(args.steps, diffusion.timesteps)
    data, split = held_out(config, args.data_dir)
    chosen = epoch_order(len(data.items), args.seed, 0)[: args.num_images]
    y = data.labels[chosen] if config["model"].get("num_classes") else None
    print(f"{args.checkpoint}: {config['data']['dataset']}, step {checkpoint['step']:,}")
    print(f"{len(chosen)} items of the {split} split, {describe(device, precision)}", flush=True)

    def bits(
        measure: Callable[..., Tensor], name: str, calls: int, **options
    ) -> tuple[float, float]:
        """Mean and standard error of a measure over the images."""
        results, start = [], time.monotonic()
        batches = range(0, len(chosen), args.batch_size)
        bar = tqdm(total=calls * len(batches), desc=name, disable=not sys.stderr.isatty())
        for first in batches:
            part = slice(first, first + args.batch_size)
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

    figures = {}
    if "bpd" in args.metrics:
        bound, bound_error = bits(variational_bound, "variational bound", diffusion.timesteps)
        ode, ode_error = bits(flow_likelihood, "ODE", steps, steps=steps)
        figures |= {
            "bpd_bound": bound,
            "bpd_bound_standard_error": bound_error,
            "bpd_ode": ode,
            "bpd_ode_standard_error": ode_error,
            "bpd_ode_steps": steps,
        }
    figures |= {
        "checkpoint": str(args.checkpoint),
        "step": checkpoint["step"],
        "dataset": config["data"]["dataset"],
        "split": split,
        "num_images": len(chosen),
        "seed": args.seed,
    }
    text = json.dumps(figures, indent=2) + "\n"
    save_whole(output, lambda partial: partial.write_text(text, encoding="utf-8"))
    print(output)
    return 0


def held_out(config: dict, data_dir: str | None) -> tuple[Data, str]:
    """Images that the model was not trained on, where its data set has some; and the split."""
    trained = config["data"]
    source = pick(DATASETS, trained["dataset"], "dataset")
    split = "test" if source.has_test else "train"
    data = load_dataset(
        trained["dataset"],
        data_dir or trained["data_dir"],
        image_size=trained.get("image_size"),
        split=split,
        **{key: trained[key] for key in FOLDER if key in trained},
    )
    if data.note:
        print(data.note)
    if data.items.shape[1:] != item_shape(trained):
        has, wants = (" x ".join(map(str, s)) for s in (data.items.shape[1:], item_shape(trained)))
        raise ValueError(f"the data's shape is {has}, that of the checkpoint's network {wants}")
    if config["model"].get("num_classes") and data.classes != trained["classes"]:
        raise ValueError("the data has other classes than the checkpoint was trained with")
    if not source.has_test:
        print(f"{trained['dataset']} has no test split: these are images that the model has seen")
    return data, split


if __name__ == "__main__":
    sys.exit(run(main, ARGS))
