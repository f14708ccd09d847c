"""CIFAR-10, in the files that torchvision uses."""

import os

import torch

from dataset.downloads import check_md5, fetch
from dataset.types import Data, Request

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer")
CIFAR10_CLASSES += ("dog", "frog", "horse", "ship", "truck")


def load_cifar10(request: Request) -> Data:
    """CIFAR-10 (Krizhevsky 2009): 50,000 training and 10,000 test photographs, 32 x 32, colour."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import extract_archive

    root = request.data_dir
    if root.resolve().name == CIFAR10.base_folder:  # the folder of the files themselves
        root = root.resolve().parent
    folder = root / CIFAR10.base_folder
    listed = [*CIFAR10.train_list, *CIFAR10.test_list]  # torchvision needs all to load either
    md5s = dict([*listed, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]])
    archive = root / CIFAR10.filename

    def missing() -> list[str]:
        return [name for name in md5s if not (folder / name).exists()]

    if missing() and archive.exists():
        check_md5(archive, archive.read_bytes(), CIFAR10.tgz_md5)
        extract_archive(str(archive), str(root))
    if missing():
        searched = f"Looked for {', '.join(missing())} in {folder}, and for {archive}."
        copy = f"copy {archive.name} to {request.data_dir}{os.sep}"
        fetch("cifar10", CIFAR10, folder, request, searched, [copy])
    for name, md5 in md5s.items():  # before any file is unpickled
        check_md5(folder / name, (folder / name).read_bytes(), md5)

    data = CIFAR10(str(root), train=request.split == "train", download=False)
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return Data(images, torch.tensor(data.targets), data.classes)
