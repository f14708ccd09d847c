"""Flags that several commands share: data, machine, checkpoint."""

from dataclasses import dataclass
from pathlib import Path

from cli.declare import (
    Flags,
    device_name,
    flag,
    image_size,
    joined_sides,
    keys,
    number,
    path,
    thread_count,
)

DATASETS = keys("dataset/registry.py", "DATASETS")
MAX_SEED = 2**63 - 1
NO_DATA = (
    "field",
    "attention",
    "run",
    "doctor",
    "paths",
)  # modes of visualize_diffusion.py without a data set


def dataset_flag(default: str | None, help: str, **nature):
    """The --dataset of a command; `custom` is another word for `folder` (see `resolve_dataset`)."""
    choices = (*DATASETS, "custom")
    return flag(default, help, group="data", choices=choices, unless=NO_DATA, **nature)


def resolve_dataset(name: str | None) -> str | None:
    """The key of `DATASETS` for a value of --dataset."""
    return "folder" if name == "custom" else name


def data_flag(default: object, help: str, **nature):
    """A flag that says how data are read. It is saved with a run."""
    nature = {"unless": NO_DATA} | nature
    return flag(default, help, group="data", section="data", **nature)


def size_flag(help: str, **nature):
    """The --image-size of a command: a number, or [height, width]."""
    options = {"parse": image_size, "join": joined_sides, "metavar": "SIZE"}
    return flag(None, help, group="data", **options, **nature)


@dataclass(kw_only=True)
class DataFlags(Flags):
    """The data set, and how it is read."""

    dataset: str | None = dataset_flag("mnist", "data set", section="data", fixed=True)
    data_dir: str = data_flag(
        "data", "folder of the data set, or of downloads; for folder, the images", metavar="DIR",
        parse=path,
    )  # fmt: skip
    image_size: int | list[int] | None = size_flag(
        "N or HEIGHTxWIDTH in pixels (default: the data set's size; folder: 64)",
        section="data", fixed=True, unless=NO_DATA,
    )  # fmt: skip
    no_download: bool = flag(
        False, "fail at once if the data set is missing", group="data", switch="on", unless=NO_DATA
    )
    skip_bad_images: bool = data_flag(
        False, "folder: skip files that cannot be read", switch="on", fixed=True
    )
    fit: str = data_flag(
        "crop", "other aspect ratios: crop to the centre, or stretch",
        choices=keys("dataset/image_files.py", "FITS"), fixed=True,
    )  # fmt: skip
    grey: bool = data_flag(
        False, "folder: convert all images to grey", switch="on", fixed=True,
        names=("--gray",), unless=(*NO_DATA, "colour"),
    )  # fmt: skip
    colour: bool = data_flag(
        False, "folder: images in colour, even if all are grey", switch="on", fixed=True,
        names=("--color",),
    )  # fmt: skip
    background: str = data_flag(
        "white", "folder: colour behind transparent pixels, a name or #rrggbb", fixed=True,
        metavar="COLOUR",
    )  # fmt: skip
    captions: bool = data_flag(
        False, "folder: also read captions (metadata.jsonl, metadata.csv or .txt files)",
        switch="on", fixed=True,
    )  # fmt: skip
    caption_from_path: bool = data_flag(
        False, "folder: make captions from the paths of the files", switch="on", fixed=True,
    )  # fmt: skip
    follow_links: bool = data_flag(
        False, "folder: also follow links that lead out of it", switch="on", fixed=True
    )
    cache_limit: float = data_flag(
        2, "folder: decode more than this into a memory-mapped file", parse=number(float, 0),
        metavar="GB",
    )  # fmt: skip
    cache_dir: str | None = data_flag(
        None, "folder of such files (default: .tiny-diffusion in the data folder)", metavar="DIR",
        parse=path,
    )  # fmt: skip
    avatar_style: str = data_flag(
        "voxel-art", "avatars: how they are drawn, voxel-art or open-peeps",
        choices=keys("dataset/avatar_styles.py", "STYLES"), fixed=True, metavar="STYLE",
    )  # fmt: skip

    def check(self) -> None:
        super().check()
        self.dataset = resolve_dataset(self.dataset)
        implied = "dataset" in self.given or self.in_use("resume") or self.in_use("run")
        if "data_dir" in self.given and not implied and holds_images(Path(self.data_dir)):
            raise ValueError(
                f"--data-dir {self.data_dir} holds images, and the default data set is mnist: add "
                "--dataset folder, or --dataset mnist"
            )


def holds_images(folder: Path) -> bool:
    """Does a folder hold images, itself or in a subfolder, and no downloaded data set?"""
    endings = keys("dataset/image_files.py", "FORMATS")
    try:
        if (folder / "MNIST").exists():
            return False
        subfolders = [f for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")]
        files = (file for place in [folder, *subfolders] for file in place.iterdir())
        return any(file.suffix.lower() in endings for file in files)
    except OSError:  # reading the data set reports it
        return False


@dataclass(kw_only=True)
class SeedFlags(Flags):
    """The seed of all random numbers."""

    seed: int = flag(
        0, "seed of all random numbers", group="machine", parse=number(int, 0, MAX_SEED),
        section="train", fixed=True, decides="value", unless=("invert", "doctor"),
    )  # fmt: skip


@dataclass(kw_only=True)
class MachineFlags(SeedFlags):
    """The device to compute on, and the seed."""

    device: str = flag(
        "auto", "auto, cpu, cuda, cuda:N or mps; auto prefers cuda, then mps", group="machine",
        parse=device_name, metavar="NAME",
    )  # fmt: skip


@dataclass(kw_only=True)
class ThreadFlags(MachineFlags):
    """The device to compute on, the number of threads, and the seed."""

    threads: str | int = flag(
        "auto", "threads on the CPU; auto measures which number is fastest", group="machine",
        parse=thread_count, section="train",
    )  # fmt: skip


def precision_flag(default: str | None, help: str, **nature):
    """The --precision of a command."""
    choices = ("auto", "fp32", "bf16", "fp16")
    return flag(default, help, group="machine", choices=choices, **nature)


def checkpoint_flag(*, required: bool = True, **nature):
    """The --checkpoint of a command."""
    return flag(
        None, "file of train.py or export.py (safetensors), or the folder of a run",
        group="checkpoint", metavar="FILE", parse=path, required=required, decides="file", **nature,
    )  # fmt: skip


def raw_flag(**nature):
    """The --raw of a command."""
    return flag(
        False, "use the trained weights, not their moving average", group="checkpoint",
        switch="on", decides="value", **nature,
    )  # fmt: skip
