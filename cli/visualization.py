"""The flags of visualize_diffusion.py."""

from dataclasses import dataclass

from cli.common import NO_DATA, DataFlags, MachineFlags, checkpoint_flag, dataset_flag
from cli.declare import device_name, flag, keys, number, path
from cli.parser import Command

TIMESTEPS = 1000  # T of the process shown
COLUMNS = [0, 50, 100, 200, 400, 600, 800, 999]


# fmt: off
@dataclass(kw_only=True)
class VisualizationRequest(DataFlags, MachineFlags):
    """What to show: the forward process, the score field of a model, or how a run learned."""

    dataset: str | None = dataset_flag(
        None, "data set (default: mnist where it is at hand, else digits)")
    num_images: int = flag(
        8, "rows of images; 2000 points are always shown", group="data", parse=number(int, 1, 64),
        unless=NO_DATA)

    schedule: str = flag(
        "cosine", "noise schedule", group="process", choices=keys("schedules.py", "SCHEDULES"),
        unless=NO_DATA)
    timesteps: list[int] = flag(
        COLUMNS, "timesteps to show, one a column", group="process",
        parse=number(int, 0, TIMESTEPS - 1), nargs="+", metavar="T", unless=NO_DATA)

    checkpoint: str | None = checkpoint_flag(required=False, needs=("field", "attention"))
    field: bool = flag(
        False, "draw the score of a model of points as arrows", group="checkpoint", switch="on",
        needs=("checkpoint",))

    paths: list[str] | None = flag(
        None, "draw the trajectories of models of points, next to each other", group="checkpoint",
        metavar="FILE", parse=path, nargs="+", unless=("field", "attention", "run", "checkpoint"))

    attention: bool = flag(
        False, "draw where the network looks for each word of --prompt", group="checkpoint",
        switch="on", needs=("checkpoint",), unless=("field",))
    prompt: str | None = flag(
        None, "--attention: what to draw (default: a held-out caption)", group="checkpoint",
        metavar="TEXT", needs=("attention",))

    run: str | None = flag(
        None, "sample from the checkpoints of a run, and write DIR/report.html", group="run",
        metavar="DIR", parse=path, unless=("field", "attention"))
    doctor: str | None = flag(
        None, "say what is wrong with a run and what to do, from its files", group="run",
        metavar="DIR", parse=path, unless=("field", "attention", "run", "paths", "checkpoint"))
    epochs: list[int] | None = flag(
        None, "only the checkpoints of these epochs (default: at most 12, evenly)", group="run",
        parse=number(int, 1), nargs="+", needs=("run",))
    steps: int | None = flag(
        None, "sampling steps, at most T (default: 50)", group="run", parse=number(int, 1),
        needs=("run",))
    text_encoder: str | None = flag(
        None, "--attention: folder of the run's pretrained text encoder, if it has moved",
        group="run", metavar="DIR", parse=path, needs=("attention",))
    device: str = flag(
        "auto", "auto, cpu, cuda, cuda:N or mps; auto prefers cuda, then mps", group="machine",
        parse=device_name, metavar="NAME", needs=("run",))
    save_path: str | None = flag(
        None, "picture (default: outputs/forward_process.png and the like)", group="output",
        metavar="FILE", parse=path)
# fmt: on


VISUALIZE = Command(
    VisualizationRequest,
    "Show real data fading into noise, and the noise schedules; or how a run learned, or what is\n"
    "wrong with it; or the score or the trajectories that models of points have learned; or where\n"
    "a model looks for the words of a prompt.",
    [
        "python visualize_diffusion.py --dataset digits --timesteps 0 250 500 999",
        "python visualize_diffusion.py --run outputs",
    ],
)
