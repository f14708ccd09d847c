"""Write a trained model in a form that other programs read.

python export.py --checkpoint outputs/model_final.pt --to safetensors model.safetensors
"""

from cli.export import EXPORT, ExportRequest
from cli.process import run

if __name__ == "__main__":
    REQUEST = EXPORT.parse()  # before the imports below, which take seconds

import sys
from pathlib import Path

from checkpoints.card import model_card, read_report
from checkpoints.checkpoint import load_checkpoint, restore
from checkpoints.consistency import CUSTOM
from checkpoints.runs import find_checkpoint
from checkpoints.weights import WEIGHT_KINDS
from cli.activity import activity
from dataset.image_files import printable
from exports import FORMS, READERS, sampling_command
from exports.network import TrainedNetwork
from exports.diffusers_folder import check_folder
from utils import check_output, save_whole


def main(request: ExportRequest) -> int:
    form, output = choose_form(request)
    stored, is_folder = stored_as(request, form), FORMS[form].is_folder
    if stored and request.card is not None:
        raise ValueError(
            "--card describes the weights that evaluate.py has measured, and --half and --quantize "
            "round them: omit one of the two"
        )
    (check_folder if is_folder else check_output)(output, *request.read())
    card = None if request.card is None or is_folder else output.with_suffix(".md")
    for path in filter(None, (output, card)):
        if path.exists() and not request.overwrite:
            raise ValueError(f"{path} exists: choose another OUTPUT, or replace it by --overwrite")
    try:
        report = None if request.card is None else read_report(Path(request.card))
    except ValueError as error:
        raise ValueError(f"--card {error}") from None

    # Load the network.
    checkpoint = read_foreign(request) if request.from_ else read_own(request)
    config, step = checkpoint["config"], checkpoint["step"]
    require_exportable(request.checkpoint, config, form)
    model, diffusion = restore(checkpoint, raw=request.raw)
    which = "model" if request.raw else "ema"

    # Write it, and its model card.
    network = TrainedNetwork(config, step, which, model, diffusion)
    if card is not None:
        command = sampling_command(form, output, report, config)
        seconds = checkpoint["seconds"]
        weights = (which, model.state_dict())
        text = model_card(output.name, command, config, step, seconds, weights, report)
    with activity(f"writing {output}"):
        about = {"seconds": checkpoint["seconds"], "report": report} if is_folder else stored
        note = FORMS[form].save(output, network, **about)
    dataset = printable(config["data"]["dataset"])
    print(f"{request.checkpoint}: {dataset}, weights: {WEIGHT_KINDS[which]}")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters: {output}")
    if note is not None:
        print(note)
    if card is not None:
        content = text.encode(errors="replace")  # names of files may not be UTF-8
        save_whole(card, lambda partial: partial.write_bytes(content))
        print(f"model card: {card}")
    return 0


def read_own(request: ExportRequest) -> dict:
    """The checkpoint of --checkpoint."""
    request.checkpoint = str(find_checkpoint(request.checkpoint, print))
    with activity(f"loading {request.checkpoint}"):
        return load_checkpoint(request.checkpoint)


def read_foreign(request: ExportRequest) -> dict:
    """The checkpoint of --from; prints notes on what could not be read."""
    form, request.checkpoint = request.from_
    with activity(f"loading {request.checkpoint}"):
        checkpoint, notes = READERS[form](Path(request.checkpoint), request.dataset)
    if notes:
        print(notes)
    return checkpoint


def choose_form(request: ExportRequest) -> tuple[str, Path]:
    """The form and the path of the file: each can be derived from the other.

    Without both, the form is numpy, or safetensors with --half or --quantize. Raises ValueError if
    they contradict each other.
    """
    endings, form = {name: each.ending for name, each in FORMS.items()}, request.to
    usual = "safetensors" if request.half or request.quantize else "numpy"
    path = Path(request.output or f"outputs/model{endings[form or usual] or ''}")
    ending, known = path.suffix.lower(), [each for each in endings.values() if each is not None]
    if form is None and ending not in known:
        listed = f"{', '.join(known[:-1])} or {known[-1]}"
        raise ValueError(f"{path}: the name must end in {listed}; a folder needs --to")
    form = form or next(name for name, one in endings.items() if one == ending)
    if endings[form] not in (None, ending):
        raise ValueError(f"{path}: the name of the file must end in {endings[form]}")
    return form, path


def stored_as(request: ExportRequest, form: str) -> dict[str, bool]:
    """The options of `Form.save` for --half and --quantize.

    Raises ValueError if the form does not support them.
    """
    wanted = {"half": request.half, request.quantize: request.quantize is not None}
    found = {name: True for name, given in wanted.items() if given}
    if not found.keys() <= set(FORMS[form].stored):
        able = ", ".join(name for name, each in FORMS.items() if found.keys() <= set(each.stored))
        flag = "--half" if request.half else f"--quantize {request.quantize}"
        raise ValueError(f"{flag} has no effect with --to {form}; it is for --to {able}")
    return found


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
    try:
        FORMS[form].require(config)
    except ValueError as error:
        others = [each for each in FORMS if each != form and holds(each, config)]
        raise ValueError(f"{path}: {error}. It can be exported to {', '.join(others)}") from None


def holds(form: str, config: dict) -> bool:
    """Can a network be written in a form?"""
    try:
        FORMS[form].require(config)
    except ValueError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(run(main, REQUEST))
