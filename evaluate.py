"""Measure generated images: samples of a trained model, or given images.

python evaluate.py --checkpoint outputs/model_final.pt
python evaluate.py --samples samples.npz --dataset mnist
"""

from cli.evaluation import EVALUATE, EvaluationRequest
from cli.process import run

if __name__ == "__main__":
    REQUEST = EVALUATE.parse()  # before the imports below, which take seconds

import json
import sys
import time
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
from cli.sampling import SamplerFlags, SamplingRequest
from conditions import label_condition
from sampling.draw import SamplingJob, draw
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
    check_writable,
    choose_device,
    choose_precision,
    describe,
    save_whole,
)

DRAWN = 2000  # images of a set by default
LIKELY = 32  # images of bits per dimension by default
FOLDER = ("skip_bad_images", "fit", "cache_dir", "cache_limit")  # how a folder was read in training

BAR = partial(tqdm, disable=None)  # none off a terminal


def main(request: EvaluationRequest) -> int:
    source = Path(request.checkpoint or request.samples)
    output = Path(request.output or source.parent / "metrics.json")
    if launched():
        raise ValueError(
            "evaluate.py is for one process: let torchrun start sample.py with --output "
            "samples.npz, and measure those (--samples samples.npz)"
        )
    check_writable(output.parent)
    device = choose_device(request.device)
    checkpoint = load_checkpoint(source) if request.checkpoint else None
    real = compared_with(request, checkpoint)
    metrics = request.metrics or usual(request, real)
    require_used(request, metrics)
    report = {"checkpoint" if checkpoint else "samples": str(source)}
    if checkpoint:
        which = "model" if request.raw else "ema"
        report |= {"step": checkpoint["step"], "seed": request.seed, "weights": WEIGHT_KINDS[which]}
        there = which in checkpoint
        report["weights_sha256"] = weights_sha256({}, checkpoint[which]) if there else None
    report |= {"dataset": real.name, "compared_with": real.what, "torch": torch.__version__}
    print(f"{source}: {real.name}" + (f", step {checkpoint['step']:,}" if checkpoint else ""))
    if set(metrics) - {"bpd"}:
        require_enough(request, metrics, real)
        sets, labels, how = generated(request, real, source)
        report |= {"num_images": len(sets[0]), **how}
        if "classifier" in metrics:
            report["classifier"] = by_classifier(request, real, sets, labels, device, output.parent)
        if "copies" in metrics:
            report["copies"] = by_copies(real, sets[0], output)
        if "inception" in metrics:
            report["inception"] = by_inception(request, real, sets[0], device)
    if "bpd" in metrics:
        report |= likelihood(request, checkpoint, real, device)
    text = json.dumps(report, indent=2) + "\n"
    save_whole(output, lambda partial: partial.write_text(text, encoding="utf-8"))
    print(output)
    return 0


# --- real images ---------------------------------------------------------------------------------


def compared_with(request, checkpoint: dict | None) -> Real:
    """The data that a checkpoint was trained on, or that --dataset names."""
    validation, seed = None, request.seed
    config = {"dataset": request.dataset, "data_dir": "data", "image_size": request.image_size}
    if checkpoint:
        config, train = checkpoint["config"]["data"], checkpoint["config"]["train"]
        validation, seed = train["validation"], train["seed"]
    data_dir = request.data_dir or config["data_dir"]
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
    if request.split == "validation" and validation == 0:
        raise ValueError("--split validation: this run held nothing out of training")
    test = partial(load, split="test") if request.split == "test" else None
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


def usual(request, real: Real) -> list[str]:
    """What is measured where nothing is asked for."""
    if kind_of(real.shape) == "points":
        return ["bpd"]
    metrics = ["classifier", "copies"] if len(real.train.classes) > 1 else ["copies"]
    if "classifier" not in metrics:
        print(f"{real.name} has no classes to train a classifier on: its figures are left out")
    return metrics + (["inception"] if request.inception_weights else [])


def require_used(request: EvaluationRequest, metrics: list[str]) -> None:
    """Raise a ValueError for a flag that has no effect on what is measured."""
    unused = set() if "bpd" in metrics else set(request.named(use="likelihood"))
    if metrics == ["bpd"]:
        unused = set(request.named(use="drawing"))
    if unused := unused & request.given:
        flag = min(unused).replace("_", "-")
        raise ValueError(f"--{flag} has no effect on --metrics {' '.join(metrics)}")


