"""The digits that come with scikit-learn."""

import numpy as np
import torch

from dataset.types import Data, Request


def load_sklearn_digits(request: Request) -> Data:
    """1,797 handwritten digits, 8 x 8, grey. No download is needed (Alpaydin and Kaynak 1998)."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * 255 / 16).astype(np.uint8)
    classes = [str(name) for name in bunch.target_names]
    return Data(torch.from_numpy(images)[:, None], torch.from_numpy(bunch.target).long(), classes)
