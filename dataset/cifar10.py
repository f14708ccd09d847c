"""CIFAR-10, as torchvision lays it out."""

import os

import torch

from dataset.downloads import check_md5, fetch
from dataset.types import Data, Request


def cifar10(request: Request) -> Data:
    """CIFAR-10: 50,000 photographs, 32 x 32, colour (Krizhevsky 2009)."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import extract_archive

    folder = request.data_dir / CIFAR10.base_folder
    lists = [*CIFAR10.train_list, *CIFAR10.test_list]  # torchvision opens none without all
    files = dict([*lists, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]])
    archive = request.data_dir / CIFAR10.filename

    def missing() -> list[str]:
        return [name for name in files if not (folder / name).exists()]

    if missing() and archive.exists():
        check_md5(archive, archive.read_bytes(), CIFAR10.tgz_md5)
        extract_archive(str(archive), str(request.data_dir))
    if missing():
        looked = f"Looked for {', '.join(missing())} in {folder}, and for {archive}."
        copy = f"copy {archive.name} to {request.data_dir}{os.sep}"
        fetch("cifar10", CIFAR10, folder, request, looked, [copy])
    for name, md5 in files.items():  # before any of them is unpickled
        check_md5(folder / name, (folder / name).read_bytes(), md5)

    data = CIFAR10(str(request.data_dir), train=request.split == "train", download=False)
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return Data(images, torch.tensor(data.targets), data.classes)
