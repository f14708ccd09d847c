"""The reference of all flags, docs/flags.md: `python -m cli.docs` writes it."""

from cli.declare import ROOT, Declaration, option
from cli.evaluation import EVALUATE
from cli.export import EXPORT
from cli.learn import LEARN
from cli.parser import Command, default_of, metavar_of, position
from cli.sampling import SAMPLE
from cli.streams import guard_output
from cli.training import TRAIN
from cli.visualization import VISUALIZE

COMMANDS = {
    "train.py": TRAIN,
    "sample.py": SAMPLE,
    "evaluate.py": EVALUATE,
    "export.py": EXPORT,
    "visualize_diffusion.py": VISUALIZE,
    "learn/check.py": LEARN,
}
FILE = ROOT / "docs" / "flags.md"
INTRODUCTION = """# Flags

All flags of all commands. `python -m cli.docs` writes this page from their declarations in `cli/`.
Hyphens and underscores are the same: `--batch_size` is `--batch-size`. In Python, flags are keyword
arguments: `train(dataset="moons", epochs=5)`.

*Saved* flags are part of a run's `config.json`. `--resume` restores them, unless they are given
anew. *Fixed* flags are saved too, and a resumed run must have the same value.
"""


def page() -> str:
    """The content of docs/flags.md."""
    return INTRODUCTION + "".join(section(*entry) for entry in COMMANDS.items())


def section(script: str, command: Command) -> str:
    """The heading, the description and the table of one command."""
    described = command.description.replace("\n", " ")
    rows = [["flag", "meaning", "default", "on resume"], ["---"] * 4]
    for field, declared in sorted(command.declared.values(), key=position):
        spelled = f"`{spelling(field.name, declared)}`"
        rows.append([spelled, declared.help, shown(default_of(field)), nature(declared)])
    columns = slice(4 if "resume" in command.declared else 3)
    table = "".join(f"| {' | '.join(row[columns])} |\n" for row in rows)
    return f"\n## {script}\n\n{described}\n\n{table}"


def spelling(name: str, declared: Declaration) -> str:
    """The spelling of a flag with its values."""
    if declared.positional:
        return declared.metavar or name
    if declared.switch:
        return option(name) + (
            f"`, `--no-{option(name)[2:]}" if declared.switch == "on-off" else ""
        )
    value = metavar_of(declared) or ""
    value = " ".join(value) if isinstance(value, tuple) else value
    value = "{" + ",".join(declared.choices) + "}" if declared.choices else value
    more = " ..." if declared.nargs in ("+", "*") else ""
    value = f"[{value}]" if declared.nargs == "?" else value + more
    return f"{option(name)} {value or 'TEXT'}"


def shown(default: object) -> str:
    """A default in the table."""
    return "" if default is None or default is False else f"`{default}`"


def nature(declared: Declaration) -> str:
    """The effect of --resume on a flag: "saved", "fixed" or none."""
    return "" if declared.section is None else "fixed" if declared.fixed else "saved"


if __name__ == "__main__":
    guard_output()
    FILE.write_text(page(), encoding="utf-8")
    print(FILE.relative_to(ROOT))
