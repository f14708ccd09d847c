"""Networks that do not fit one device: each process holds a shard of every tensor (FSDP2, after
Rajbhandari et al. 2020, arXiv:1910.02054), and checkpoints of such shards.

A sharded checkpoint is a folder of safetensors, written by all processes at once, with a record:

record.json   what a checkpoint has besides tensors, and the SHA-256 of each file
shard-*       tensors by name: model.*, ema.*, optimizer.NAME.INDEX.*
"""

import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path

from torch import Tensor

from checkpoints.checkpoint import FORMAT, CheckpointError
from checkpoints.consistency import RECORD, require_config, require_kinds
from checkpoints.inspection import PlainCopy
from distributed import barrier, is_main, world_size
from utils import save_whole, sync_folder

RECORD_FILE = "record.json"


def named_tensors(state: dict) -> dict[str, Tensor]:
    """The tensors of `Trainer.state()`, by one name each."""
    named = {f"{part}.{name}": t for part in ("model", "ema") for name, t in state[part].items()}
    for name, optimizer in state["optimizer"].items():
        for i, values in optimizer["state"].items():
            named |= {f"optimizer.{name}.{i}.{key}": value for key, value in values.items()}
    return named


def save_shards(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint of `Run.checkpoint()` as a folder, whole or not at all.

    Every process must call it. Raises OSError if it cannot be written.
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
        files[file.name] = sha256(file)
        with open(file, "rb+") as content:
            os.fsync(content.fileno())
    record = {key: checkpoint[key] for key in RECORD}
    text = json.dumps({"format": FORMAT, **record, "files": files}, indent=2) + "\n"
    save_whole(partial / RECORD_FILE, lambda file: file.write_text(text, encoding="utf-8"))
    shutil.rmtree(path, ignore_errors=True)  # of the same step, from before a resume
    os.replace(partial, path)
    sync_folder(path.parent)


def read_record(path: Path) -> dict:
    """What a sharded checkpoint says of itself: all but its tensors, and where they are.

    Raises CheckpointError if it cannot be read, or is none that a run could have written.
    """
    try:
        record = PlainCopy(0).of(json.loads((path / RECORD_FILE).read_text(encoding="utf-8")))
        require_kinds({"record": record}, {"record": dict})
        if record.get("format") != FORMAT:
            raise ValueError(f"its format is another than {FORMAT}, that of this version")
        require_kinds(record, {**RECORD, "files": dict})
        require_kinds(record["files"], dict.fromkeys(record["files"], str), "files.")
        require_config(record["config"])
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged or is not a checkpoint ({error})") from None
    return {**record, "shards": path}


def verify_shards(path: Path) -> None:
    """Raise a CheckpointError if a file of a sharded checkpoint is not as it was written."""
    for name, wanted in read_record(path)["files"].items():
        try:
            found = sha256(path / Path(name).name)
        except OSError as error:
            raise CheckpointError(f"{path} is damaged ({error})") from None
        if found != wanted:
            raise CheckpointError(f"{path} is damaged: the SHA-256 of {name} is another")


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def load_shards(path: Path, state: dict) -> None:
    """Fill the tensors of a `Trainer.state()`, sharded or not, from a sharded checkpoint, whatever
    number of processes wrote it. Raises CheckpointError if it does not fit."""
    import torch.distributed.checkpoint as dcp

    reader = dcp.HuggingFaceStorageReader(str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one process alone is meant
        try:
            dcp.load(named_tensors(state), storage_reader=reader, no_dist=world_size() == 1)
        except dcp.api.CheckpointException as error:
            reasons = {str(reason).partition("\n")[0] for reason, _ in error.failures.values()}
            raise CheckpointError(f"{path} does not fit: {'; '.join(sorted(reasons))}") from None
