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
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from checkpoints.card import read_report
from checkpoints.averages import write_average
from checkpoints.checkpoint import load_checkpoint
from checkpoints.runs import find_checkpoint
from cli.activity import Bar, activity
from cli.sampling import GUIDANCE, OPTIONS
from checkpoints.weights import WEIGHT_KINDS, weights_sha256
from dataset.items import to_unit
from dataset.own_files import is_own_picture, require_own
from diffusion import GaussianDiffusion
from distributed import launched
from evaluation.attributes import attribute_reader
from evaluation.bits import bits_per_dimension
from evaluation.copies import RARE, find_near_copies, picture_of_pairs
from evaluation.features import classifier_for
from evaluation.generated import (
    COUNT,
    Generated,
    given_images,
    reconstructed_images,
    sampled_images,
)
from evaluation.inception import inception_figures
from evaluation.measures import Reference, measures_table, random_indices
from evaluation.plan import default_metrics, require_measurable, require_used
from evaluation.prompts import (
    GROUPS,
    check_of,
    clip_score,
    common_errors,
    confusion,
    prompt_measures,
    unreadable,
)
from evaluation.reconstruction import mean_and_error, psnr, ssim
from evaluation.real import RealData, load_real_data, subset
from evaluation.super_resolution import bicubic, compare_ways, in_low_resolution
from evaluation.two_sample import ALMOST, COARSE, compare_grey_levels, two_sample_test
from models import AUTOENCODERS
from models.tokenizer import tokenizer_of
from sampling.draw import load_judge, require_denoiser, use_text_encoder
from sampling.plan import require_untuned_network
from utils import (
    DataError,
    check_output,
    choose_device,
    kept_threads,
    save_whole,
    sides,
    size_of,
    size_text,
    use_threads,
)
from visuals.pictures import DIFFERENCE, compared, save_picture, stacked

SAY = partial(print, flush=True)
# Metrics with a picture, and how the names of these pictures end.
PICTURES = {"two-sample": "two_sample", "copies": "nearest", "reconstruction": "reconstruction"}
PICTURES |= {"super-resolution": "super_resolution"}

ERRORS = 8  # most frequent ones that are printed
SHOWN = 16  # reconstructions in a picture


@kept_threads()
def main(request: EvaluationRequest) -> int:
    require_one_process()
    if request.threads != "auto":
        use_threads(request.threads)
    if request.checkpoint:
        request.checkpoint = str(find_checkpoint(request.checkpoint, SAY))
    if request.ema_length is not None:
        with activity("averaging the weights"):
            request.checkpoint = str(write_average(Path(request.checkpoint), request.ema_length))
        print(f"averaged weights, for sample.py too: {request.checkpoint}")
    source = Path(request.checkpoint or request.samples)
    output = Path(request.output or source.parent / "metrics.json")
    check_output(output, *request.read())
    if request.output is None:
        require_own(output, is_report, "another file with --output")
    device = choose_device(request.device)

    # Load the checkpoint and the real data, and choose what to measure.
    with activity(f"loading {source}"):
        checkpoint = load_checkpoint(source) if request.checkpoint else None
    if checkpoint is not None:
        use_text_encoder(checkpoint["config"], request.text_encoder)
    encodes = checkpoint is not None and checkpoint["config"]["model"]["name"] in AUTOENCODERS
    small = checkpoint and checkpoint["config"]["model"].get("super_resolution")
    if checkpoint is not None and not encodes:
        require_denoiser(checkpoint["config"], request.checkpoint)
    real = load_real_data(request, checkpoint, progress=Bar, say=SAY)
    metrics = request.metrics or default_metrics(request, real, encodes, small, SAY)
    require_used(request, metrics, encodes, small)
    if "bpd" in metrics and checkpoint["config"]["model"].get("autoencoder"):
        raise ValueError("--metrics bpd: the bits of latents are not those of images")
    if "bpd" in metrics:
        only = ", the only measure of points," if real.train.items.ndim == 2 else ""
        require_untuned_network(checkpoint["config"], f"--metrics bpd{only}")
    print(f"{source}: {real.name}" + (f", step {checkpoint['step']:,}" if checkpoint else ""))
    report = {**description(request, source, checkpoint), "dataset": real.name}
    report |= {"compared_with": real.origin, "torch": torch.__version__}

    ours = is_report(output)  # then the pictures next to it are ours too
    for metric in PICTURES.keys() & set(metrics):
        path = picture_of(output, metric)
        require_own(path, lambda p: ours or is_own_picture(p), "another --output")

    # Sample or read the images, and measure them.
    if set(metrics) - {"bpd"}:
        require_measurable(request, metrics, real, checkpoint and checkpoint["config"])
        if request.samples:
            generated = given_images(request, real, progress=Bar, say=SAY)
        elif encodes:
            with activity("encoding and decoding images"):
                generated = reconstructed_images(request, checkpoint, real.held_out, device)
        else:
            data = real.held_out if small else real.train  # the source of the conditions
            if small:
                request.num_images = min(request.num_images or COUNT, len(data.items))
            generated = sampled_images(request, data, say=SAY)  # chooses the threads
        images = generated.sets[0]
        report |= {"num_images": len(images), **generated.record}
        if "reconstruction" in metrics:
            report["reconstruction"] = by_reconstruction(real, generated, output)
        if "super-resolution" in metrics:
            found = by_super_resolution(request, sides(small), real, generated, device, output)
            report["super_resolution"] = found
        if "classifier" in metrics:
            report["classifier"] = by_classifier(request, real, generated, device, output.parent)
        if "two-sample" in metrics:
            report["two_sample"] = by_two_samples(real, generated, device, output)
        if "prompt" in metrics:
            report["prompt"] = by_prompts(
                request, checkpoint["config"], real, generated, device, output.parent
            )
        if "copies" in metrics:
            report["copies"] = by_copies(real, images, output)
        if "inception" in metrics:
            report["inception"] = by_inception(request, real, images, device)

    # Measure the likelihood of held-out items.
    if "bpd" in metrics:
        report |= bits_per_dimension(request, checkpoint, real, device, progress=Bar, say=SAY)

    text = json.dumps(report, indent=2) + "\n"
    save_whole(output, lambda path: path.write_text(text, encoding="utf-8"))
    print(output)
    return 0


