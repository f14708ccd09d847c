"""The page docs/results.md, from the rows of docs/results.json."""

METRICS = ("classifier two-sample copies",)  # of evaluate.py, one or several commands
PROMPTS = ("prompt copies --num-images 1000", "two-sample")  # of data with captions
PROTOCOL = """\
Written by `python benchmarks/record.py --all`. The commands of each row reproduce it.

- **classifier-FID** is measured between 2,000 samples by the averaged weights and the whole test
  split, in the features of the data set's classifier (`evaluate.py`; it is not the FID). The
  **floor** is the classifier-FID of 2,000 training images. Both are the mean, and in brackets the
  lowest and highest, of three seeds of sampling, not of training. **Ratio** is the classifier-FID
  divided by the floor. Figures can be compared only if they are from the same classifier.
- **AUC** is that of the two-sample test ([evaluation.md](evaluation.md)): 0.5 if a network that is
  trained for it cannot tell samples from real images, 1 if it always can; on all grey levels and
  on 16. In brackets, the lowest and highest of three networks, and the floor (training images in
  the place of the samples). **Almost background** is the share of pixels of 1 to 10 grey levels
  from the background; in brackets, that of training images.
- **Exact match** is the share of samples of which everything is right that their captions say, and
  **statements** the share of single statements that are right, as a network reads them that was
  trained on real images ([text.md](text.md)). In brackets, the lowest and highest of three sets of
  1,000 samples. Held-out captions have combinations that do not occur in training.
- No test image is trained on. The presets were chosen by runs that were measured on the same test
  split ([presets.md](presets.md)), by differences far above chance. These runs were made later.
- **Minutes** are those of the whole `train.py`, with imports, data, validation and pictures; of
  all sessions, if the run was interrupted and resumed. **Start** is the time in seconds from the
  start of the process to its first training step, and **memory** its peak of resident memory.
- **64 images** is the time in seconds of `sample.py` for 64 images in bf16, without starting
  Python.
- **Code** is the commit that trained the network. "Older code": modules that matter for the row
  have changed since then (`benchmarks/code_digest.py`). "Older flags": today's recipe has others.
- An empty cell was not measured."""


def page(rows: list[dict]) -> str:
    """The content of docs/results.md."""
    lines = ["# Results", "", PROTOCOL, ""]
    classified = [row for row in rows if "measures" in row]
    lines += table(["recipe", *QUALITY], [[row["recipe"], *quality(row)] for row in classified])
    if asked := [row for row in rows if "prompt" in row]:
        lines += ["", *table(["recipe", *OBEYED], [[row["recipe"], *obeyed(row)] for row in asked])]
    lines += ["", *table(["recipe", *COST], [[row["recipe"], *cost(row)] for row in rows])]
    for row in rows:
        lines += ["", f"## {row['recipe']}", "", "```", row["train"]]
        lines += [f"python evaluate.py {row['draw']}{metrics}" for metrics in metrics_of(row)]
        lines += [f"python sample.py {row['draw']}", "```", ""]
        reason = f" ({row['outdated']})" if row.get("outdated") else ""
        lines += [
            f"{row['date']}{made_by(row)}{reason}, {row['machine']}, {row['precision']}, torch "
            f"{row['torch']}. {judge_of(row)} The first 64 samples of seed 0, not selected:",
            "",
            f"![{row['recipe']}]({row['grid']})",
        ]
    return "\n".join(lines) + "\n"


QUALITY = ("classifier-FID", "floor", "ratio", "precision, recall", "near-copies", "AUC")
QUALITY += ("AUC, 16 levels", "almost background")
OBEYED = ("exact match", "statements", "precision, recall", "exact match, training captions")
OBEYED += ("exact match of real images", "near-copies", "AUC", "AUC, 16 levels")
COST = ("minutes", "epochs", "updates", "images/s", "parameters", "start", "memory", "64 images")
COST += ("date", "code")


