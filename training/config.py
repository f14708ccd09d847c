"""The configuration of a run: what its flags come to for its data."""

from dataset.changes import digest_of
from dataset.items import held_out_count, kind_of, shape_config, standard_deviation
from dataset.registry import DATASETS
from dataset.types import Data
from diffusion import GaussianDiffusion
from distributed import world_size
from models import DEFAULT, model_config
from training.resume import CACHE, LIMITS

# Flags that go together. One given beside them counts; classes are told where there are any.
PRESETS = {
    # 20 epochs of MNIST in nine minutes on two cores
    "fast": {"class_conditional": True, "channels": 32, "multipliers": [1], "patch_size": 4},
    # the best images after minutes to an hour there
    "laptop": {
        "class_conditional": True,
        "channels": 32,
        "multipliers": [1, 3],
        "batch_size": 64,
        "lr": 6e-3,
    },
    # for a GPU, or a night
    "quality": {"class_conditional": True, "channels": 96, "blocks": 2, "max_minutes": 480},
}
# What is natural depends on the data; measured for each.
NATURAL = {
    "images": {"batch_size": 128, "optimizer": "muon", "lr": 3e-3, "sample_interval": 1},
    "points": {"batch_size": 512, "optimizer": "adamw", "lr": 2e-3, "sample_interval": 5},
}
# Flags of the network, each for those that take it.
NETWORK = ("channels", "multipliers", "blocks", "attention_resolutions", "dropout", "patch_size")
NETWORK += ("long_skips",)
MAX_RATIO = 300  # sigma / alpha from which eps without clipping runs away (linear ends at 157)


def make_config(args, data: Data) -> dict:
    """What a checkpoint says of its run: plain values only.

    Flags that were not given become what the preset has, and then what is natural, in `args` too.

    Raises ValueError for flags that do not fit the data.
    """
    kind = kind_of(data.items.shape[1:])
    choose_preset(args, kind, len(data.classes))
    choose_natural(args, kind)
    shape, is_image = shape_config(data.items.shape[1:]), kind == "images"
    if args.flip and not is_image:
        raise ValueError("--flip mirrors images; these are points")
    flip = DATASETS[args.dataset].flip if args.flip is None else args.flip

    def chosen(*flags: str) -> dict:
        return {flag: getattr(args, flag) for flag in flags}

    args.validation = held_out_count(args.validation, len(data.items))
    prediction, sampling = natural_objective(args)
    options = {flag: getattr(args, flag) for flag in NETWORK if getattr(args, flag) is not None}
    if args.learn_sigma:
        options["learn_sigma"] = True
    if args.class_conditional:
        options["num_classes"] = len(data.classes)
        if len(data.classes) < 2:
            raise ValueError(f"--class-conditional: {args.dataset} has no classes here")
    process = {
        **chosen("schedule", "timesteps", "zero_terminal_snr", "learn_sigma", "loss_weight"),
        "prediction": prediction,
        "clip": is_image,  # points have no bounds
        "sigma_data": standard_deviation(data.items) if prediction == "edm" else 1.0,
    }
    ratio = float(GaussianDiffusion(**process).ratio[-1])
    if prediction == "eps" and not is_image and ratio > MAX_RATIO:
        raise ValueError(
            f"--prediction eps does not go with points and the schedule {args.schedule}: at its "
            f"end an error of the noise is one of the data {ratio:,.0f} times as large, and there "
            "are no bounds to clip it to; use linear or quadratic, or another prediction"
        )
    return {
        "data": {
            **chosen("dataset", "data_dir", "skip_bad_images", "fit", *CACHE),
            **shape,
            "count": len(data.items),
            "classes": data.classes,
            "digest": digest_of(data.files),
            "flip": flip,
        },
        "model": model_config(args.model, shape, args.timesteps, options),
        "diffusion": process,
        "train": {
            **chosen(*LIMITS, "batch_size", "grad_accum", "seed", "optimizer", "lr", "lr_decay"),
            **chosen("warmup_steps", "grad_clip", "ema_decay", "noise_assignment", "validation"),
            **chosen("class_conditional", "label_dropout", "grad_checkpoint", "precision"),
            **chosen("deterministic", "sample_interval", "save_interval", "save_every_steps"),
            **chosen("eval_interval"),
            **chosen("save_every_minutes", "fsdp", "keep"),
            "timestep_sampling": sampling,
            "processes": world_size(),
            "update_size": args.batch_size * args.grad_accum * world_size(),
            "total_steps": None,
        },
    }


def choose_preset(args, kind: str, classes: int) -> None:
    """Set what was not asked for to what --preset has; there may be no classes to tell."""
    if args.preset is None:
        return
    if kind == "points":
        raise ValueError("--preset is for images; these are points")
    for flag in PRESETS[args.preset].keys() - args.given:
        setattr(args, flag, PRESETS[args.preset][flag])
    if "class_conditional" not in args.given:
        args.class_conditional &= classes > 1


def choose_natural(args, kind: str) -> None:
    """Set what was not asked for to what is natural for images, or for points."""
    for flag, value in {"model": DEFAULT[kind], **NATURAL[kind]}.items():
        if getattr(args, flag) is None:
            setattr(args, flag, value)


def natural_objective(args) -> tuple[str, str]:
    """The prediction and the timestep sampling: as asked for, or as the schedule's paper does.

    Elsewhere the velocity of flow matching learned fastest, with the cosine schedule too.
    """
    prediction = "edm" if args.schedule == "edm" else "flow"
    sampling = "log-normal" if args.schedule == "edm" else "uniform"
    return args.prediction or prediction, args.timestep_sampling or sampling
