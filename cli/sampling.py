"""The flags of sample.py, and those of every command that samples."""

from dataclasses import dataclass, field

from cli.common import ThreadFlags, checkpoint_flag, precision_flag, raw_flag
from cli.declare import Flags, class_names, flag, keys, number, option, path, quoted
from cli.parser import Command

CLASSES = "classes (of a checkpoint of train.py --class-conditional)"
PROMPTS = "prompts (of a checkpoint of train.py --text-conditional)"
GUIDANCE = "guidance (by the class, or by a weaker model)"
OPTIONS = "options of single samplers"
EDITING = "from given images"
STAGES = "super-resolution (of checkpoints of train.py --super-resolution)"
MAX_AUGMENTATION = 0.6  # largest noise level of small images in training
MODES = ("start_from", "inpaint", "interpolate", "invert")


def drawing_flag(default: object, help: str, **nature):
    """A flag of sampling. It needs a checkpoint to sample from."""
    nature = {"needs": ("checkpoint",), "use": "drawing"} | nature
    return flag(default, help, **nature)


# fmt: off
@dataclass(kw_only=True)
class SamplerFlags(Flags):
    """How to go from noise to data."""

    class_id: str | None = drawing_flag(
        None, "class names or indices (cat,dog), or all (default: cycle through all)",
        group=CLASSES, parse=class_names, join=quoted, metavar="ID", decides="value")
    prompt: list[str] | None = drawing_flag(
        None, "what to draw, in words; a row of samples each (default: held-out captions)",
        group=PROMPTS, nargs="+", metavar="TEXT", decides="value", unless=("prompts",))
    prompts: str | None = drawing_flag(
        None, "file with a prompt in each line", group=PROMPTS, parse=path, metavar="FILE",
        decides="file")
    text_encoder: str | None = drawing_flag(
        None, "folder of the run's pretrained text encoder, if it has moved", group=PROMPTS,
        parse=path, metavar="DIR")
    negative_prompt: str | None = drawing_flag(
        None, "what guidance leads away from, in place of uncond", group=PROMPTS, metavar="TEXT",
        decides="value", needs=("guidance_scale",), unless=("guide",))
    guidance_scale: float = drawing_flag(
        1.0, "classifier-free guidance: uncond + W (cond - uncond)", group=GUIDANCE,
        parse=number(float, 0), metavar="W", decides="value")
    guide: str | None = drawing_flag(
        None, "weaker model in place of uncond: a snapshot of the run (autoguidance)",
        group=GUIDANCE, parse=path, metavar="FILE", decides="file", needs=("guidance_scale",),
        names=("--guide-with",))
    classifier: str | None = drawing_flag(
        None, "classifier of train.py --model classifier that guides to --class-id",
        group=GUIDANCE, parse=path, metavar="FILE", decides="file")
    classifier_scale: float = drawing_flag(
        1.0, "--classifier: scale of its gradient", group=GUIDANCE, parse=number(float, 0),
        metavar="W", decides="value", needs=("classifier",))
    clip: str | None = drawing_flag(
        None, "model of train.py --model clip that guides to --prompt", group=GUIDANCE,
        parse=path, metavar="FILE", decides="file")
    clip_scale: float = drawing_flag(
        1.0, "--clip: scale of its gradient", group=GUIDANCE, parse=number(float, 0),
        metavar="W", decides="value", needs=("clip",))
    guidance_interval: list[float] | None = drawing_flag(
        None, "guide only at these noise levels, sigma / alpha (default: all)", group=GUIDANCE,
        parse=number(float, 0), nargs=2, metavar=("LOW", "HIGH"), decides="value",
        needs=("guidance_scale", "classifier", "clip"))
    guidance_rescale: float = drawing_flag(
        0.0, "restore the output's unguided standard deviation, 0 to 1", group=GUIDANCE,
        parse=number(float, 0, 1), decides="value", needs=("guidance_scale",))

    augmentation: float = drawing_flag(
        0.0, "noise level of the image to enlarge, from 0 to 0.6", group=STAGES,
        parse=number(float, 0, MAX_AUGMENTATION), metavar="S", decides="value")

    sampler: str = drawing_flag(
        "auto", "sampler; auto is the best known", group="sampler",
        choices=("auto", *keys("samplers.py", "SAMPLERS")))
    steps: int | None = drawing_flag(
        None, "sampling steps, at most T (default: the sampler's)", group="sampler",
        parse=number(int, 1))
    spacing: str | None = drawing_flag(
        None, "timesteps that the steps visit (default: the sampler's)", group="sampler",
        choices=keys("schedules.py", "SPACINGS"))
    timesteps: int | None = drawing_flag(
        None, "expected timesteps of the checkpoint; an error if they differ", group="sampler",
        parse=number(int, 2), metavar="T")
    batch_size: int | None = drawing_flag(
        None, "batch size (default: 64, fewer above 64x64 pixels; points: 2000)", group="sampler",
        parse=number(int, 1), use="", unless=("invert",))

    eta: float | None = drawing_flag(
        None, "ddim: fresh noise per step, from 0 to 1 (as ddpm) (default: 0)", group=OPTIONS,
        parse=number(float, 0, 1))
    variance: str | None = drawing_flag(
        None, "ddpm: variance (default: learned if the network has it, else small)", group=OPTIONS,
        choices=("small", "large", "learned"))
    churn: float | None = drawing_flag(
        None, "euler, heun: S_churn, noise added before each step (default: 0)", group=OPTIONS,
        parse=number(float, 0))
    churn_min: float | None = drawing_flag(
        None, "euler, heun: S_min, lowest sigma / alpha with churn (default: 0)", group=OPTIONS,
        parse=number(float, 0), needs=("churn",))
    churn_max: float | None = drawing_flag(
        None, "euler, heun: S_max, highest sigma / alpha with churn (default: none)", group=OPTIONS,
        parse=number(float, 0), needs=("churn",))
    churn_noise: float | None = drawing_flag(
        None, "euler, heun: S_noise, standard deviation of that noise (default: 1)", group=OPTIONS,
        parse=number(float, 0), needs=("churn",))
    order: int | None = drawing_flag(
        None, "unipc: order of predictor and corrector (default: 3)", group=OPTIONS,
        parse=number(int, 1, 4))
    gamma: float | None = drawing_flag(
        None, "gamma: extrapolation beyond each step; 1 is ddim (default: 2)", group=OPTIONS,
        parse=number(float, 0))
    mu: float | None = drawing_flag(
        None, "gamma: fresh noise, from 0 to 0.5 (as ddpm) and beyond (default: 0)", group=OPTIONS,
        parse=number(float, 0, 0.99))


