"""Write a trained model in a form that other programs read.

python export.py --checkpoint outputs/model_final.pt --to safetensors model.safetensors
"""

from cli.export import ENDINGS, EXPORT, ExportRequest
from cli.process import run

if __name__ == "__main__":
    REQUEST = EXPORT.parse()  # before the imports below, which take seconds

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from checkpoints.card import drawing_flags, model_card, read_report
from diffusion import GaussianDiffusion
from models.unet import feature_sizes
from checkpoints.checkpoint import load_checkpoint, restore
from checkpoints.weights import WEIGHT_KINDS, save_weights
from utils import check_writable, save_whole


def main(request: ExportRequest) -> int:
    form, output = choose_form(request.to, request.output)
    check_writable(output.parent)
    report = None if request.card is None else read_report(Path(request.card))
    checkpoint = load_checkpoint(request.checkpoint)
    config, which = checkpoint["config"], "model" if request.raw else "ema"
    if form == "numpy" and (name := config["model"]["name"]) != "unet":
        raise ValueError(
            f"{request.checkpoint} holds a network {name}; only the unet can be exported to numpy"
        )
    model, diffusion = restore(checkpoint, raw=request.raw)
    weights = model.state_dict()
    if report is not None:
        command = f"python sample.py --checkpoint {output} {drawing_flags(report)}"
        command = f"python -m mini_diffusion.sample {output}" if form == "numpy" else command
        step, seconds = checkpoint["step"], checkpoint["seconds"]
        card = model_card(output.name, command, config, step, seconds, (which, weights), report)
    if form == "numpy":
        save_arrays(output, config, checkpoint["step"], which, model, diffusion)
    else:
        save_weights(output, config, checkpoint["step"], which, weights)
    print(f"{request.checkpoint}: {config['data']['dataset']}, weights: {WEIGHT_KINDS[which]}")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters: {output}")
    if report is not None:
        path = output.with_suffix(".md")
        save_whole(path, lambda partial: partial.write_text(card, encoding="utf-8"))
        print(f"model card: {path}")
    return 0


def choose_form(form: str | None, output: str | None) -> tuple[str, Path]:
    """The form and the file: one follows from the other. Raises ValueError if they differ."""
    path = Path(output or f"outputs/model{ENDINGS[form or 'numpy']}")
    if form is None and path.suffix not in ENDINGS.values():
        raise ValueError(f"{path}: the name must end in {' or '.join(ENDINGS.values())}")
    form = form or next(name for name, ending in ENDINGS.items() if ending == path.suffix)
    if path.suffix != ENDINGS[form]:
        raise ValueError(f"{path}: the name of the file must end in {ENDINGS[form]}")
    return form, path


def save_arrays(
    output: Path,
    config: dict,
    step: int,
    which: str,
    model: nn.Module,
    diffusion: GaussianDiffusion,
) -> None:
    """Write a U-Net and its process as mini_diffusion reads them."""
    levels = diffusion.levels()[-2::-1]  # t = 0 ... T-1
    description = {
        "format": 1,
        "dataset": config["data"]["dataset"],
        "classes": config["data"]["classes"],
        "image_size": model.image_size,
        "image_channels": model.image_channels,
        "model": network(**config["model"] | {"patch_size": model.patch_size}),
        "prediction": config["diffusion"].get("prediction", "eps"),
        "clip": diffusion.clip,
        "sigma_data": diffusion.sigma_data,
        "step": step,
        "weights": WEIGHT_KINDS[which],
    }
    arrays = {
        "config": np.array(json.dumps(description)),
        "alpha": np.array([level.alpha for level in levels]),
        "sigma": np.array([level.sigma for level in levels]),
        **{f"weights.{name}": w.float().numpy() for name, w in model.state_dict().items()},
    }

    def write(partial: Path) -> None:
        with open(partial, "wb") as file:  # given a name, NumPy would add an ending to it
            np.savez(file, **arrays)

    save_whole(output, write)


def network(
    *,
    name: str,
    image_size: int,
    image_channels: int,
    patch_size: int,
    channels: int = 64,
    multipliers: Sequence[int] = (1, 2),
    blocks: int = 1,
    attention_resolutions: Sequence[int] = (),
    dropout: float = 0.0,
    num_classes: int | None = None,
    learn_sigma: bool = False,
) -> dict:
    """The arguments of mini_diffusion's UNet for those of models/unet.py's."""
    sizes = feature_sizes(image_size, patch_size, len(multipliers))
    return {
        "in_channels": image_channels,
        "out_channels": image_channels * (2 if learn_sigma else 1),
        "model_channels": channels,
        "multipliers": list(multipliers),
        "blocks": blocks,
        "attention_levels": [i for i, size in enumerate(sizes) if size in attention_resolutions],
        "patch_size": patch_size,
        "num_classes": num_classes or None,
    }


if __name__ == "__main__":
    sys.exit(run(main, REQUEST))
