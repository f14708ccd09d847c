"""Forms in which export.py writes a trained network for other programs.

To add one: a module here with a function `save(path, network, **options)`, which returns a line to
print or None, and a line in `FORMS`. A module imports the packages of its form inside its
functions, because few people have all of them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from checkpoints.card import drawing_flags
from checkpoints.weights import save_weights
from exports.arrays import require_arrays, save_arrays
from exports.diffusers_folder import require_pipeline, save_pipeline
from exports.from_diffusers import read_pipeline
from exports.network import TrainedNetwork
from exports.onnx_file import require_onnx, save_onnx
from exports.page import require_page, save_page
from exports.program import require_program, save_program


class Form(NamedTuple):
    """One form of an exported network.

    Attributes:
        ending: of the name of the file; None for a folder.
        save: writes a network to a path.
        require: raises ValueError for the configuration of a network that the form cannot hold.
        command: samples with the file; "{}" is its name.
        stored: options of `save` for weights in fewer than 32 bits: "half", "int8".
    """

    ending: str | None
    save: Callable[..., str | None]
    require: Callable[[dict], None]
    command: str
    stored: tuple[str, ...] = ()

    @property
    def is_folder(self) -> bool:
        return self.ending is None


def save_safetensors(path: Path, network: TrainedNetwork, **stored: bool) -> None:
    """Write the weights and the configuration of any network; `sample.py` reads the file.

    `stored` are the options `half` and `int8` of `save_weights`. The first and the last layers
    stay 32-bit floats: in 8 bits they would cause most of the error, and they are small.
    """
    config, step, which, model, _ = network
    ends = {id(p) for layer in getattr(model, "ends", list)() for p in layer.parameters()}
    kept = {name for name, p in model.named_parameters() if id(p) in ends}
    save_weights(path, config, step, which, model.state_dict(), kept=kept, **stored)


FORMS = {
    "diffusers": Form(None, save_pipeline, require_pipeline, "load {} as README.md in it says"),
    "numpy": Form(".npz", save_arrays, require_arrays, "python -m mini_diffusion.sample {}"),
    "onnx": Form(".onnx", save_onnx, require_onnx, "python docs/sample_onnx.py {} samples.ppm"),
    "pt2": Form(".pt2", save_program, require_program, "python sample.py --checkpoint {}"),
    "safetensors": Form(
        ".safetensors",
        save_safetensors,
        lambda config: None,
        "python sample.py --checkpoint {}",
        ("half", "int8"),
    ),
    "web": Form(".html", save_page, require_page, "open {}"),
}

# Readers of other programs' networks: (path, key of `DATASETS` or None) -> (checkpoint, notes).
READERS: dict[str, Callable[[Path, str | None], tuple[dict, str]]] = {
    "diffusers": read_pipeline,
}


def sampling_command(form: str, output: Path, report: dict, config: dict) -> str:
    """A command that samples with the exported network, as in the report of `evaluate.py`.

    The example for ONNX files has only DDIM for images, and no tokenizer.
    """
    points, captions = "dim" in config["model"], config["model"].get("caption_length")
    if form == "onnx" and (points or captions or config["train"].get("tune") == "consistency"):
        return "see docs/other_programs.md"
    command = FORMS[form].command.format(output)
    return f"{command} {drawing_flags(report)}" if "sample.py" in command else command
