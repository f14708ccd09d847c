"""The data sets, by name. Each is loaded as one tensor, so training never decodes an image."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from pathlib import Path

from dataset.avatar_styles import DEFAULT_STYLE, style_of
from dataset.avatars import AVATAR_SIZE, load_avatars
from dataset.captioned_mnist import load_captioned_mnist
from dataset.cifar10 import CIFAR10_CLASSES, load_cifar10
from dataset.digits import load_sklearn_digits
from dataset.folders import FOLDER_SIZE, load_folder
from dataset.idx import FASHION_MNIST, MNIST, load_idx
from dataset.image_files import FITS, rgb
from dataset.items import kind_of, resized
from dataset.points import load_points
from dataset.types import Data, Request, Source
from utils import DataError, existing_path, pick, sides

DATASETS: dict[str, Source] = {
    "mnist": Source(partial(load_idx, MNIST), (1, 28, 28), has_test=True, classes=MNIST.classes),
    # Not flipped: in Fashion-MNIST every shoe points to the left.
    "fashion_mnist": Source(
        partial(load_idx, FASHION_MNIST), (1, 28, 28), has_test=True, classes=FASHION_MNIST.classes
    ),
    "cifar10": Source(load_cifar10, (3, 32, 32), flip=True, has_test=True, classes=CIFAR10_CLASSES),
    "captioned_mnist": Source(
        load_captioned_mnist, (3, 32, 32), has_test=True, has_pairs=True, classes=()
    ),
    # Not flipped: the light always comes from the same side.
    "avatars": Source(load_avatars, (3, AVATAR_SIZE, AVATAR_SIZE), has_test=True, classes=()),
    "digits": Source(load_sklearn_digits, (1, 8, 8), classes=MNIST.classes),
    "folder": Source(load_folder, (3, FOLDER_SIZE, FOLDER_SIZE), flip=True),
    "moons": Source(partial(load_points, "moons"), (2,), has_test=True),
    "swissroll": Source(partial(load_points, "swissroll"), (2,), has_test=True),
    "circles": Source(partial(load_points, "circles"), (2,), has_test=True),
    "spiral": Source(partial(load_points, "spiral"), (2,), has_test=True),
    "checkerboard": Source(partial(load_points, "checkerboard"), (2,), has_test=True),
    "gaussians": Source(partial(load_points, "gaussians"), (2,), has_test=True),
}


@contextmanager
def explained_folder(saved: str | None) -> Iterator[None]:
    """While open, explain a DataError if the run's data folder is relative to another folder.

    `saved` is the data folder that the run has saved, or None if it was not taken from the run.
    """
    try:
        yield
    except DataError as error:
        if saved is None or Path(saved).is_absolute() or Path(saved).exists():
            raise
        raise type(error)(
            f"{str(error).partition(chr(10))[0]}\nThe run has saved the relative path {saved}, and "
            f"{Path.cwd()} has no such folder: give --data-dir"
        ) from None


def load_dataset(
    name: str,
    data_dir: str | Path = "data",
    *,
    image_size: int | Sequence[int] | None = None,
    download: bool = True,
    skip_bad_images: bool = False,
    fit: str = "crop",
    grey: bool = False,
    colour: bool = False,
    background: str = "white",
    follow_links: bool = False,
    cache_dir: str | Path | None = None,
    cache_limit: float = 2,
    avatar_style: str = DEFAULT_STYLE,
    split: str = "train",
    captions: bool = False,
    caption_from_path: bool = False,
    progress: Callable[..., Iterable] = lambda items, **_: items,
) -> Data:
    """Load a data set: items, labels and class names.

    Args:
        name: a key of `DATASETS`.
        data_dir: folder of the downloaded files; for "folder", the folder of images.
        image_size: side of the images in pixels, or (height, width) (default: the data set's own;
            "folder": 64).
        skip_bad_images: "folder" leaves out images that cannot be decoded.
        fit: how images of another aspect ratio are resized, a key of `image_files.FITS`.
        grey, colour: "folder" converts all images to grey, or to colour (default: to grey if every
            image is grey).
        background: colour behind transparent pixels of "folder", a name or #rrggbb.
        follow_links: "folder" follows links that lead out of it.
        cache_dir, cache_limit: as in `folders.decode_folder`.
        avatar_style: how "avatars" are drawn, a key of `avatar_styles.STYLES`.
        progress: wraps the iteration over files, as tqdm does.
        split: "train", or "test" or "pairs" for a data set that has them (`Source`).
        captions: "folder" reads its captions, too (`folder_captions`).
        caption_from_path: "folder" makes its captions from the paths of the files.

    Raises DataError if the data is missing, damaged or cannot be used, and ValueError if the name
    is unknown or an option does not apply to the data set.
    """
    source = pick(DATASETS, name, "dataset")
    pick(FITS, fit, "fit")
    size = None if image_size is None else sides(image_size)
    if size and kind_of(source.shape) == "points":
        raise ValueError(f"--image-size does not apply to {name}: its items are points")
    if fit != "crop" and name != "folder" and (size is None or size[0] == size[1]):
        raise ValueError(f"--fit {fit} applies only to --dataset folder; {name} needs no fitting")
    if name != "folder":
        given = {"grey": grey, "colour": colour, "background": background != "white"}
        given |= {"captions": captions, "caption_from_path": caption_from_path}
        require_no_options(name, **given, follow_links=follow_links)
    elif grey and colour:
        raise ValueError("--grey and --colour exclude each other")
    style_of(avatar_style)  # raises ValueError for an unknown one
    if avatar_style != DEFAULT_STYLE and name != "avatars":
        raise ValueError(f"--avatar-style applies only to --dataset avatars, not to {name}")
    rgb(background)  # raises ValueError if it is not a colour
    data = source.load(
        Request(
            data_dir=existing_path(data_dir),
            image_size=size,
            download=download,
            skip_bad_images=skip_bad_images,
            fit=fit,
            grey=grey,
            colour=colour,
            background=background,
            follow_links=follow_links,
            cache_dir=None if cache_dir is None else existing_path(cache_dir),
            cache_limit=cache_limit,
            avatar_style=avatar_style,
            split=split,
            progress=progress,
            captions=captions or caption_from_path,
            caption_from_path=caption_from_path,
        )
    )
    if size and data.items.shape[2:] != size:
        left, top, right, bottom = FITS[fit](*data.items.shape[:1:-1], size)
        data = data._replace(items=resized(data.items[:, :, top:bottom, left:right], size))
    return data


# READING: options that a run saves, because they decide which images are read, and how.
NOT_SAVED = {"name", "download", "split", "progress"}
READING = tuple(set(signature(load_dataset).parameters) - NOT_SAVED)


def require_no_options(name: str, **options: bool) -> None:
    """Raise ValueError for an option of "folder" that is given for another data set."""
    for option in (option for option, given in options.items() if given):
        flag = option.replace("_", "-")
        raise ValueError(f"--{flag} applies only to --dataset folder, not to {name}")