def description(request: EvaluationRequest, source: Path, checkpoint: dict | None) -> dict:
    """The entries of the report that identify the samples: file, step, seed and weights."""
    if checkpoint is None:
        return {"samples": str(source)}
    which = "model" if request.raw else "ema"
    weights = checkpoint.get(which)
    return {
        "checkpoint": str(source),
        "step": checkpoint["step"],
        "seed": request.seed,
        "weights": WEIGHT_KINDS[which],
        "weights_sha256": None if weights is None else weights_sha256({}, weights),
    }


def require_one_process() -> None:
    """Raise ValueError in a job of several processes."""
    if launched():
        raise ValueError(
            "evaluate.py runs in one process. Start sample.py --output samples.npz by torchrun, "
            "then python evaluate.py --samples samples.npz"
        )


def is_report(path: Path) -> bool:
    """Is a file a report of this command?"""
    with suppress(ValueError):
        read_report(path)
        return True
    return False


# --- measuring and printing ----------------------------------------------------------------------


def by_classifier(
    request: EvaluationRequest,
    real: RealData,
    generated: Generated,
    device: torch.device,
    folder: Path,
) -> dict:
    """Measure images in the features of a classifier."""
    classifier = classifier_for(real, folder, device, progress=Bar, say=SAY)
    with activity("measuring in the classifier's features"):
        measures = Reference(classifier, real).measure_sets(
            generated.sets, generated.labels, request.repeats, request.seed
        )
    print(
        f"\nclassifier {classifier.sha256[:12]}, accuracy {100 * classifier.accuracy:.2f} % on "
        f"the {len(real.held_out.items):,} images of the comparison ({real.origin})\n\n"
        f"{measures_table(measures)}"
    )
    return {
        "sha256": classifier.sha256,
        "accuracy": classifier.accuracy,
        **{name: measure.record() for name, measure in measures.items()},
    }


def by_reconstruction(real: RealData, generated: Generated, output: Path) -> dict:
    """Compare reconstructions with their images."""
    images, found = real.held_out.items[generated.indices], generated.sets[0]
    with activity("comparing reconstructions with their images"):
        measures = {"psnr": psnr(images, found), "ssim": ssim(images, found)}
    picture = picture_of(output, "reconstruction")
    save_picture(picture, compared(to_unit(images[:SHOWN]), to_unit(found[:SHOWN])))
    print(
        f"\nreconstructions of {len(images):,} images ({real.origin}): "
        f"PSNR {measures['psnr'].mean():.2f} dB, SSIM {measures['ssim'].mean():.4f}\n"
        f"images above reconstructions above {DIFFERENCE} times the differences: {picture}"
    )
    return {name: mean_and_error(values) for name, values in measures.items()}


