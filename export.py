"""Write a trained model in a form that other programs read.

python export.py --checkpoint outputs/model_final.pt --to safetensors model.safetensors
"""

from cli.export import ENDINGS, EXPORT, ExportRequest
from cli.process import run

if __name__ == "__main__":
    REQUEST = EXPORT.parse()  # before the imports below, which take seconds

import sys
from pathlib import Path

from checkpoints.arrays import save_arrays
from checkpoints.card import drawing_flags, is_card, model_card, read_report
from checkpoints.checkpoint import load_checkpoint, restore
from checkpoints.consistency import CUSTOM
from checkpoints.runs import find_checkpoint
from checkpoints.web import save_page
from cli.activity import activity
from checkpoints.weights import WEIGHT_KINDS, save_weights
from dataset.own_files import head_of, require_own
from sampling.plan import require_untuned_network
from utils import MARK, check_output, save_whole


def main(request: ExportRequest) -> int:
    form, output = choose_form(request.to, request.output)
    check_output(output, *request.read())
    if request.output is None:
        require_own(output, is_export, "another OUTPUT")
    if request.card is not None:
        require_own(output.with_suffix(".md"), is_card, "another OUTPUT")
    try:
        report = None if request.card is None else read_report(Path(request.card))
    except ValueError as error:
        raise ValueError(f"--card {error}") from None

    # Load the network, and describe it before anything is written.
    request.checkpoint = str(find_checkpoint(request.checkpoint, print))
    with activity(f"loading {request.checkpoint}"):
        checkpoint = load_checkpoint(request.checkpoint)
    config, step = checkpoint["config"], checkpoint["step"]
    require_exportable(request.checkpoint, config, form)
    model, diffusion = restore(checkpoint, raw=request.raw)
    which, weights = "model" if request.raw else "ema", model.state_dict()
    card = None
    if report is not None:
        command, seconds = sampling_command(form, output, report), checkpoint["seconds"]
        card = model_card(output.name, command, config, step, seconds, (which, weights), report)

    # Write the network, and its model card.
    with activity(f"writing {output}"):
        if form == "numpy":
            save_arrays(output, config, step, which, model, diffusion)
        elif form == "web":
            save_page(output, config, step, model, diffusion)
        else:
            save_weights(output, config, step, which, weights)
    print(f"{request.checkpoint}: {config['data']['dataset']}, weights: {WEIGHT_KINDS[which]}")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters: {output}")
    if card is not None:
        path = output.with_suffix(".md")
        content = card.encode(errors="replace")  # names of files may not be UTF-8
        save_whole(path, lambda partial: partial.write_bytes(content))
        print(f"model card: {path}")
    return 0


def choose_form(form: str | None, output: str | None) -> tuple[str, Path]:
    """The form and the file: one decides the other. Raises ValueError if they differ."""
    path = Path(output or f"outputs/model{ENDINGS[form or 'numpy']}")
    ending = path.suffix.lower()
    if form is None and ending not in ENDINGS.values():
        raise ValueError(f"{path}: the name must end in {' or '.join(ENDINGS.values())}")
    form = form or next(name for name, one in ENDINGS.items() if one == ending)
    if ending != ENDINGS[form]:
        raise ValueError(f"{path}: the name of the file must end in {ENDINGS[form]}")
    return form, path


def is_export(path: Path) -> bool:
    """Is a file an export of a network, in any form?"""
    head = head_of(path)
    return b"tiny-diffusion-" in head or b"config.npy" in head or MARK.encode() in head


def require_exportable(path: str, config: dict, form: str) -> None:
    """Raise ValueError for a network that cannot be written in this form."""
    name = config["model"]["name"]
    if name == CUSTOM:
        network = config["model"]["class"]
        raise ValueError(
            f"{path} holds a network of your own (class {network}): pass it, "
            f"restore(checkpoint, model={network}(...)), in Python, with checkpoint = "
            "load_checkpoint(path), and save its state_dict(); export.py cannot rebuild it"
        )
    if form == "safetensors":
        return
    if form == "numpy":
        require_untuned_network(config, "--to numpy")
    reader = {"numpy": "mini_diffusion", "web": "the page"}[form]
    if config["model"].get("caption_length"):
        raise ValueError(f"{path} is conditioned on captions, which {reader} cannot read")
    if config["model"].get("super_resolution"):
        raise ValueError(f"{path} enlarges images, which {reader} cannot")
    if config["model"].get("autoencoder"):
        raise ValueError(f"{path} is of latents, which {reader} cannot decode")
    if name != "unet":
        raise ValueError(f"{path} contains the network {name}; only unet can be exported to {form}")


def sampling_command(form: str, output: Path, report: dict) -> str:
    """A command that samples with the exported network."""
    if form == "numpy":
        return f"python -m mini_diffusion.sample {output}"
    if form == "web":
        return f"open {output}"
    return f"python sample.py --checkpoint {output} {drawing_flags(report)}"


if __name__ == "__main__":
    sys.exit(run(main, REQUEST))
