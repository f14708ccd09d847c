"""The configuration of a run, built from its flags and its data set."""

from dataclasses import replace

from checkpoints.consistency import CUSTOM
from cli.training import RunConfig
from dataset.changes import digest_of
from dataset.image_files import printable
from dataset.items import held_out_count, kind_of, shape_config, standard_deviation
from dataset.registry import DATASETS
from dataset.types import Data
from diffusion import GaussianDiffusion
from distributed import world_size
from models import (
    AUTOENCODERS,
    DEFAULT,
    MODELS,
    NOT_DENOISERS,
    arguments_of,
    model_config,
)
from models.autoencoder import latent_shape
from training.conditioning import caption_config, saved_caption_config

# Flags that go together. Explicit flags override them.
PRESETS = {
    # an epoch of MNIST in half a minute on two cores
    "fast": {
        "channels": 32,
        "multipliers": [1],
        "patch_size": 4,
        "efficient": False,
    },
    # the best images after minutes to an hour on two cores
    "laptop": {
        "channels": 32,
        "multipliers": [1, 3],
        "efficient": False,
        "batch_size": 64,
        "lr": 6e-3,
    },
    # for a GPU, or a night
    "quality": {
        "channels": 96,
        "multipliers": [1, 2],
        "blocks": 2,
        "efficient": False,
        "max_minutes": 480,
    },
}
# Defaults that depend on the kind of data; measured for each.
DEFAULTS = {
    "images": {"batch_size": 128, "optimizer": "muon", "lr": 3e-3, "sample_interval": 1},
    "points": {"batch_size": 512, "optimizer": "adamw", "lr": 2e-3, "sample_interval": 5},
}
EPOCHS = {"images": 15, "points": 20}  # length of a new run without a limit
# Arguments of networks and of the process that no flag has: they follow from other choices.
DERIVED = {"num_classes", "learn_sigma", "vocabulary_size", "caption_length", "text_width"}
DERIVED |= {"timesteps"}
KEPT = ("clip", "betas")  # choices of an imported process that no flag has
MAX_RATIO = 300  # sigma / alpha from which eps without clipping diverges (linear ends at 157)


def with_defaults(flags: RunConfig, data: Data, *, resumed: bool = False) -> RunConfig:
    """The flags with the preset and the defaults for their data filled in.

    A resumed run keeps its length. Raises ValueError for flags that do not fit the data.
    """
    kind, found = kind_of(data.items.shape[1:]), {}
    if flags.preset is not None:
        if kind == "points":
            raise ValueError("--preset is for images, and this data set is points")
        preset = PRESETS[flags.preset]
        found |= {name: value for name, value in preset.items() if name not in flags.given}
    for name, value in {"model": DEFAULT[kind], **DEFAULTS[kind]}.items():
        if getattr(flags, name) is None:
            found.setdefault(name, value)
    limits = flags.named(limit=True)
    if not resumed and not any(found.get(name) or getattr(flags, name) for name in limits):
        found["epochs"] = EPOCHS[kind]
    model = found.get("model", flags.model)
    arguments = {} if model == CUSTOM else arguments_of(model)
    if model in NOT_DENOISERS:
        require_used(flags, model)
    if flags.text_conditional is None:
        found["text_conditional"] = bool(data.captions) and "caption_length" in arguments
        found["text_conditional"] |= model == "clip"  # make_config reports missing captions
    if flags.class_conditional is None:
        able = "num_classes" in arguments and not found.get("text_conditional")
        found["class_conditional"] = kind == "images" and able and len(data.classes) > 1
        found["class_conditional"] |= model == "classifier"  # and missing classes
    conditional = [
        found.get(name, getattr(flags, name)) for name in ("class_conditional", "text_conditional")
    ]
    if "label_dropout" in flags.given and not any(conditional):
        raise ValueError("--label-dropout has no effect on an unconditional network")
    if flags.text_encoder is not None and not conditional[1]:
        raise ValueError("--text-encoder has no effect on a network that takes no captions")
    edm = flags.schedule == "edm"  # with other schedules, flow learns fastest
    if flags.prediction is None:
        found["prediction"] = "edm" if edm else "flow"
    if flags.timestep_sampling is None:
        found["timestep_sampling"] = "log-normal" if edm else "uniform"
    if flags.flip is None:
        # captions may mention left and right
        captioned = found.get("text_conditional", flags.text_conditional)
        found["flip"] = DATASETS[flags.dataset].flip and not captioned and flags.latents is None
    elif flags.flip and kind == "points":
        raise ValueError("--flip mirrors images, and this data set is points")
    if "feature_loss" in flags.given and model not in AUTOENCODERS:
        raise ValueError("--feature-loss has no effect without --model autoencoder")
    if flags.feature_loss and len(data.classes) < 2:
        raise ValueError("--feature-loss needs data with classes, for a classifier's features")
    if flags.latents is not None and flags.flip:
        raise ValueError("--flip mirrors images, and mirrored latents are not those of an image")
    found["validation"] = held_out_count(flags.validation, len(data.items))
    return replace(flags, **found)


