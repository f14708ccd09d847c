"""Write a trained model in a form that needs no PyTorch."""

from flags import Parser, run

FORMATS = ["numpy"]


# fmt: off
def make_parser() -> Parser:
    parser = Parser(
        "Write a checkpoint's network for use elsewhere. numpy: one .npz with all that "
        "mini_diffusion needs to draw images.",
        [
            "python export.py --checkpoint outputs/model_final.pt --to numpy model.npz",
            "python export.py --checkpoint outputs/model_final.pt --to numpy --raw raw.npz",
        ],
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="written by train.py")
    parser.add_argument("--raw", action="store_true",
                        help="take the weights as trained, not their moving average")
    parser.add_argument("--to", choices=FORMATS, default="numpy", help="the form")
    parser.add_argument("output", nargs="?", default="outputs/model.npz", metavar="OUTPUT",
                        help="the file to write")
    return parser


# fmt: on


def parse_args(argv=None):
    return make_parser().parse_args(argv)


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports below, which take seconds

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.unet import feature_sizes
from training.checkpoint import load_checkpoint, restore
from utils import check_writable, save_whole


def main(args) -> int:
    output = Path(args.output)
    if output.suffix != ".npz":
        raise ValueError(f"{output}: the name of the file must end in .npz")
    check_writable(output.parent)
    checkpoint = load_checkpoint(args.checkpoint)
    config = checkpoint["config"]
    if (name := config["model"].get("name")) != "unet":
        raise ValueError(f"{args.checkpoint} holds a network {name}; only the unet can be exported")
    model, diffusion = restore(checkpoint, raw=args.raw)
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
        "step": checkpoint["step"],
        "weights": "as trained" if args.raw else "moving average",
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
    print(f"{args.checkpoint}: {description['dataset']}, weights: {description['weights']}")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters: {output}")
    return 0


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
    sys.exit(run(main, ARGS))
