"""The flags of export.py."""

from dataclasses import dataclass

from cli.common import checkpoint_flag, dataset_flag, raw_flag, resolve_dataset
from cli.declare import Flags, flag, keys, path
from cli.parser import Command


READ = keys("exports/__init__.py", "READERS")


# fmt: off
@dataclass(kw_only=True)
class ExportRequest(Flags):
    """What to export, and in which form."""

    checkpoint: str | None = checkpoint_flag(required=False, unless=("from_",))
    from_: list[str] | None = flag(
        None, "read a network from the folder of another program (FORM: diffusers)",
        group="checkpoint", nargs=2, metavar=("FORM", "DIR"), parse=path)
    dataset: str | None = dataset_flag(
        None, "--from: data set that the network has learned, for evaluate.py", needs=("from_",))
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

    def check(self) -> None:
        super().check()
        self.dataset = resolve_dataset(self.dataset)
        if not self.checkpoint and not self.from_:
            raise ValueError("what is exported? Add --checkpoint FILE or --from diffusers DIR")
        if self.from_ and self.from_[0] not in READ:
            raise ValueError(f"--from {self.from_[0]} DIR: FORM must be {' or '.join(READ)}")
# fmt: on


EXPORT = Command(
    ExportRequest,
    "Write a network for other programs. numpy: an .npz for mini_diffusion. diffusers:\n"
    "a folder that its DiffusionPipeline loads. onnx: for onnxruntime. pt2: for\n"
    "torch.export; safetensors: the weights of any network; sample.py reads both too.\n"
    "web: a page that draws in a browser. The network is that of --checkpoint, or of a\n"
    "folder of diffusers (--from).",
    [
        "python export.py --checkpoint outputs/model_final.pt --to safetensors m.safetensors",
        "python export.py --checkpoint outputs/model_final.pt --to web page.html",
    ],
)
