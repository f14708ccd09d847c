"""The trained network that a new run starts from (--init-from)."""

from checkpoints.checkpoint import config_differences, load_checkpoint
from checkpoints.consistency import CUSTOM, UNKNOWN
from cli.training import RunConfig
from models import NOT_DENOISERS
from sampling.plan import require_untuned_network
from training.resume import network_and_process, with_saved_flags

FREE = {"dropout", "loss_weight", "clip_loss"}  # choices that the weights do not depend on


def load_initial(path: str) -> dict:
    """The checkpoint of --init-from. Raises ValueError for one that a run cannot start from."""
    checkpoint = load_checkpoint(path)
    config = checkpoint["config"]
    if (name := config["model"]["name"]) == CUSTOM:
        raise ValueError(
            f"--init-from {path} is a network of your own, which train.py cannot build"
        )
    if name in NOT_DENOISERS:
        raise ValueError(f"--init-from {path} contains the network {name}, which draws nothing")
    if config["model"].get("autoencoder"):
        raise ValueError(f"--init-from {path} is a network of latents, which is not supported")
    require_untuned_network(config, f"--init-from {path}")
    return checkpoint


def with_initial(flags: RunConfig, initial: dict) -> RunConfig:
    """The flags of a new run, with the network and the process of its --init-from.

    The data set is that of the network too, unless --dataset names another one. Raises ValueError
    if it is unknown.
    """
    data, model = initial["config"]["data"], initial["config"]["model"]
    if "dataset" not in flags.given and data["dataset"] == UNKNOWN:
        raise ValueError(
            f"--init-from {flags.init_from} does not name its data set: add --dataset NAME"
        )
    if "dataset" in flags.given and flags.dataset != data["dataset"]:
        data = {key: data[key] for key in ("image_size",) if key in data}
    config = {"data": data, "model": model, "diffusion": initial["config"]["diffusion"]}
    conditions = {
        "class_conditional": bool(model.get("num_classes")),
        "text_conditional": bool(model.get("caption_length")),
    }
    return with_saved_flags(flags, {**config, "train": conditions})


def require_same_network(flags: RunConfig, config: dict, initial: dict | None) -> None:
    """Raise ValueError for a run with another network or process than its --init-from's."""
    if initial is None:
        return
    own = network_and_process(flags, initial["config"])
    wanted = {
        name: {key: value for key, value in config[name].items() if key not in FREE} for name in own
    }
    if found := config_differences(own, wanted):
        raise ValueError(
            f"--init-from {flags.init_from} has another network: {'; '.join(found)}. Omit --preset "
            "and the flags of network and process: they are those of the file"
        )