def by_super_resolution(
    request: EvaluationRequest,
    size: tuple[int, int],
    real: RealData,
    generated: Generated,
    device: torch.device,
    output: Path,
) -> dict:
    """Compare enlarged images, and two baselines for enlarging them, with their originals."""
    originals = real.held_out.items[generated.indices]
    small = in_low_resolution(originals, size)
    options = {name: request.default(name) for name in request.named(group=OPTIONS)}
    options |= {name: request.default(name) for name in request.named(group=GUIDANCE)}
    options |= {"sampler": "ddim", "steps": 1, "spacing": None, "repeats": 1}
    options |= {"given": request.given - options.keys()}
    one_step = sampled_images(replace(request, **options), real.held_out, say=lambda line: None)
    ways = {
        "bicubic": [bicubic(small, originals.shape[2:])],
        "mean prediction (one step)": one_step.sets,
        "samples": generated.sets,
    }
    distance = floor = sha256 = None
    if len(real.train.classes) > 1:
        classifier = classifier_for(real, output.parent, device, progress=Bar, say=SAY)
        distance, sha256 = Reference(classifier, real).distance, classifier.sha256
        indices = random_indices(len(real.train.items), len(originals), "floor", request.seed)
        floor = distance(real.train.items[indices])
    with activity("comparing enlarged images with their originals"):
        found = compare_ways(originals, ways, distance)
    picture = picture_of(output, "super-resolution")
    rows = [to_unit(images[:SHOWN]) for images in (*(w[0] for w in ways.values()), originals)]
    save_picture(picture, stacked(small[:SHOWN], *rows))
    print(f"\n{len(originals):,} images ({real.origin}), from {size_text(size_of(*size))} pixels\n")
    for name, measures in found.items():
        values = ", ".join(f"{key} {mean(m.values):.4g}" for key, m in measures.items())
        print(f"  {name:<28} {values}")
    if floor is not None:
        print(f"  {'training images':<28} classifier_fid {floor:.4g}")
    print(f"from low resolution, at the top, to the originals: {picture}")
    report = {name: {k: m.values for k, m in each.items()} for name, each in found.items()}
    return {**report, "floor": floor, "sha256": sha256, "size": list(size)}


def by_two_samples(
    real: RealData, generated: Generated, device: torch.device, output: Path
) -> dict:
    """Train networks to tell images from real ones, and compare grey levels."""
    test = two_sample_test(generated.sets, real, device, Bar)
    levels = compare_grey_levels(torch.cat(generated.sets), real.train.items)
    picture = picture_of(output, "two-sample")
    save_picture(picture, test.picture())
    print(
        f"\ntwo-sample test: 0.5 if a network cannot tell images from real ones, 1 if it always "
        f"can\n\n{measures_table(test.measures)}\n\n"
        f"almost background (1 to {ALMOST} grey levels from {levels.background}): "
        f"{100 * levels.almost_background:.2f} % of the pixels; training images: "
        f"{100 * levels.almost_background_of_real:.2f} %\n"
        f"grey levels: {100 * levels.difference:.2f} % of the pixels would have to change\n"
        f"the most and the least real-looking images, in all their levels and in {COARSE}: "
        f"{picture}"
    )
    figures = {name: measure.record() for name, measure in test.measures.items()}
    count = {"num_images": len(generated.sets[0])}
    return {**figures, **count, "grey_levels": levels._asdict()}


