"""The teacher of a tuning: the trained network that a run of --tune starts from."""

from dataclasses import replace

from torch import nn

from checkpoints.checkpoint import config_differences, load_checkpoint, restore
from checkpoints.consistency import CUSTOM
from cli.declare import option
from cli.training import RunConfig
from models import NOT_DENOISERS, with_later_arguments
from objectives import has_boundary, starts_from_noise
from sampling.draw import require_guide
from training.resume import network_and_process, with_saved_flags
from training.trainer import Trainer

# Choices of the training that a tuned network inherits from its teacher; flags override them.
# The seed and the number of held-out items decide which items are held out.
INHERITED = ("class_conditional", "text_conditional", "timestep_sampling", "batch_size")
INHERITED += ("seed", "validation")


# Flags without an effect, by --tune.
UNUSED = {
    "consistency": ("pairs", "teacher_steps", "loss_weight"),
    "distill": ("pairs",),
    "meanflow": ("pairs", "teacher_steps", "stage_steps", "loss_weight"),
    "reflow": ("teacher_guidance", "teacher_guide", "teacher_steps", "stage_steps", "flip")
    + ("noise_assignment",),
}


def require_effect(flags: RunConfig) -> None:
    """Raise ValueError for a flag that has no effect with this --tune."""
    unused = UNUSED.get(flags.tune, ())
    if flags.teacher is not None and flags.tune != "reflow":
        unused += ("label_dropout",)
    for name in flags.given & set(unused):
        raise ValueError(f"{option(name)} has no effect with --tune {flags.tune}")


def load_teacher(path: str) -> dict:
    """The checkpoint of --teacher. Raises ValueError for one that cannot be tuned."""
    checkpoint = load_checkpoint(path)
    config = checkpoint["config"]
    if (name := config["model"]["name"]) == CUSTOM:
        raise ValueError(f"--teacher {path} is a network of your own, which train.py cannot build")
    if name in NOT_DENOISERS:
        raise ValueError(f"--teacher {path} contains the network {name}, which draws nothing")
    if config["model"].get("super_resolution"):
        raise ValueError(f"--teacher {path} enlarges images; --tune is for models that draw them")
    if tuned := config["train"].get("tune"):
        raise ValueError(f"--teacher {path} is tuned already (--tune {tuned}): give its teacher")
    return checkpoint


def with_teacher(flags: RunConfig, teacher: dict) -> RunConfig:
    """The flags of a new run, with the data, the network and the process of its teacher.

    Raises ValueError if --dataset or --tune does not fit the teacher.
    """
    config, train = teacher["config"], teacher["config"]["train"]
    if "dataset" in flags.given and flags.dataset != config["data"]["dataset"]:
        raise ValueError(
            f"--teacher {flags.teacher} has learned {config['data']['dataset']}, and --dataset is "
            f"{flags.dataset}"
        )
    shared = {name: train[name] for name in INHERITED if train.get(name) is not None}
    if flags.tune == "reflow":  # the pairs are other items
        shared.pop("validation", None)
    own = flags.chosen([n for n in flags.named(section="train") if n not in INHERITED])
    flags = replace(with_saved_flags(flags, {**config, "train": shared}), **own)
    if flags.tune == "reflow":
        if config["model"].get("caption_length") or config["model"].get("autoencoder"):
            raise ValueError("--tune reflow is not for networks of captions or of latents")
        flags.flip = False  # the mirrored noise leads to another image
    else:
        flags.label_dropout = 0.0  # the network itself is never guided
    if flags.flip and config["model"].get("autoencoder"):
        raise ValueError("--flip mirrors images, and mirrored latents are not those of an image")
    return flags


def require_tunable(flags: RunConfig, config: dict, teacher: dict | None) -> None:
    """Raise ValueError for a run of --tune with a network or process that cannot be tuned.

    With a teacher, network and process must be the teacher's.
    """
    if flags.tune is None:
        return
    if flags.tune == "distill" and flags.teacher_steps > config["diffusion"]["timesteps"]:
        raise ValueError(
            f"--teacher-steps {flags.teacher_steps}: the teacher has only "
            f"{config['diffusion']['timesteps']} timesteps"
        )
    prediction = config["diffusion"]["prediction"]
    if flags.tune == "consistency" and not has_boundary(prediction):
        raise ValueError(
            f"--tune consistency cannot use --prediction {prediction}: its x_0 without noise is "
            "what the network outputs, and not the input; use flow, v or edm"
        )
    if flags.tune == "meanflow" and (prediction != "flow" or config["diffusion"]["learn_sigma"]):
        raise ValueError(
            "--tune meanflow averages the velocity of --prediction flow, without --learn-sigma"
        )
    if flags.tune in ("consistency", "distill") and not starts_from_noise(prediction):
        raise ValueError(
            f"--tune {flags.tune} cannot use --prediction {prediction}: its x_0 in pure noise is a "
            "division by zero; use flow, v or edm"
        )
    model = config["model"]
    if model["name"] in NOT_DENOISERS or model.get("super_resolution"):
        raise ValueError(f"--tune {flags.tune} is for networks that draw from noise alone")
    guided = flags.teacher_guidance != 1
    conditioned = model.get("num_classes") or model.get("caption_length")
    if guided and not conditioned and flags.teacher_guide is None:
        raise ValueError(
            "--teacher-guidance needs a network that is conditioned on classes or captions, or a "
            "--teacher-guide"
        )
    if flags.teacher_guide is not None and not guided:
        raise ValueError("--teacher-guide has no effect with --teacher-guidance 1, the default")
    if teacher is None:
        return
    own = network_and_process(flags, teacher["config"])
    own["model"] |= {"average_velocity": True} if flags.tune == "meanflow" else {}
    if found := config_differences(own, {name: config[name] for name in own}):
        raise ValueError(
            f"--teacher {flags.teacher} has another network: {'; '.join(found)}. Omit --preset and "
            "the flags of network and process: they are the teacher's"
        )


def use_weights(trainer: Trainer, checkpoint: dict) -> None:
    """Copy the weights of a checkpoint to the network of a new run, and to its teacher if any."""
    taught = [trainer.frozen["teacher"]] if "teacher" in trainer.frozen else []
    for network in (trainer.model, trainer.ema.module, *taught):
        copy_weights(network, checkpoint)


def use_guide(trainer: Trainer, path: str, teacher: dict) -> None:
    """Load the network in a file as the guide of the teacher, a checkpoint.

    Raises ValueError if its network, process or data set differs from the teacher's.
    """
    guide = load_checkpoint(path)
    require_guide(guide["config"], teacher["config"], f"--teacher-guide {path}")
    networks = [{"model": with_later_arguments(c["config"]["model"])} for c in (guide, teacher)]
    if found := config_differences(*networks):
        raise ValueError(
            f"--teacher-guide {path} has another network than the teacher: {'; '.join(found)}. "
            "Give a snapshot of the teacher's run"
        )
    copy_weights(trainer.frozen["guide"], guide)


def copy_weights(network: nn.Module, checkpoint: dict) -> None:
    """Copy the averaged weights of a checkpoint to a network; the trained ones if it has no others.

    The embedding of a time span, which mean flows add, keeps its initial weights: its output is 0.
    """
    weights = restore(checkpoint, raw="ema" not in checkpoint)[0].state_dict()
    own = network.state_dict()
    added = {name: own[name] for name in own if name.startswith("span.")}
    network.load_state_dict(added | weights)
