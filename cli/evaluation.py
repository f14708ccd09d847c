"""The flags of evaluate.py."""

from dataclasses import dataclass

from cli.common import (
    ThreadFlags,
    checkpoint_flag,
    dataset_flag,
    precision_flag,
    raw_flag,
    resolve_dataset,
    size_flag,
)
from cli.declare import flag, keys, number, path
from cli.parser import Command
from cli.sampling import SamplerFlags

METRICS = ("classifier", "two-sample", "prompt", "copies", "reconstruction", "super-resolution")
METRICS += ("inception", "bpd")


# fmt: off
@dataclass(kw_only=True)
class EvaluationRequest(SamplerFlags, ThreadFlags):
    """What to measure: a checkpoint's samples, or given images."""

    checkpoint: str | None = checkpoint_flag(required=False)
    raw: bool = raw_flag(needs=("checkpoint",))
    ema_length: float | None = flag(
        None, "moving average of this length, 0.03 to 0.25 of the training (--post-hoc-ema)",
        group="checkpoint", parse=number(float, 0.03, 0.25), metavar="X", needs=("checkpoint",),
        unless=("raw",))
    samples: str | None = flag(
        None, "measure these images instead: an .npz, an .npy or a folder", group="checkpoint",
        metavar="PATH", parse=path)
    metrics: list[str] | None = flag(
        None, "what to measure (default: see docs/evaluation.md)", group="checkpoint",
        choices=METRICS, nargs="+")
    num_images: int | None = flag(
        None, "images per set (default: 2000, or all of --samples; bpd: 32)", group="checkpoint",
        parse=number(int, 2, 10**6))
    repeats: int = flag(
        3, "sets sampled with different seeds, to show the spread", group="checkpoint",
        parse=number(int, 1, 100), use="drawing")
    inception_weights: str | None = flag(
        None, "torch-fidelity's weights-inception-2015-12-05-6726825d.pth", group="checkpoint",
        metavar="FILE", parse=path, use="drawing")

    clip_score: str | None = flag(
        None, "--metrics prompt: model of train.py --model clip, for similarities",
        group="checkpoint", metavar="FILE", parse=path, use="drawing", needs=("checkpoint",))

    dataset: str | None = dataset_flag(
        None, "data set that --samples are compared with", needs=("samples",))
    data_dir: str | None = flag(
        None, "folder of the data set (default: that of the run)", group="data",
        metavar="DIR", parse=path)
    split: str = flag(
        "test", "compare with the test split, or with the run's held-out items", group="data",
        choices=("test", "validation"))
    image_size: int | list[int] | None = size_flag(
        "--samples: resize the data set to N or HEIGHTxWIDTH pixels", needs=("samples",))

    avatar_style: str = flag(
        "voxel-art", "avatars: how they are drawn, voxel-art or open-peeps", group="data",
        choices=keys("dataset/avatar_styles.py", "STYLES"), metavar="STYLE", needs=("samples",))
    skip_bad_images: bool = flag(
        False, "folders of images: skip files that cannot be read", group="data", switch="on",
        needs=("samples",))
    follow_links: bool = flag(
        False, "folders of images: also follow links that lead out of them",
        group="data", switch="on", needs=("samples",))

    ode_steps: int = flag(
        100, "steps of the ODE, at most T; the bound takes all T", group="bits per dimension",
        parse=number(int, 2), needs=("checkpoint",), use="likelihood")
    precision: str | None = precision_flag(
        None, "number format of the network (default: auto; bpd: fp32)", needs=("checkpoint",))
    output: str | None = flag(
        None, "report (default: metrics.json next to the checkpoint or samples)", group="output",
        metavar="FILE", parse=path)

    def check(self) -> None:
        if (self.checkpoint is None) == (self.samples is None):
            raise ValueError("give either --checkpoint or --samples")
        super().check()
        if self.samples and not self.dataset:
            raise ValueError("--samples needs --dataset, which the images are compared with")
        if self.samples and "bpd" in (self.metrics or []):
            raise ValueError("--metrics bpd needs a --checkpoint: images have no likelihood")
        if self.samples and self.split == "validation":
            raise ValueError("--split validation needs a --checkpoint of a run that held items out")
        if self.inception_weights and self.metrics and "inception" not in self.metrics:
            raise ValueError("--inception-weights has no effect without --metrics inception")
        if "inception" in (self.metrics or []) and not self.inception_weights:
            raise ValueError("--metrics inception needs --inception-weights; nothing is downloaded")
        self.dataset = resolve_dataset(self.dataset)
# fmt: on


EVALUATE = Command(
    EvaluationRequest,
    "Measure generated images against real ones: by the features of a classifier, by whether a\n"
    "fresh network can tell them apart, by their nearest training images, by Inception's\n"
    "features, and by bits per dimension.",
    [
        "python evaluate.py --checkpoint outputs/model_final.pt",
        "python evaluate.py --samples samples.npz --dataset mnist",
    ],
)
