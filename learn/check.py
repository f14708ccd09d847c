"""Check the exercises of learn/, and say which mistake a function has.

python learn/check.py
python learn/check.py 4
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
if sys.path[0] == str(HERE):  # run as a command: find the modules of the project, not of learn/
    sys.path[0] = str(HERE.parent)

from cli.learn import LEARN, LearnRequest
from cli.process import run

if __name__ == "__main__":
    REQUEST = LEARN.parse()  # before the imports below

import time

from learn import texts
from learn.client import Checker

OUTPUTS = Path("outputs") / "learn"
POLL = 0.3  # seconds between looks at the files with --watch


def main(request: LearnRequest) -> int:
    """Run what the command line asks for; 1 if an exercise is not done."""
    folder = Path(request.folder or HERE / "exercises")
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; --folder names the one with your exercises")
    if (request.hint or request.solution) and not request.exercises:
        mode = "--hint" if request.hint else "--solution"
        raise ValueError(f"{mode} needs the number of an exercise, such as 4 {mode}")
    if request.class_report and request.exercises:
        raise ValueError("--class-report checks all exercises: leave out their numbers")
    with Checker(request.seconds, request.memory) as checker:
        exercises = checker.contents(folder)
        if wrong := set(request.exercises or []) - {each["number"] for each in exercises}:
            raise ValueError(f"there is no exercise {min(wrong)}: they are 1 to {len(exercises)}")
        place = f" --folder {request.folder}" if request.folder else ""
        for each in exercises:
            each["command"] = f"python {texts.command()} {each['number']}{place}"
        numbers = request.exercises or [each["number"] for each in exercises]
        chosen = [each for each in exercises if each["number"] in numbers]
        trains = any(each["trains_with"] for each in chosen) and request.exercises
        if request.output and not (request.class_report or trains):
            raise ValueError("--output is for exercise 16, and for --class-report")
        if request.class_report:
            return report(checker, request)
        if request.solution or request.hint:
            return show(request, chosen)
        if request.watch:
            return watch(checker, folder, exercises, chosen)
        if request.exercises:
            picture = Path(request.output or OUTPUTS / "digits.png")
            states = [check_one(checker, folder, exercises, each, picture) for each in chosen]
            return 0 if set(states) == {"done"} else 1
        return check_all(checker, folder, exercises)


def show(request: LearnRequest, chosen: list[dict]) -> int:
    """Print hints or solutions."""
    for exercise in chosen:
        if request.solution:
            file = HERE / "solutions" / f"{exercise['file']}.py"
            print(f"# {texts.near(file)}\n{file.read_text(encoding='utf-8')}")
        else:
            print(f"Exercise {exercise['number']}, {exercise['title']}")
            for name, hint in exercise["hints"].items():
                print(f"{name}:\n{texts.wrapped(hint)}")
            print(f"Chapter: {exercise['chapter']}")
    return 0


def check_all(checker: Checker, folder: Path, exercises: list[dict]) -> int:
    """Check all exercises: a list, then what is to be said about those that are not right."""
    print(f"Learn DDPM by building it: {len(exercises)} exercises in {texts.near(folder)}\n")
    verdicts = []
    for exercise in exercises:
        verdicts.append(checker.check(folder, exercise["number"]))
        print(texts.list_line(exercise, verdicts[-1]), flush=True)
    print()
    pairs = list(zip(exercises, verdicts, strict=True))
    for exercise, verdict in pairs:
        if texts.word(verdict) in ("error", "mistake", "wrong", "stopped", "missing"):
            print(f"Exercise {exercise['number']}, {exercise['title']}")
            print("\n".join(texts.details(verdict)) + "\n")
    done = sum(texts.state(verdict) == "done" for verdict in verdicts)
    if done < len(exercises):
        following = next(pair for pair in pairs if texts.state(pair[1]) != "done")
        print("\n".join(texts.first_steps(*following, done, len(exercises))))
        return 1
    print(f"All {done} exercises are done. Train your network: {exercises[-1]['command']}")
    return 0


def check_one(
    checker: Checker,
    folder: Path,
    exercises: list[dict],
    exercise: dict,
    picture: Path | None = None,
) -> str:
    """Check one exercise and print all about it; its state.

    With a picture, the exercise that trains then draws it, if all that its training uses is done.
    """
    number = exercise["number"]
    verdict = checker.check(folder, number)
    print(f"Exercise {number}, {exercise['title']}")
    print("\n".join(texts.details(verdict)))
    done = texts.state(verdict) == "done"
    if done and (left := unfinished(checker, folder, exercises, exercise)):
        print("\n".join(texts.before_training(verdict, left)), flush=True)
        return "begun"
    following = next((e for e in exercises if e["number"] == number + 1), None)
    print("\n".join(texts.next_steps(exercise, verdict, following)), flush=True)
    if done and exercise["trains_with"]:
        if picture is None:
            print(f"Train your network and draw with it: {exercise['command']}")
        else:
            verdict = draw(checker, folder, number, picture)
    return texts.state(verdict)


def unfinished(checker: Checker, folder: Path, exercises: list[dict], exercise: dict) -> list[dict]:
    """The exercises that the training of an exercise uses and that are not done."""
    used = [each for each in exercises if each["number"] in exercise["trains_with"]]
    return [e for e in used if texts.state(checker.check(folder, e["number"])) != "done"]


def draw(checker: Checker, folder: Path, number: int, picture: Path) -> dict:
    """Train and draw with the student's functions."""
    from dataset.own_files import is_own_picture, require_own  # these import torch
    from utils import check_output

    check_output(picture)
    if picture == OUTPUTS / "digits.png":
        require_own(picture, is_own_picture, "another --output")
    picture.parent.mkdir(parents=True, exist_ok=True)
    print("\nNow your code trains your network, for at most four minutes, and draws. Ctrl-C stops.")
    verdict = checker.draw(folder, number, picture, lambda text: print(f"  {text}", flush=True))
    if "drawn" in verdict:
        print(f"\n{verdict['drawn']}\nLook at it: {picture}")
        return verdict | {"functions": [{"status": "right"}]}
    print("\n".join(texts.details(verdict)))
    return verdict | {"functions": [{"status": "error"}]}