def by_prompts(
    request: EvaluationRequest,
    config: dict,
    real: RealData,
    generated: Generated,
    device: torch.device,
    folder: Path,
) -> dict:
    """Measure whether samples show what their captions say: training and held-out captions."""
    reader = attribute_reader(real, folder, device, progress=Bar, say=SAY)
    check = check_of(real.name, config["data"])
    worst = min(reader.accuracy, key=reader.accuracy.get)
    print(
        f"\nattributes are read by {reader.sha256[:12]}: right on "
        f"{100 * min(reader.accuracy.values()):.2f} % ({worst}) to "
        f"{100 * max(reader.accuracy.values()):.2f} % of {len(real.held_out.items):,} images "
        f"({real.origin})"
    )
    left_out = unreadable(check, reader, real.held_out)
    if left_out:
        named = ", ".join(f"{name} ({100 * value:.1f} %)" for name, value in left_out.items())
        print(f"left out, because they cannot be read from real images reliably: {named}")
    parts = {"training captions": (real.train, generated)}
    parts[f"held-out captions ({real.origin})"] = (
        real.held_out,
        sampled_images(request, real.held_out, say=SAY),
    )
    report = {"reader": reader.sha256, "accuracy_of_reader": reader.accuracy}
    report["left_out"] = left_out
    if request.clip_score:
        path = str(find_checkpoint(request.clip_score, SAY))
        clip, clip_config = load_judge("clip", path, config, device)
        diffusion = GaussianDiffusion(**clip_config["diffusion"]).to(device)
        if clip_config["model"].get("text_width"):
            use_text_encoder(clip_config, request.text_encoder)
        tokenizer = tokenizer_of(clip_config)
    for name, (data, drawn) in parts.items():
        with activity(f"reading the pictures of {name}"):
            measures, by_name = prompt_measures(
                check, reader, data, drawn.indices, drawn.sets, left_out, GROUPS.get(real.name)
            )
        if request.clip_score:
            chosen = subset(data, drawn.indices)
            captions = tokenizer.condition(chosen.captions)
            with activity(f"comparing the pictures of {name} with their captions"):
                measures["clip_score"] = clip_score(
                    clip, diffusion, captions, drawn.sets, chosen.items
                )
        print(f"\n{name}\n{measures_table(measures, 'real images')}\n{names_table(by_name)}")
        confused = {}
        if real.name == "avatars":
            style, chosen = config["data"]["avatar_style"], subset(data, drawn.indices)
            images = torch.cat(drawn.sets)
            read, _ = reader.read(images)
            confused = confusion(list(chosen.captions) * len(drawn.sets), read, style)
            confused = {what: rows for what, rows in confused.items() if what not in left_out}
            for what, said, shown, number, of in common_errors(confused, ERRORS):
                print(f"{what}: {said} is drawn as {shown} in {number} of {of}")
        key = name.split(" ")[0].replace("-", "_")
        report[key] = {each: measure.record() for each, measure in measures.items()}
        report[key]["confusion"] = confused
        report[key]["by_attribute"] = {each: list(pair) for each, pair in by_name.items()}
    return report


def names_table(by_name: dict[str, tuple[float, float]]) -> str:
    """The accuracy of each attribute: of samples, and of real images in brackets."""
    return "\n".join(
        f"  {name:<24} {100 * value:6.2f} % ({100 * floor:.2f} %)"
        for name, (value, floor) in sorted(by_name.items(), key=lambda item: item[1][0])
    )


def by_copies(real: RealData, images: Tensor, output: Path) -> dict:
    """Search images for near-copies of training images, and write a picture of the closest."""
    with activity("searching for near-copies"):
        found = find_near_copies(images, real.train.items, real.held_out.items)
    picture = picture_of(output, "copies")
    save_picture(picture, picture_of_pairs(images, real.train.items, found))
    print(
        f"\nnear-copies: {100 * found.fraction:.2f} % of the images are closer to a training image "
        f"than {100 * (1 - RARE):.0f} % of held-out images are\n"
        f"the ten closest, each above its training image: {picture}"
    )
    return found.record()


def picture_of(output: Path, metric: str) -> Path:
    """The path of a metric's picture, next to the report."""
    return output.with_name(f"{output.stem}_{PICTURES[metric]}.png")


def by_inception(
    request: EvaluationRequest, real: RealData, images: Tensor, device: torch.device
) -> dict:
    """Measure images in Inception's features, or report why this is not possible."""
    print(f"\nInception: {len(images):,} images and {len(real.held_out.items):,} held-out ones")
    try:
        with activity("measuring in Inception's features"):
            figures = inception_figures(images, real, Path(request.inception_weights), device)
    except DataError as error:
        print(f"evaluate.py: inception is left out: {error}", file=sys.stderr)
        return {"left_out": str(error)}
    for name, value in figures.items():
        print(f"{name}: {value:.4f}" if isinstance(value, float) else f"{name}: {value}")
    return figures


if __name__ == "__main__":
    sys.exit(run(main, REQUEST))