def require_used(flags: RunConfig, model: str) -> None:
    """Raise ValueError for flags that have no effect on a network that denoises nothing."""
    unused = ["prediction", "loss_weight", "learn_sigma", "clip_loss", "label_dropout"]
    unused += ["class_conditional", "text_conditional", "noise_assignment"]
    if model in AUTOENCODERS:  # trained without noise
        unused += ["timesteps", "schedule", "zero_terminal_snr", "timestep_sampling"]
    for name in unused:
        if name in flags.given:
            raise ValueError(f"--{name.replace('_', '-')} has no effect on --model {model}")


def make_config(
    flags: RunConfig, data: Data, saved: dict | None = None, autoencoder: dict | None = None
) -> dict:
    """The configuration that checkpoints keep: plain values only.

    Args:
        flags: with their defaults filled in, by `with_defaults`.
        data: the data set.
        saved: the configuration of the run that is resumed, or None.
        autoencoder: the configuration of the network of --latents, or None.

    Raises ValueError for flags that do not fit the data.
    """
    if saved is not None:
        autoencoder = saved["model"].get("autoencoder")
    shape = shape_config(data.items.shape[1:])
    options = flags.chosen(flags.named(section="model"))
    name = options.pop("model")
    unnamed = {} if saved is None else without_flags(flags, saved["model"], name, shape)
    options = unnamed | {key: value for key, value in options.items() if value is not None}
    if flags.learn_sigma:
        options["learn_sigma"] = True
    if flags.tune == "meanflow":
        options["average_velocity"] = True
    if flags.class_conditional:
        options["num_classes"] = len(data.classes)
        if len(data.classes) < 2:
            raise ValueError(f"--class-conditional: {why_no_classes(flags, data.classes)}")
    of_captions = {}
    if flags.text_conditional:
        require_captions(flags, data)
        if saved and saved["model"].get("caption_length"):
            of_captions, sizes = saved_caption_config(saved)
            if flags.text_encoder is not None and not sizes.get("text_width"):
                raise ValueError("--text-encoder: this run encodes its captions itself")
        else:
            of_captions, sizes = caption_config(
                data, flags.validation, flags.seed, flags.text_encoder
            )
        options |= sizes
    of_data = flags.chosen(flags.named(section="data"))
    of_data.pop("image_size")  # `shape` has it
    process = process_config(flags, data, latents=autoencoder is not None)
    if saved is not None:
        process |= {key: saved["diffusion"][key] for key in KEPT if key in saved["diffusion"]}
    return {
        "data": {
            **of_data,
            **shape,
            "count": len(data.items),
            "classes": data.classes,
            "class_counts": data.class_counts,
            "digest": digest_of(data.files),
            **of_captions,
        },
        "model": network_config(name, shape, flags.timesteps, options, autoencoder),
        "diffusion": process,
        "train": train_config(flags),
    }