@dataclass(kw_only=True)
class SamplingRequest(SamplerFlags, ThreadFlags):
    """What to sample, from which checkpoint, and how. None stands for a default."""

    checkpoint: str | None = checkpoint_flag()
    raw: bool = raw_flag()
    list_classes: bool = flag(
        False, "print the classes that the checkpoint knows, and exit", group=CLASSES, switch="on")
    num_images: int | None = flag(
        None, "number of samples (default: 64; several classes 8 of each; points 2000)",
        group="checkpoint", parse=number(int, 1, 10**6), names=("--num-samples",),
        unless=("invert",))

    start_from: str | None = flag(
        None, "image to image: add noise to this image; or the image to enlarge", group=EDITING,
        metavar="IMAGE", parse=path, decides="file")
    strength: float = flag(
        0.6, "--start-from: share of the sampling steps to take", group=EDITING,
        parse=number(float, 0.001, 1), needs=("start_from",), decides="value")
    inpaint: str | None = flag(
        None, "keep this image where --mask is white, and sample the rest", group=EDITING,
        metavar="IMAGE", parse=path, decides="file")
    mask: str | None = flag(
        None, "white: keep; black or transparent: sample", group=EDITING, metavar="IMAGE",
        parse=path, needs=("inpaint",), decides="file")
    resamplings: int = flag(
        10, "--inpaint: repetitions of each step", group=EDITING, parse=number(int, 1, 1000),
        needs=("inpaint",), decides="value")
    interpolate: bool = flag(
        False, "a strip of images between two noises", group=EDITING, switch="on", decides="value")
    invert: str | None = flag(
        None, "from this image to its noise and back; print the error", group=EDITING,
        metavar="IMAGE", parse=path)

    then: list[str] | None = drawing_flag(
        None, "enlarge the samples with these models, one after the other", group=STAGES,
        parse=path, nargs="+", metavar="FILE", use="", unless=("invert", "list_classes"))
    then_augmentation: list[float] | None = drawing_flag(
        None, "--then: noise level of the images to enlarge (default: 0.1)", group=STAGES,
        parse=number(float, 0, MAX_AUGMENTATION), nargs="+", needs=("then",), use="",
        metavar="S")
    then_sampler: list[str] | None = drawing_flag(
        None, "--then: sampler, one for all of these models or one each (default: auto)",
        group=STAGES,
        choices=("auto", *keys("samplers.py", "SAMPLERS")), nargs="+", needs=("then",), use="",
        metavar="NAME")
    then_steps: list[int] | None = drawing_flag(
        None, "--then: sampling steps (default: the sampler's)", group=STAGES,
        parse=number(int, 1), nargs="+", needs=("then",), use="", metavar="N")
    then_guidance_scale: list[float] | None = drawing_flag(
        None, "--then: classifier-free guidance (default: 1)", group=STAGES,
        parse=number(float, 0), nargs="+", needs=("then",), use="", metavar="W")

    precision: str = precision_flag(
        "fp32", "number format; with bf16, pixels may depend on the batch size")

    output: str = flag(
        "outputs/generated_samples.png", "a picture, or an .npz of all samples", group="output",
        metavar="FILE", parse=path)
    pairs: bool = flag(
        False, "an .npz with seed and classes, for train.py --tune reflow",
        group="output", switch="on",
        unless=("start_from", "inpaint", "invert", "then", "interpolate", "list_classes"))
    show_intermediate: bool = flag(
        False, "also write x_t and the predicted x_0 on the way", group="output", switch="on",
        unless=("invert",))
    animate: bool = flag(
        False, "also write the trajectory as NAME.gif", group="output", switch="on",
        unless=("invert",))
    model: object = field(default=None, repr=False)  # a network of one's own, from a notebook

    @property
    def mode(self) -> str | None:
        """How sampling starts, other than from noise: one of `MODES`, or None."""
        return next((mode for mode in MODES if getattr(self, mode)), None)

    def check(self) -> None:
        modes = [option(mode) for mode in MODES if getattr(self, mode)]
        if len(modes) > 1:
            raise ValueError(f"give only one of {' and '.join(modes)}")
        super().check()
        if self.inpaint and not self.mask:
            raise ValueError("--inpaint needs a --mask: white where the image is kept")
# fmt: on


SAMPLE = Command(
    SamplingRequest,
    "Sample images or points from a checkpoint, which contains all that is needed.",
    [
        "python sample.py --checkpoint outputs/model_final.pt",
        "python sample.py --checkpoint outputs/model_final.pt --sampler ddim --steps 20",
    ],
)
