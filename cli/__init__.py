"""The command lines. Nothing here imports torch, so that `--help` answers at once.

`declare` has the flags' declaration, `parser` their spelling and errors, `process` exit codes,
`streams` output that cannot fail, `activity` signs of life. `common` has the flags that several
commands share, and the other modules those of one command each, as a dataclass. To add a flag, add
a field. `docs` writes docs/flags.md.
"""

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Names that a user's own modules may have, too.
COMMON = ("utils", "models", "dataset", "sampling", "training", "evaluation", "distributed")


def require_own_modules() -> None:
    """Raise ImportError if a foreign module has the name of one of ours and would replace it."""
    for name in COMMON:
        spec = getattr(sys.modules.get(name), "__spec__", None) or importlib.util.find_spec(name)
        if spec is not None and spec.origin and ROOT not in Path(spec.origin).resolve().parents:
            raise ImportError(
                f"{spec.origin} has the name of a module of Tiny Diffusion, {name}: rename it, or "
                f"import Tiny Diffusion in another process, with {ROOT} first in sys.path"
            )


require_own_modules()
