"""The flags of train.py."""

from dataclasses import dataclass

from cli.common import DataFlags, ThreadFlags, data_flag, precision_flag
from cli.declare import flag, image_size, joined_sides, keys, number, path
from cli.parser import Command


def network_flag(default: object, help: str, **nature):
    """An argument of the network."""
    return flag(default, help, group="network", section="model", fixed=True, **nature)


def process_flag(default: object, help: str, **nature):
    """An argument of the diffusion process."""
    return flag(default, help, group="process", section="diffusion", fixed=True, **nature)


def objective_flag(default: object, help: str, **nature):
    """A choice of what the network learns from, saved with the run."""
    return flag(default, help, section="train", fixed=True, **{"group": "process"} | nature)


def length_flag(help: str, **nature):
    """A limit of the run's length."""
    group = "length (the first limit reached ends the run)"
    return flag(None, help, group=group, section="train", limit=True, **nature)


def train_flag(default: object, help: str, group: str = "training", **nature):
    """A choice of the training, saved with the run; a resumed run may change it."""
    return flag(default, help, group=group, section="train", **nature)


# fmt: off
@dataclass(kw_only=True)
class RunConfig(DataFlags, ThreadFlags):
    """The flags of a training run. None stands for a default that depends on the data."""

    flip: bool | None = data_flag(
        None, "mirror images at random (default: for cifar10 and folder)",
        switch="on-off", fixed=True)
    allow_data_change: bool = flag(
        False, "resume even if the image folder has changed", group="data", switch="on",
        needs=("resume",))

    model: str | None = network_flag(
        None, "network (default: unet for images, mlp for points)",
        choices=tuple(
            name for table in ("MODELS", "GUIDES", "AUTOENCODERS")
            for name in keys("models/__init__.py", table)))
    channels: int | None = network_flag(
        None, "width of the first level (default: 64; dit: 192, mlp: 128)", parse=number(int, 1))
    multipliers: list[int] | None = network_flag(
        None, "unet, unet2d: width of each level, times --channels (unet: 1 1 2)",
        parse=number(int, 1), nargs="+")
    blocks: int | None = network_flag(
        None, "blocks per level (unet: 1, unet2d: 2) or in total (dit: 6, mlp: 4)",
        parse=number(int, 1))
    attention_resolutions: list[int] | None = network_flag(
        None, "unet, unet2d: feature map sizes with self-attention, besides the middle",
        parse=number(int, 1), nargs="*")
    cross_attention_resolutions: list[int] | None = network_flag(
        None, "unet: feature map sizes that read the captions, besides the middle",
        parse=number(int, 1), nargs="*")
    text_encoder: str | None = flag(
        None, "folder of a pretrained CLIP or T5 that encodes the captions",
        group="network", section="data", parse=path, metavar="DIR")
    dropout: float | None = network_flag(
        None, "unet, unet2d, dit, mlp: dropout probability (default: 0)",
        parse=number(float, 0, 0.99), metavar="P")
    patch_size: int | None = network_flag(
        None, "unet, dit: side of a patch (default: 2, 4; below 16 pixels 1, 2)",
        parse=number(int, 1))
    super_resolution: int | list[int] | None = network_flag(
        None, "unet, dit: enlarge images of this size to --image-size", parse=image_size,
        join=joined_sides, metavar="SIZE", unless=("latents",))
    efficient: bool | None = network_flag(
        None, "unet: fewer operations at full resolution (default: on)", switch="on-off")
    long_skips: bool | None = network_flag(
        None, "dit: connect the first blocks to the last, as U-ViT does", switch="on")
    downsample: int | None = network_flag(
        None, "autoencoder: sides of images over those of latents, 4 or 8 (default: 4)",
        parse=number(int, 1))
    latent_channels: int | None = network_flag(
        None, "autoencoder: channels of the latents (default: 4)", parse=number(int, 1))
    regularizer: str | None = network_flag(
        None, "autoencoder: penalty on the latents (default: kl)",
        choices=keys("models/autoencoder.py", "REGULARIZERS"))
    discriminator: bool | None = network_flag(
        None, "autoencoder: also learn to look real to a patch discriminator", switch="on")
    latents: str | None = flag(
        None, "autoencoder, a checkpoint of train.py: learn its latents instead of pixels",
        group="network", parse=path, metavar="FILE", unless=("fsdp",))
    list_models: bool = flag(
        False, "print the networks that fit the data, with their cost, and exit", group="network",
        switch="on")
    preset: str | None = flag(
        None, "images: flags that go together; explicit flags override them", group="network",
        choices=keys("training/config.py", "PRESETS"))

    timesteps: int = process_flag(
        1000, "steps of the forward process", parse=number(int, 2), metavar="T")
    schedule: str = process_flag(
        "cosine", "noise schedule", choices=keys("schedules.py", "SCHEDULES"))
    zero_terminal_snr: bool = process_flag(
        False, "shift the schedule so that it ends in pure noise", switch="on")
    prediction: str | None = process_flag(
        None, "what the network predicts (default: flow; edm schedule: edm)",
        choices=keys("objectives.py", "PREDICTIONS"))
    learn_sigma: bool = process_flag(
        False, "also learn the variance of the reverse steps", switch="on")
    loss_weight: str = process_flag(
        "uniform", "weight of the error at each noise level",
        choices=keys("objectives.py", "LOSS_WEIGHTS"))
    clip_loss: bool | None = process_flag(
        None, "count no error that clipping removes (default: for images)",
        switch="on-off", before=False)
    timestep_sampling: str | None = objective_flag(
        None, "choice of t (default: uniform; edm schedule: log-normal)",
        choices=keys("objectives.py", "TIMESTEP_SAMPLINGS"))
    noise_assignment: str = objective_flag(
        "independent", "assignment of noise to the images of a batch",
        choices=keys("objectives.py", "NOISE_ASSIGNMENTS"))
    feature_loss: float = objective_flag(
        0.0, "autoencoder: weight of a loss in the features of a classifier",
        parse=number(float, 0), metavar="W")
    class_conditional: bool | None = objective_flag(
        None, "condition on class labels (default: for images)", switch="on-off",
        before=False)
    text_conditional: bool | None = objective_flag(
        None, "condition on captions (default: if there are any)", switch="on-off",
        before=False)
    label_dropout: float = objective_flag(
        0.1, "share of labels and captions dropped, for guidance", parse=number(float, 0, 1),
        metavar="P")

    tune: str | None = objective_flag(
        None, "make a trained network (--teacher) draw in few steps",
        choices=keys("training/tuning.py", "TUNINGS"), group="few steps", unless=("fsdp",))
    teacher: str | None = objective_flag(
        None, "--tune: file of train.py or export.py; also sets data and network",
        group="few steps", parse=path, metavar="FILE", needs=("tune",), unless=("latents",))
    pairs: str | None = train_flag(
        None, "--tune reflow: .npz of sample.py --pairs, samples of the teacher",
        group="few steps", parse=path, metavar="FILE", needs=("tune", "resume"))
    teacher_guidance: float = objective_flag(
        1.0, "--tune: guidance scale that the network draws with",
        group="few steps", parse=number(float, 0), metavar="W", needs=("teacher",))
    teacher_guide: str | None = objective_flag(
        None, "--tune: weaker network that guides the teacher, a snapshot of its run",
        group="few steps", parse=path, metavar="FILE", needs=("teacher_guidance",))
    teacher_steps: int = objective_flag(
        32, "--tune distill: steps of the teacher; each stage halves them",
        group="few steps", parse=number(int, 2, 1024), metavar="N", needs=("tune",))
    stage_steps: int = objective_flag(
        500, "--tune consistency, distill: training steps of each stage",
        group="few steps", parse=number(int, 1), needs=("tune",))

    init_from: str | None = objective_flag(
        None, "start with the network of this file of train.py or export.py", group="training",
        parse=path, metavar="FILE", unless=("tune", "latents"))
    epochs: int | None = length_flag(
        "passes over the data (default: 15, points: 20, if no limit)", parse=number(int, 1))
    max_steps: int | None = length_flag("training steps", parse=number(int, 1))
    max_minutes: float | None = length_flag(
        "wall-clock minutes; the learning-rate decay is fitted to them",
        parse=number(float, 0.05, 10**6), metavar="M")

    batch_size: int | None = train_flag(
        None, "batch size (default: 128; points: 512)", parse=number(int, 1))
    grad_accum: int = train_flag(
        1, "batches per training step, by gradient accumulation", parse=number(int, 1))
    grad_checkpoint: bool | None = train_flag(
        None, "recompute activations in the backward pass", switch="on-off")
    optimizer: str | None = train_flag(
        None, "muon: matrices, adamw the rest (default: muon; points: adamw)", fixed=True,
        choices=keys("training/optimizers.py", "OPTIMIZERS"))
    lr: float | None = train_flag(
        None, "peak learning rate (default: 0.003; points: 0.002)", parse=number(float, 0))
    lr_decay: str = train_flag(
        "cosine", "learning-rate decay after the warm-up",
        choices=keys("training/plan.py", "LR_DECAYS"))
    warmup_steps: int = train_flag(
        100, "steps of linear warm-up of the learning rate", parse=number(int, 0))
    momentum_warmup: int = train_flag(
        300, "muon: steps in which its momentum rises from 0.85 to 0.95", parse=number(int, 0),
        fixed=True, before=0)
    grad_clip: float = train_flag(
        1.0, "maximum norm of the gradient; 0 disables clipping", parse=number(float, 0))
    ema_decay: float = train_flag(
        0.9999, "limit of the decay of the weights' moving average",
        parse=number(float, 0, 0.999999))
    post_hoc_ema: bool = train_flag(
        False, "keep averages of which evaluate.py --ema-length makes others", switch="on",
        fixed=True, unless=("fsdp",))
    validation: int | None = train_flag(
        None, "held-out items (default: 1/20 of the data, at most 1024)", parse=number(int, 0),
        fixed=True)

    precision: str = precision_flag(
        "auto", "number format; auto is bf16, or fp32 where that is faster",
        section="train")
    fsdp: bool | None = train_flag(
        None, "under torchrun: shard a network that does not fit one GPU", "machine",
        switch="on-off")
    deterministic: bool | None = train_flag(
        None, "use only deterministic algorithms; slower on a GPU", "machine", switch="on-off")
    compile: str | None = flag(
        None, "torch.compile the network; reduce-overhead uses CUDA graphs", group="machine",
        choices=("default", "reduce-overhead"), nargs="?", const="default", metavar="MODE")

    output_dir: str = flag(
        "outputs", "folder of the run", group="output", metavar="DIR", parse=path)
    sample_interval: int | None = train_flag(
        None, "epochs between sample grids; 0: only at the end (default: 1; points: 5)", "output",
        parse=number(int, 0))
    eval_interval: int = train_flag(
        0, "epochs between measurements of the classifier-FID; 0: none", "output",
        parse=number(int, 0))
    save_interval: int = train_flag(
        5, "epochs between checkpoints; 0: only at the end", "output", parse=number(int, 0))
    keep: int | None = train_flag(
        None, "keep only the newest N of these checkpoints (default: all)", "output",
        parse=number(int, 1))
    save_every_steps: int = train_flag(
        0, "steps between checkpoints of which 3 are kept; 0: none", "output", parse=number(int, 0))
    save_every_minutes: float = train_flag(
        10, "minutes between checkpoints of which 3 are kept; 0: none", "output",
        parse=number(float, 0), metavar="M")
    snapshots: int = train_flag(
        12, "weights files from the training, the newest N kept; 0: none", "output",
        parse=number(int, 0), metavar="N")
    tensorboard: bool = flag(
        False, "also log for TensorBoard, in the run's folder", group="output", switch="on")
    resume: str | None = flag(
        None, "resume the run in --output-dir, or this run or checkpoint; else start it",
        group="output", nargs="?", const="newest", metavar="PATH", parse=path)
    overwrite: bool = flag(False, "replace the run in --output-dir", group="output", switch="on")

    def check(self) -> None:
        super().check()
        if self.preset and self.list_models:
            raise ValueError("--list-models prints the default networks; omit --preset")
        if self.resume and self.overwrite:
            raise ValueError("--resume continues a run and --overwrite deletes it: give only one")
        if self.teacher_steps.bit_count() != 1:
            raise ValueError(f"--teacher-steps must be a power of 2, not {self.teacher_steps}")
# fmt: on


TRAIN = Command(
    RunConfig,
    "Train a diffusion model on images or points. Writes checkpoints and sample grids.",
    [
        "python train.py --dataset mnist --max-minutes 10",
        "python train.py --dataset moons --output-dir outputs/moons",
    ],
)
