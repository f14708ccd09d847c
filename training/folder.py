"""The folder of a run: what lies where."""

import json
from math import inf
from pathlib import Path

from training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint, step_of
from utils import save_whole


class RunFolder:
    """Names of the files that a run writes, and the few things that are done with all of them."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.loss_plot = self.path / "training_loss.png"
        self.learning = self.path / "learning.png"
        self.report = self.path / "report.html"
        self.samples = self.path / "samples"
        self.checkpoints = self.path / "checkpoints"
        self.interrupted = self.checkpoints / "interrupted.pt"
        self.best = self.checkpoints / "best.pt"
        self.final = self.path / "model_final.pt"

    @classmethod
    def of(cls, checkpoint: Path) -> "RunFolder":
        """The folder of the run that a checkpoint belongs to."""
        parent = checkpoint.parent
        return cls(parent.parent if parent.name == "checkpoints" else parent)

    def grid(self, epoch: int) -> Path:
        return self.samples / f"epoch_{epoch:03d}.png"

    def checkpoint(self, epoch: int) -> Path:
        return self.checkpoints / f"model_epoch_{epoch:03d}.pt"

    def all_checkpoints(self) -> list[Path]:
        return [*self.path.glob(self.final.name), *self.checkpoints.glob("*.pt")]

    def steps(self) -> tuple[dict[Path, int], list[CheckpointError]]:
        """The steps of the whole checkpoints, and what is wrong with the damaged ones."""
        steps, damaged = {}, []
        for path in self.all_checkpoints():
            try:
                steps[path] = step_of(path)
            except CheckpointError as error:
                damaged.append(error)
        return steps, damaged

    def newest_checkpoint(self) -> tuple[Path | None, list[CheckpointError]]:
        """The whole checkpoint with the most steps, or None, and what is wrong with others."""
        steps, damaged = self.steps()
        return max(steps, key=steps.get, default=None), damaged

    def best_loss(self, step: int) -> float:
        """The validation loss of best.pt, or infinity where there is none up to that step."""
        try:
            best = load_checkpoint(self.best, mapped=True)
        except OSError:
            return inf
        return best["validation_loss"] if best["step"] <= step else inf

    def keep_newest(self, count: int | None) -> None:
        """Delete the epochs' checkpoints but for the newest `count` of them."""
        if count is not None:
            epochs = sorted(self.checkpoints.glob("model_epoch_*.pt"), key=epoch_of)
            for path in epochs[:-count]:
                path.unlink()

    def holds_run(self) -> bool:
        return self.metrics.exists() or bool(self.all_checkpoints())

    def clear(self) -> None:
        """Delete what a run wrote, and nothing else that lies in the folder."""
        files = [self.config, self.metrics, self.loss_plot, self.learning, self.report]
        files += [self.final, self.interrupted, self.best]
        files += self.samples.glob("epoch_*.png")
        files += self.checkpoints.glob("model_epoch_*.pt")
        files += [*self.checkpoints.glob("*.pt.aside"), *self.path.glob("*.pt.aside")]
        for file in files:
            file.unlink(missing_ok=True)
        for folder in (self.samples, self.checkpoints):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def set_aside(self, after: int) -> list[Path]:
        """Rename the checkpoints of more steps than that, so that none is taken for the newest."""
        later = [path for path, step in self.steps()[0].items() if step > after]
        return [path.rename(path.with_name(f"{path.name}.aside")) for path in later]

    def save(self, path: Path, checkpoint: dict) -> None:
        """Write a checkpoint, and its configuration where a person can read it."""
        save_checkpoint(path, checkpoint)
        self.save_config(checkpoint["config"])

    def save_config(self, config: dict) -> None:
        text = json.dumps(config, indent=2) + "\n"
        save_whole(self.config, lambda partial: partial.write_text(text, encoding="utf-8"))


def epoch_of(path: Path) -> int:
    """The number in the name of an epoch's checkpoint."""
    return int(path.stem.rpartition("_")[2])
