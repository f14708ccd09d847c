"""What the checker says: verdicts as lines for a terminal. Nothing here imports torch."""

import os
import textwrap
from pathlib import Path

WIDTH = 88
INDENT = "    "
MAX_PRINTED = 20  # lines of a student's own output that are shown


def state(verdict: dict) -> str:
    """The state of an exercise: "done", "begun", "not begun" or "missing"."""
    if verdict.get("missing"):
        return "missing"
    found = {each["status"] for each in verdict["functions"]}
    if found == {"right"}:
        return "done"
    return "not begun" if found == {"not begun"} else "begun"


def word(verdict: dict) -> str:
    """One word for the state of an exercise in a list: "mistake" before "waiting", and so on."""
    if verdict.get("ended"):
        return "stopped"
    found = state(verdict)
    if found != "begun":
        return found
    statuses = [each["status"] for each in verdict["functions"]]
    for status in ("error", "mistake", "wrong", "waiting"):
        if status in statuses:
            return status
    return f"{statuses.count('right')} of {len(statuses)} done"


def list_line(exercise: dict, verdict: dict) -> str:
    """The line of an exercise in the list of all."""
    mark = {"done": "x", "not begun": " ", "missing": " "}.get(state(verdict), "~")
    return f"  [{mark}] {exercise['number']:2}  {exercise['title']:36} {word(verdict)}"


def details(verdict: dict) -> list[str]:
    """What is said about the functions of an exercise."""
    path = near(verdict["path"])
    if verdict.get("missing"):
        default = Path(__file__).with_name("exercises")
        if Path(verdict["path"]).parent == default:
            return [f"{path} does not exist. Restore it: git checkout {path}"]
        return [f"{path} does not exist: copy it from {near(default)} again."]
    lines = [] if not verdict.get("ended") else [f"{path}: {verdict['ended']}"]
    for function in verdict["functions"]:
        lines += function_lines(function, path)
    if printed := verdict.get("printed", "").rstrip():
        shown = printed.splitlines()
        lines += [
            "",
            "Your code has printed:",
            *(INDENT + line[:WIDTH] for line in shown[:MAX_PRINTED]),
        ]
        if len(shown) > MAX_PRINTED:
            lines.append(f"{INDENT}... (the rest is left out)")
    return lines


def function_lines(function: dict, path: str) -> list[str]:
    """What is said about one function."""
    name, status = function["name"], function["status"]
    if status == "right":
        return [f"{name}: right"]
    if status == "not begun":
        return [f"{name}: not begun"]
    if status == "waiting":
        names = function["waits_for"]
        them = "it is" if len(names) == 1 else "they are"
        return [
            f"{name}: uses your {', '.join(names)}, and {them} not right yet: finish "
            f"{'it' if len(names) == 1 else 'them'} first"
        ]
    heading = {
        "mistake": f"{name}: {function.get('mistake')}",
        "wrong": f"{name}: not right yet",
        "error": f"{name}: an error",
    }[status]
    lines = [heading]
    if place := function.get("place"):
        lines.append(f"{INDENT}{near(place['file'])}, line {place['line']}:")
        if place["source"]:
            lines.append(f"{INDENT}{INDENT}{place['source'].strip()}")
    lines += [wrapped(line) for line in function.get("lines", [])]
    if status == "mistake":
        lines.append(wrapped(function["explanation"]))
    return lines


def next_steps(exercise: dict, verdict: dict, following: dict | None) -> list[str]:
    """What to do after the check of one exercise."""
    number = exercise["number"]
    if state(verdict) == "done":
        lines = [f"Exercise {number} is done. {exercise['done']}"]
        if following:
            lines.append(
                f"Next: {near(following['path'])} ({following['title']}); its chapter is "
                f"{near(following['chapter'])}."
            )
        return ["", *map(unindented, lines)]
    if state(verdict) == "not begun":
        return [
            "",
            f"Open {near(verdict['path'])} and replace `raise NotImplementedError` by your code.",
            f"Chapter: {near(exercise['chapter'])}",
        ]
    if state(verdict) == "missing":
        return []
    return [
        "",
        f"Chapter: {near(exercise['chapter'])}     a hint: {exercise['command']} --hint",
    ]


def before_training(verdict: dict, left: list[dict]) -> list[str]:
    """What to do before an exercise that is right can train: exercises that are left."""
    names = [each["name"] for each in verdict["functions"]]
    exercises = ", ".join(f"{each['number']} ({each['title']})" for each in left)
    plural = "s" * (len(left) > 1)
    line = f"{' and '.join(names)} are right; finish exercise{plural} {exercises} before training."
    return ["", unindented(line)]


def first_steps(exercise: dict, verdict: dict, done: int, count: int) -> list[str]:
    """What to do after the list of all: begin, or go on with, an exercise."""
    number = exercise["number"]
    if done == 0 and state(verdict) == "not begun":
        return [
            f"Begin with exercise {number}:",
            f"  1. Read {near(exercise['chapter'])}",
            f"  2. Open {near(verdict['path'])} in an editor and replace",
            "     `raise NotImplementedError` by your code.",
            f"  3. Run {exercise['command']}",
            "",
            f"python {command()} --watch checks each file as soon as you save it.",
        ]
    return [
        f"{done} of {count} done. Go on with exercise {number}, {near(verdict['path'])}:",
        f"  {exercise['command']}          (--hint shows a hint)",
    ]


def wrapped(text: str) -> str:
    """A line of text, indented, and broken at the width of the output."""
    own = len(text) - len(text.lstrip())
    return textwrap.fill(
        text.strip(),
        WIDTH,
        initial_indent=INDENT + " " * own,
        subsequent_indent=INDENT + " " * own,
        break_long_words=False,
        break_on_hyphens=False,
    )


def unindented(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def near(path: str | Path) -> str:
    """A path as it is typed in the current folder, where that is shorter."""
    try:
        relative = os.path.relpath(path)
    except ValueError:
        return str(path)
    return min(relative, str(path), key=len)


def command() -> str:
    """The path of the command, as it is typed in the current folder."""
    return near(Path(__file__).with_name("check.py"))
