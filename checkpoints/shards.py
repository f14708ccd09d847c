"""Sharded checkpoints, for networks that do not fit one device.

With FSDP2 (Rajbhandari et al. 2020, arXiv:1910.02054) each process holds a shard of every tensor.
All processes write their shards at once, into one folder:

record.json   the fields of a checkpoint that are not tensors, and the SHA-256 of each shard file
shard-*       safetensors files with the tensors model.*, ema.*, optimizer.NAME.INDEX.*
"""

import json
import os
import shutil
import warnings
from pathlib import Path

from torch import Tensor

from checkpoints.checkpoint import CHECKPOINT_FORMAT, CheckpointError
from checkpoints.consistency import RECORD_TYPES, require_config, require_types
from checkpoints.inspection import PlainCopy
from checkpoints.seal import file_sha256
from distributed import barrier, is_main, world_size
from utils import save_whole, sync, sync_folder

RECORD_FILE = "record.json"


def named_tensors(state: dict) -> dict[str, Tensor]:
    """Tensors of a `Trainer.state()` by their names in the shard files."""
    named = {f"{part}.{name}": t for part in ("model", "ema") for name, t in state[part].items()}
    for name, optimizer in state["optimizer"].items():
        for i, values in optimizer["state"].items():
            named |= {f"optimizer.{name}.{i}.{key}": value for key, value in values.items()}
    return named


def save_shards(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint as a folder of shards, whole or not at all. Every process must call it.

    Raises OSError if it cannot be written.
    """
    import torch.distributed.checkpoint as dcp

    partial = path.with_name(f".{path.name}.partial")
    if is_main():
        shutil.rmtree(partial, ignore_errors=True)
    barrier()
    writer = dcp.HuggingFaceStorageWriter(str(partial), save_distributed=True)
    try:
        dcp.save(named_tensors(checkpoint), storage_writer=writer)
    except dcp.api.CheckpointException as error:
        reasons = {str(reason) for reason, _ in error.failures.values()}
        raise OSError(f"{path}: {'; '.join(sorted(reasons))}") from None
    if not is_main():
        return
    files = {}
    for file in sorted(partial.iterdir()):
        files[file.name] = file_sha256(file)
        with open(file, "rb+") as content:
            sync(content.fileno())
    record = {"format": CHECKPOINT_FORMAT, **{key: checkpoint[key] for key in RECORD_TYPES}}
    text = json.dumps({**record, "files": files}, indent=2) + "\n"
    save_whole(partial / RECORD_FILE, lambda file: file.write_text(text, encoding="utf-8"))
    shutil.rmtree(path, ignore_errors=True)  # of the same step, written before a resume
    os.replace(partial, path)
    sync_folder(path.parent)


def read_shard_record(path: Path) -> dict:
    """Read the record of a sharded checkpoint; "shards" is added, the path of the folder.

    Raises CheckpointError if the record is missing or not valid.
    """
    try:
        record = PlainCopy(0).copy(json.loads((path / RECORD_FILE).read_text(encoding="utf-8")))
        require_types({"record": record}, {"record": dict})
        if record.get("format") != CHECKPOINT_FORMAT:
            raise ValueError(f"its format is not {CHECKPOINT_FORMAT}, the one this version reads")
        require_types(record, {**RECORD_TYPES, "files": dict})
        require_types(record["files"], dict.fromkeys(record["files"], str), "files.")
        require_config(record["config"])
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or is not a checkpoint ({error})") from None
    return {**record, "shards": path}


def verify_shards(path: Path) -> None:
    """Raise CheckpointError if the SHA-256 of a file in a sharded checkpoint has changed."""
    for name, wanted in read_shard_record(path)["files"].items():
        try:
            found = file_sha256(path / Path(name).name)
        except OSError as error:
            raise CheckpointError(f"{path} is damaged ({error})") from None
        if found != wanted:
            raise CheckpointError(f"{path} is damaged: {name} does not match its SHA-256")


def load_shards(path: Path, state: dict) -> None:
    """Copy a checkpoint of any number of processes into the tensors of a `Trainer.state()`.

    Raises CheckpointError if it does not fit.
    """
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a warning that only one process loads
        try:
            dcp.load(named_tensors(state), storage_reader=reader, no_dist=world_size() == 1)
        except dcp.api.CheckpointException as error:
            reasons = {str(reason).partition("\n")[0] for reason, _ in error.failures.values()}
            raise CheckpointError(f"{path} does not fit: {'; '.join(sorted(reasons))}") from None