def require_enough(request, metrics: list[str], real: Real) -> None:
    """Raise a ValueError for what cannot be measured, before time is spent on it."""
    if kind_of(real.shape) == "points":
        raise ValueError("these are points: --metrics bpd measures them, and train.py at its end")
    if "classifier" not in metrics:
        return
    if request.class_id is not None:
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
    if request.num_images is not None and request.num_images <= NEIGHBOURS_OF_DENSITY:
        raise ValueError(
            f"--num-images {request.num_images}: the classifier's figures need more than "
            f"{NEIGHBOURS_OF_DENSITY}"
        )


# --- generated images ----------------------------------------------------------------------------


def generated(request, real: Real, source: Path) -> tuple[list[Tensor], Tensor | None, dict]:
    """Sets of uint8 images (N, C, H, W), the classes (N,) that were asked for, and how they came
    to be."""
    if request.samples:
        images, how = load_images(source, real.shape, BAR)
        if len(images) <= NEIGHBOURS_OF_DENSITY:
            raise DataError(f"{source} holds {len(images)} images, which is too few to compare")
        if request.num_images and request.num_images > len(images):
            raise ValueError(f"--num-images {request.num_images}: there are {len(images)}")
        images = images[chosen(len(images), request.num_images or len(images), "samples")]
        print(f"{len(images):,} images, {how}", flush=True)
        return [images], None, {"read_as": how}

    shared = request.chosen(SamplerFlags.named(use="drawing"))
    wanted = SamplingRequest(
        **shared,
        checkpoint=request.checkpoint,
        raw=request.raw,
        batch_size=request.batch_size,
        num_images=request.num_images or DRAWN,
        precision=request.precision or "auto",
        device=request.device,
        seed=request.seed,
        given=request.given,
    )
    job = SamplingJob(wanted)
    plan, seeds = job.plan, list(range(request.seed, request.seed + request.repeats))
    plan.use_class_frequencies(real.train.labels)
    how = {key: plan.chosen[key] for key in ("sampler", "steps", "spacing")}
    how |= {"seeds": seeds, "precision": job.precision, "guidance_scale": request.guidance_scale}
    print(
        f"drawing {request.repeats} x {plan.count:,} images: {plan.name}, {how['steps']} steps, "
        f"{describe(job.device, job.precision)}",
        flush=True,
    )
    sets, start = [], time.monotonic()
    for seed in seeds:
        job.request.seed = seed
        sets.append(draw(job).items)
    how["seconds_of_a_set"] = (time.monotonic() - start) / request.repeats
    return sets, plan.y, how


# --- by features ---------------------------------------------------------------------------------


def by_classifier(request, real: Real, sets, labels, device, folder: Path) -> dict:
    judge = judge_for(real, folder, device, progress=BAR)
    reference = Reference(judge, real)
    measures = reference.measures(sets, labels, request.repeats, request.seed)
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


def by_inception(request, real: Real, images: Tensor, device: torch.device) -> dict:
    """The figures of a set; or why they cannot be had, and the rest of the report goes on."""
    print(f"\nInception: {len(images):,} images and {len(real.held_out.items):,} held-out ones")
    weights = Path(request.inception_weights)
    try:
        found = inception_figures(images, real.held_out.items, weights, device, real.what)
    except DataError as error:
        print(f"evaluate.py: inception is left out: {error}", file=sys.stderr)
        return {"left_out": str(error)}
    for name, value in found.items():
        print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
    return found


# --- likelihood ----------------------------------------------------------------------------------


def likelihood(request, checkpoint: dict, real: Real, device: torch.device) -> dict:
    """Bits per dimension of held-out images, by the bound and by the ODE."""
    precision = choose_precision(request.precision or "fp32", device)
    model, diffusion = restore(checkpoint, device, raw=request.raw)
    steps = min(request.ode_steps, diffusion.timesteps)
    data = real.held_out
    chosen = epoch_order(len(data.items), request.seed, 0)[: request.num_images or LIKELY]
    y = data.labels[chosen] if checkpoint["config"]["model"].get("num_classes") else None
    print(f"{len(chosen)} items ({real.what}), {describe(device, precision)}", flush=True)

    def bits(
        measure: Callable[..., Tensor], name: str, calls: int, **options
    ) -> tuple[float, float]:
        """Mean and standard error of a measure over the images."""
        results, start, at_once = [], time.monotonic(), request.batch_size or LIKELY
        batches = range(0, len(chosen), at_once)
        bar = tqdm(total=calls * len(batches), desc=name, disable=not sys.stderr.isatty())
        for first in batches:
            part = slice(first, first + at_once)
            x_0 = to_unit(data.items[chosen[part]].to(device))
            labels = None if y is None else y[part].to(device)
            noise_like = NoisePerImage(request.seed, range(first, first + len(x_0)))
            denoise = diffusion.denoiser(model, label_condition(labels), precision=precision)
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
    sys.exit(run(main, REQUEST))
