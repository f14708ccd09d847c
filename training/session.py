"""A session of a run: its folder locked and prepared, its state loaded, its machine recorded."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

from cli.streams import keep_lost_output
from dataset.changes import save_files
from distributed import barrier, is_main, say
from training.environment import append_environment, environment
from training.loop import Run


@contextmanager
def session(
    run: Run, checkpoint: dict | None, *, overwrite: bool = False, files: Mapping[str, str] = {}
) -> Iterator[None]:
    """Lock and prepare the folder of a run, and load the run's state. Unlock it at the end.

    Args:
        run: the run; its trainer has loaded the checkpoint already.
        checkpoint: the checkpoint that the run continues from, or None.
        overwrite: delete the run that the folder holds, unless this one continues it.
        files: of a folder of images, {name: digest}.

    Raises ValueError if another run holds the folder.
    """
    folder, trainer = run.folder, run.trainer
    with folder.lock() if is_main() else nullcontext():
        keep_lost_output(folder.lost_output)
        if checkpoint is not None:
            run.load(checkpoint)
        if threads := run.choose_threads(checkpoint):
            say(f"threads: {threads}")
        if is_main():
            if trainer.step:
                if aside := folder.set_aside(after=trainer.step):
                    names = ", ".join(path.name for path in aside)
                    say(f"checkpoints of later steps are set aside: {names}")
            elif overwrite:
                folder.clear()
            folder.save_config(run.config)
            if files:
                save_files(folder.data, files)
            machine = environment(trainer.device, trainer.precision, trainer.seed)
            append_environment(folder.environment, machine)
        barrier()  # before another process looks for checkpoints that are yet to be moved
        yield
