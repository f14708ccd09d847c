"""A network as an ONNX file, for batches of any size, with all that a client needs to sample.

The file has the inputs x_t, t, and the class labels or the tokens that the network is conditioned
on. Its metadata `tiny_diffusion` is the JSON of `exports.program.description`.
docs/sample_onnx.py samples with it.
"""

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from exports.network import TrainedNetwork
from exports.program import (
    PositionalNetwork,
    condition_names,
    description,
    example_inputs,
    exported_program,
    require_program,
)
from utils import save_whole

METADATA = "tiny_diffusion"
TOLERANCE = 1e-4  # of the outputs, which are of the order of 1
MAX_BYTES = 2**31 - 2**24  # of the weights; a file of protobuf has at most 2 GiB


def require_onnx(config: dict) -> None:
    """Raise ValueError for a network that an ONNX file cannot hold."""
    require_program(config, "onnx", "the ONNX file")


def save_onnx(path: Path, network: TrainedNetwork) -> str:
    """Write a network as an ONNX file. Returns how it was checked.

    Raises ValueError if a package is missing, if the network is too large, or if the file computes
    something else than the network.
    """
    if missing := [name for name in ("onnx", "onnxscript") if find_spec(name) is None]:
        raise ValueError(
            f"--to onnx needs the package {missing[0]}: pip install -r requirements-onnx.txt"
        )
    if sum(w.nbytes for w in network.model.state_dict().values()) > MAX_BYTES:
        raise ValueError(f"{path}: an ONNX file holds at most 2 GiB; use --to safetensors")
    described = description(network)
    with quiet():
        program = torch.onnx.export(
            exported_program(network),
            dynamo=True,
            verbose=False,
            input_names=described["inputs"],
            output_names=["prediction"],
        )
    proto = program.model_proto
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(described)
    content = proto.SerializeToString()
    checked = check(content, network, described["inputs"])
    save_whole(path, lambda partial: partial.write_bytes(content))
    return checked


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While open, the exporter reports only errors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def check(content: bytes, network: TrainedNetwork, names: list[str]) -> str:
    """Compare an ONNX file with its network in batches of two sizes, if onnxruntime is installed.

    Returns the result in words. Raises ValueError if an output differs by more than `TOLERANCE`.
    """
    if find_spec("onnxruntime") is None:
        return "not checked: onnxruntime is not installed (pip install -r requirements-onnx.txt)"
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, ["CPUExecutionProvider"])
    positional = PositionalNetwork(network.model, condition_names(network.config))
    largest = 0.0
    for count in (1, 3):
        inputs = example_inputs(network, count)
        named = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        (found,) = session.run(None, named)
        with torch.no_grad():
            expected = positional(*inputs).numpy()
        largest = max(largest, float(np.abs(found - expected).max()))
    if not largest <= TOLERANCE:
        raise ValueError(
            f"the ONNX file computes something else than the network: outputs differ by {largest:g}"
        )
    return f"checked with onnxruntime: outputs differ by at most {largest:.1e}"
