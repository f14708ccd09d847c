"""The flags of export.py."""

from dataclasses import dataclass

from cli.common import checkpoint_flag, raw_flag
from cli.declare import Flags, flag, keys, path
from cli.parser import Command


# fmt: off
@dataclass(kw_only=True)
class ExportRequest(Flags):
    """What to export, and in which form."""

    checkpoint: str | None = checkpoint_flag()
    raw: bool = raw_flag()
    to: str | None = flag(
        None, "form of the file (default: by the ending of its name)", group="output",
        choices=keys("exports/__init__.py", "FORMS"))
    half: bool = flag(
        False, "safetensors: round the weights to 16-bit floats", group="output", switch="on")
    quantize: str | None = flag(
        None, "safetensors: store matrices and kernels as 8-bit integers", group="output",
        choices=("int8",), unless=("half",))
    card: str | None = flag(
        None, "report of evaluate.py: also write a model card, NAME.md", group="output",
        metavar="FILE", parse=path)
    output: str | None = flag(
        None, "file to write (default: outputs/model with the form's ending)", group="output",
        nargs="?", metavar="OUTPUT", parse=path, positional=True)
    overwrite: bool = flag(
        False, "replace OUTPUT, and its model card, if they exist", group="output", switch="on")
# fmt: on


EXPORT = Command(
    ExportRequest,
    "Write a checkpoint's network for other programs. numpy: an .npz for mini_diffusion.\n"
    "onnx: for onnxruntime. pt2: a program of torch.export; sample.py reads it too. safetensors:\n"
    "the weights of any network; sample.py reads it too. web: a page that draws in a browser.",
    [
        "python export.py --checkpoint outputs/model_final.pt --to safetensors m.safetensors",
        "python export.py --checkpoint outputs/model_final.pt --to web page.html",
    ],
)