def watch(checker: Checker, folder: Path, exercises: list[dict], chosen: list[dict]) -> int:
    """Check the files that change, until Ctrl-C."""
    print(f"Watching {texts.near(folder)}. Save a file to check it; Ctrl-C ends.", flush=True)
    seen = {each["number"]: modified(each["path"]) for each in chosen}
    while True:
        for exercise in chosen:
            now = modified(exercise["path"])
            if now != seen[exercise["number"]]:
                seen[exercise["number"]] = now
                print(f"\n--- {time.strftime('%H:%M:%S')} " + "-" * 40)
                check_one(checker, folder, exercises, exercise)
                sys.stdout.flush()
        time.sleep(POLL)


def report(checker: Checker, request: LearnRequest) -> int:
    """Write the report of a class, a page and a table."""
    from dataset.own_files import is_own_page, require_own  # these import torch
    from learn.class_report import as_csv, as_page, class_rows, is_own_table
    from utils import check_output, save_whole

    folder, page = Path(request.class_report), Path(request.output or OUTPUTS / "class_report.html")
    if page.suffix != ".html":
        raise ValueError(f"--output {page}: the name of the report must end in .html")
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; --class-report names that of the class")
    table = page.with_suffix(".csv")
    for path, is_own in ((page, is_own_page), (table, is_own_table)):
        check_output(path)
        if request.output is None or path is table:
            require_own(path, is_own, "another --output")
    exercises = checker.contents(folder)
    rows = class_rows(checker, folder, exercises, lambda text: print(text, flush=True))
    page.parent.mkdir(parents=True, exist_ok=True)
    texts_of = {table: as_csv(rows, exercises)}
    texts_of[page] = as_page(rows, exercises, time.strftime("%Y-%m-%d"))
    for path, text in texts_of.items():
        save_whole(path, lambda partial, text=text: partial.write_text(text, encoding="utf-8"))
    print(f"{page}\n{table}")
    return 0


def modified(path: str) -> int:
    """When a file was last written; 0 if there is none."""
    try:
        return Path(path).stat().st_mtime_ns
    except OSError:
        return 0


if __name__ == "__main__":
    sys.exit(run(main, REQUEST))