def quality(row: dict) -> list[str]:
    """The cells of a row on its samples."""
    distance = row["measures"]["classifier_fid"]
    return [
        ranged(distance),
        f"{distance['floor']:.3f} ({spread(distance['floor_values'])})",
        f"**{distance['ratio']:.2f}**",
        ", ".join(f"{row['measures'][key]['mean']:.2f}" for key in ("precision", "recall")),
        f"{100 * row['near_copies']:.2f} %",
        *areas(row),
        almost_background(row.get("two_sample", {}).get("grey_levels")),
    ]


def obeyed(row: dict) -> list[str]:
    """The cells of a row on whether its samples show what their captions say."""
    ours, training = row["prompt"]["held_out"], row["prompt"]["training"]
    return [
        ranged(ours["exact_match"]),
        ranged(ours["attribute_accuracy"]),
        ", ".join(f"{ours[key]['mean']:.2f}" for key in ("precision", "recall")),
        ranged(training["exact_match"]),
        f"{ours['exact_match']['floor']:.3f}",
        f"{100 * row['near_copies']:.2f} %",
        *areas(row),
    ]


def judge_of(row: dict) -> str:
    """The network that measured a row, in a sentence."""
    if "prompt" in row:
        return f"Reader of attributes `{row['prompt']['reader'][:12]}`."
    classifier = row["classifier"]
    return (
        f"Classifier `{classifier['sha256'][:12]}`, accuracy on the test split "
        f"{100 * classifier['accuracy']:.2f} %."
    )


def areas(row: dict) -> list[str]:
    """The cells of the two-sample test: all grey levels, and 16."""
    if "two_sample" not in row:
        return ["", ""]
    found = [row["two_sample"][key] for key in ("auc", "auc_16_levels")]
    return [f"{f['mean']:.3f} ({spread(f['values'])}; floor {f['floor']:.3f})" for f in found]


def almost_background(levels: dict | None) -> str:
    """The cell of the pixels that are almost background."""
    if levels is None:
        return ""
    ours, real = levels["almost_background"], levels["almost_background_of_real"]
    return f"{100 * ours:.2f} % ({100 * real:.2f} %)"


def cost(row: dict) -> list[str]:
    """The cells of a row on its training."""
    sessions = row.get("sessions", 1)
    commit = row.get("code", {}).get("commit")
    code = [f"`{short(commit)}`" if commit else "", row.get("outdated", "")]
    return [
        f"{row['minutes']:.1f}" + (f" in {sessions} sessions" if sessions > 1 else ""),
        f"{row['epochs']:.1f}",
        f"{row['updates']:,}",
        f"{row['images_per_second']:,.0f}",
        f"{row['parameters']:,}",
        "" if row.get("start") is None else f"{row['start']:.1f}",
        "" if row.get("memory") is None else f"{row['memory']:,.0f} MB",
        f"{row['seconds']:.1f}",
        row["date"],
        ", ".join(filter(None, code)),
    ]


def made_by(row: dict) -> str:
    """The commit of a row's code, in words."""
    commit = row.get("code", {}).get("commit")
    return f", commit {short(commit)}" if commit else ""


def short(commit: str) -> str:
    """The first digits of a commit; "+" if files had changed."""
    return commit[:9] + "+" * commit.endswith("+")


def metrics_of(row: dict) -> list[str]:
    """The flags of the commands that measured a row."""
    if "metrics" not in row:
        return [f" --metrics {METRICS[0]}" if "two_sample" in row else ""]
    return [f" --metrics {metrics}" for metrics in row["metrics"]]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def ranged(measure: dict) -> str:
    """The mean of a measure, with its lowest and highest value."""
    return f"{measure['mean']:.3f} ({spread(measure['values'])})"


def spread(values: list[float]) -> str:
    """The lowest and the highest value."""
    return f"{min(values):.3f} to {max(values):.3f}"