def without_flags(flags: RunConfig, saved: dict, name: str, shape: dict) -> dict:
    """The arguments of a saved network that have no flag; imported networks may have some.

    Args:
        saved: the configuration of the network.
        name, shape: the network of the run, and the shape of its data, as a configuration has it.
    """
    if saved["name"] != name:
        return {}
    others = arguments_of(name).keys() - shape.keys() - DERIVED
    others -= set(flags.named(section="model"))
    return {key: saved[key] for key in others & saved.keys()}


def network_config(
    name: str, shape: dict, timesteps: int, options: dict, autoencoder: dict | None
) -> dict:
    """The configuration of a network for items, or for the latents of an autoencoder.

    Raises ValueError for a network that is not for latents.
    """
    if autoencoder is None:
        return model_config(name, shape, timesteps, options)
    if name in NOT_DENOISERS:
        raise ValueError(f"--latents has no effect on --model {name}")
    found = model_config(name, shape_config(latent_shape(autoencoder)), timesteps, options)
    return {**found, "autoencoder": autoencoder}


def why_no_classes(flags: RunConfig, classes: list[str]) -> str:
    """A message: why a data set has no classes to choose from, and what to do."""
    found = f"only one class here, {printable(classes[0])}" if classes else "no classes here"
    if flags.dataset != "folder":
        return f"{flags.dataset} has {found}"
    way = f"its classes are the subfolders of {flags.data_dir}, if all images lie in them"
    return f"folder has {found}; {way}"


def require_captions(flags: RunConfig, data: Data) -> None:
    """Raise ValueError if there are no captions, or if the network takes none."""
    if not data.captions:
        way = "" if flags.dataset != "folder" else ": add --captions or --caption-from-path"
        what = "--model clip" if flags.model == "clip" else "--text-conditional"
        raise ValueError(f"{what}: {flags.dataset} has no captions here{way}")
    if "caption_length" not in arguments_of(flags.model):
        fitting = [name for name in MODELS if "caption_length" in arguments_of(name)]
        raise ValueError(
            f"--text-conditional: the model {flags.model} takes no captions; "
            f"{' and '.join(fitting)} do"
        )


def train_config(flags: RunConfig) -> dict:
    """The section "train" of the configuration."""
    return {
        **flags.chosen(flags.named(section="train")),
        "processes": world_size(),
        "update_size": flags.batch_size * flags.grad_accum * world_size(),
        "total_steps": None,  # set by RunLength
        "decay_from": None,  # set by RunLength: step and progress of the last correction
        "thread_count": None,  # chosen for --threads
        "number_format": None,  # chosen for --precision: fp32, bf16 or fp16
        "feature_classifier": None,  # SHA-256 of the classifier of --feature-loss
        "pairs_seed": None,  # seed of the noise of --pairs
        "pairs_sha256": None,  # of the file of --pairs
        "student_steps": None,  # sampling steps that --tune distill has reached
    }


def process_config(flags: RunConfig, data: Data, *, latents: bool = False) -> dict:
    """The arguments of the diffusion process. Raises ValueError for an unstable choice.

    Latents have unit variance and no bounds.
    """
    is_image = kind_of(data.items.shape[1:]) == "images" and not latents
    edm = flags.prediction == "edm"
    sigma_data = standard_deviation(data.items) if edm and not latents else 1.0
    if not sigma_data > 0:
        raise ValueError(
            "all values of the data are equal, and --prediction edm, which --schedule edm uses, "
            "divides by their standard deviation: use another schedule and prediction"
        )
    process = {
        **flags.chosen(flags.named(section="diffusion")),
        "clip": is_image,  # points have no bounds
        "sigma_data": sigma_data,
    }
    if flags.clip_loss is None:
        process["clip_loss"] = is_image and flags.loss_weight != "vlb"
    ratio = float(GaussianDiffusion(**process).ratio[-1])
    if flags.prediction == "eps" and not is_image and ratio > MAX_RATIO:
        what = "latents" if latents else "points"
        raise ValueError(
            f"--prediction eps is unstable for {what} with --schedule {flags.schedule}: at its end "
            f"an error of the noise is one of the data {ratio:,.0f} times as large, without bounds "
            "to clip it to. Use linear or quadratic, or another prediction"
        )
    return process
