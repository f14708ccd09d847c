"""A report for teachers: which students have solved which exercises."""

import csv
import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from learn.client import Checker
from learn.texts import state, word

TEMPLATE = Path(__file__).with_name("class_report.html.j2")
PLACES = (".", "exercises", "learn/exercises")  # of the files in a student's folder
HEADER = "student,done,"  # begins a table
MAX_DETAIL = 300  # characters of a cell's explanation


def class_rows(
    checker: Checker, folder: Path, exercises: list[dict], say: Callable[[str], None]
) -> list[dict]:
    """A row for each student, a subfolder: {"name": ..., "done": 3, "cells": [see `cell`]}.

    Whatever a student's code does, there is a row of it, and those of the others are right.
    Raises ValueError if there are no subfolders.
    """
    students = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not students:
        raise ValueError(f"{folder} has no subfolders; --class-report needs one for each student")
    rows = []
    for index, student in enumerate(students, 1):
        place = exercises_of(student, exercises)
        verdicts = [checker.check(place, each["number"]) for each in exercises]
        done = sum(state(verdict) == "done" for verdict in verdicts)
        rows.append({"name": student.name, "done": done, "cells": list(map(cell, verdicts))})
        say(f"{index} of {len(students)}: {student.name}, {done} of {len(exercises)} done")
    return rows


def exercises_of(student: Path, exercises: list[dict]) -> Path:
    """The folder with a student's files: the first of the usual places that has any."""
    names = [f"{each['file']}.py" for each in exercises]
    places = [student / place for place in PLACES]
    places += sorted(p for p in student.glob("*/exercises") if p.is_dir())
    places += sorted(p for p in student.glob("*/learn/exercises") if p.is_dir())
    found = (place for place in places if any((place / name).is_file() for name in names))
    return next(found, student)


def cell(verdict: dict) -> dict:
    """The word of a cell, its explanation, and the names of the mistakes."""
    details = [verdict["ended"]] if verdict.get("ended") else []
    for function in verdict["functions"]:
        if function["status"] == "mistake":
            details.append(f"{function['name']}: {function['mistake']}")
        elif function["status"] == "error":
            line = f" (line {function['place']['line']})" if function.get("place") else ""
            details.append(f"{function['name']}{line}: {function['lines'][0]}")
        elif function["status"] == "wrong":
            details.append(f"{function['name']}: not right")
        elif function["status"] == "waiting":
            details.append(f"{function['name']}: needs {', '.join(function['waits_for'])}")
    return {
        "number": verdict["number"],
        "word": word(verdict),
        "state": state(verdict),
        "detail": "; ".join(details)[:MAX_DETAIL],
        "mistakes": [
            f"{each['name']}: {each['mistake']}"
            for each in verdict["functions"]
            if each["status"] == "mistake"
        ],
    }


def as_csv(rows: list[dict], exercises: list[dict]) -> str:
    """The report as comma-separated values: a line for each student."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["student", "done", *(each["file"] for each in exercises)])
    for row in rows:
        cells = [": ".join(filter(None, (c["word"], c["detail"]))) for c in row["cells"]]
        writer.writerow([harmless(row["name"]), row["done"], *map(harmless, cells)])
    return text.getvalue()


def is_own_table(path: Path) -> bool:
    """Is a file the table of a report?"""
    with path.open("rb") as file:
        return file.readline().startswith(HEADER.encode())


def harmless(text: str) -> str:
    """Text that a spreadsheet does not take for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def as_page(rows: list[dict], exercises: list[dict], date: str) -> str:
    """The report as one HTML page."""
    from visuals.page import fill_in

    mistakes = Counter(
        (exercise["number"], mistake)
        for row in rows
        for exercise, each in zip(exercises, row["cells"], strict=True)
        for mistake in each["mistakes"]
    )
    solved = [
        sum(row["cells"][i]["state"] == "done" for row in rows) for i in range(len(exercises))
    ]
    return fill_in(
        TEMPLATE,
        date=date,
        rows=rows,
        exercises=exercises,
        solved=solved,
        mistakes=[(*key, count) for key, count in mistakes.most_common(20)],
    )
