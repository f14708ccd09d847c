"""Model cards: Markdown pages on the data, training and measured quality of exported weights."""

import html
import json
from pathlib import Path
from statistics import mean

from checkpoints.weights import WEIGHT_KINDS, weights_sha256
from dataset.image_files import printable
from dataset.items import item_shape, kind_of

MEASURES = {  # key in a report of evaluate.py: name in the card
    "classifier_fid": "classifier-FID",
    "classifier_kid": "classifier-KID",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "confidence": "confidence of the classifier",
    "class_accuracy": "images of the requested class",
}
SEPARATION = {  # of the two-sample test
    "auc": "AUC of a network that tells samples from real images",
    "auc_16_levels": "the same with 16 grey levels",
}
PROMPT_MEASURES = {
    "attribute_accuracy": "statements that are right",
    "exact_match": "images of which all statements are right",
    "precision": "precision",
    "recall": "recall",
    "reader_fid": "distance in the reader's features",
}


def model_card(
    name: str,
    command: str,
    config: dict,
    step: int,
    seconds: float,
    weights: tuple[str, dict],
    report: dict | None,
) -> str:
    """Markdown text of the model card. `seconds` is 0 if the training time is unknown.

    `weights` are a key of `WEIGHT_KINDS` and the tensors by name, `report` the metrics.json that
    evaluate.py wrote for them, or None. Raises ValueError for a report of other weights.
    """
    data, train, (which, tensors) = config["data"], config["train"], weights
    report = {"weights_sha256": weights_sha256({}, tensors)} if report is None else report
    if report.get("weights_sha256") != weights_sha256({}, tensors):
        raise ValueError("--card: this is a report of other weights; run evaluate.py on these")
    shape = item_shape(data)
    kind, sizes = kind_of(shape), " x ".join(map(str, shape))
    classes = ", ".join(html.escape(printable(c), quote=False) for c in data["classes"]) or "none"
    known = {"the class": "num_classes", "captions": "caption_length"}
    known |= {"images in low resolution": "super_resolution"}
    known = " and ".join(name for name, key in known.items() if config["model"].get(key))
    conditional = f"conditioned on {known}" if known else "not conditioned on the class"
    parameters = sum(tensor.numel() for tensor in tensors.values())
    minutes = f", {seconds / 60:.1f} minutes of training" if seconds else ""
    searched = ""
    if report.get("copies"):
        searched = """ Near-copies were searched for pixel by
pixel, which does not find shifted or altered ones."""
    origin, steps = "Another program has trained the network.", "The training is unknown."
    sections, kept = ["model", "diffusion"], "The weights are those of the file."
    if data["count"]:
        sections.append("train")
        kept = f"The weights are the {WEIGHT_KINDS[which]}."
        epochs = step * train["update_size"] / (data["count"] - train["validation"])
        origin = f"""The training split of {data["dataset"]}: {data["count"]:,} {kind}, of which
{train["validation"]:,} were held out for validation."""
        steps = f"""{step:,} training steps of {train["update_size"]} {kind}, {epochs:.1f} \
epochs{minutes}."""
        if train.get("init_from"):
            before = html.escape(printable(train["init_from"]), quote=False)
            steps += f"\nThe network began with the weights of {before}."
    recipe = {section: config[section] for section in sections}
    return f"""# {name}

A diffusion model of {data["dataset"]}: {kind} of {sizes}, {parameters:,} parameters
({config["model"]["name"]}).

```
{command}
```

## Data

{origin} Classes:
{classes}. The network is {conditional}.

## Recipe

{steps}
{kept} The configuration:

```json
{json.dumps(recipe, indent=1)}
```

## Figures

{figures_table(report)}

## Limits

The network generates only {kind} like those of its data set, with the biases of that set. Figures
can be compared only if they are from the same classifier.{searched}
"""


def is_card(path: Path) -> bool:
    """Is a file a model card?"""
    return "\n\nA diffusion model of " in path.read_text(encoding="utf-8", errors="replace")


def super_resolution_rows(enlarged: dict, origin: str) -> list[str]:
    """Markdown of a table of ways of enlarging images."""
    sha256, size = enlarged["sha256"], " x ".join(map(str, enlarged["size"]))
    rows = [f"Real images ({origin}), enlarged from {size} pixels:", ""]
    rows += ["| | PSNR, dB | SSIM | classifier-FID |", "| --- | --- | --- | --- |"]
    for name, measures in enlarged.items():
        if name not in ("floor", "sha256", "size"):
            found = [mean(measures[key]) for key in ("psnr", "ssim")]
            fid = f"{mean(measures['classifier_fid']):.2f}" if sha256 else ""
            rows.append(f"| {name} | {found[0]:.2f} | {found[1]:.3f} | {fid} |")
    if sha256:
        rows.append(f"| training images | | | {enlarged['floor']:.2f} |")
        rows += ["", f"The features are those of the classifier `{sha256[:12]}`."]
    return rows


def drawing_flags(report: dict) -> str:
    """Flags of sample.py that sample as the report's images were sampled."""
    flags = ["--start-from small.png"] if report.get("super_resolution") else []
    for name in ("sampler", "steps", "spacing"):
        if report.get(name) is not None:
            flags.append(f"--{name} {report[name]}")
    if report.get("guidance_scale", 1) != 1:
        flags.append(f"--guidance-scale {report['guidance_scale']}")
    if report.get("guide"):
        flags.append(f"--guide {report['guide']}")
    if report.get("precision"):
        flags.append(f"--precision {report['precision']}")
    return " ".join(flags)


def figures_table(report: dict) -> str:
    """Markdown tables of the measures in a report."""
    rows, tests = [], measure_rows(report.get("two_sample", {}), SEPARATION)
    if enlarged := report.get("super_resolution"):
        rows += [*super_resolution_rows(enlarged, report["compared_with"]), ""]
    if measured := report.get("classifier"):
        rows += [
            f"{sets_of(report)} compared with real images ({report['compared_with']}), in the "
            f"features of the classifier `{measured['sha256'][:12]}` "
            f"(accuracy {100 * measured['accuracy']:.2f} %):",
            "",
            "| measure | samples: mean (lowest to highest) | as many training images |",
            "| --- | --- | --- |",
            *measure_rows(measured, MEASURES),
            *tests,
        ]
        if "ratio" in measured["classifier_fid"]:
            ratio = measured["classifier_fid"]["ratio"]
            rows += ["", f"The classifier-FID is {ratio:.2f} times that of training images."]
    if asked := report.get("prompt"):
        left_out = ", ".join(asked["left_out"]) or "nothing"
        rows += [
            f"{sets_of(report)}, drawn by captions of real images. What they show is read by the "
            f"network `{asked['reader'][:12]}`; left out, because it cannot be read reliably: "
            f"{left_out}.",
            "",
            "| measure | samples: mean (lowest to highest) | the real images |",
            "| --- | --- | --- |",
            *measure_rows(asked["training"], PROMPT_MEASURES, ", captions of training"),
            *measure_rows(asked["held_out"], PROMPT_MEASURES, ", held-out captions"),
            "",
        ]
    if tests and "classifier" not in report:
        if not rows:
            rows += [
                f"{sets_of(report)}, compared with real images ({report['compared_with']}):",
                "",
            ]
        count = report["two_sample"].get("num_images", report["num_images"])  # of older reports
        rows += [f"| two-sample test, sets of {count:,} | samples | as many training images |"]
        rows += ["| --- | --- | --- |", *tests, ""]
    if not rows and "copies" not in report:
        return "Nothing was measured with a classifier."
    if copied := report.get("copies"):
        rows.append(
            f"Near-copies of training images: {100 * copied['near_copies']:.2f} % "
            f"(held-out images: {100 * copied['of_held_out']:.0f} %)."
        )
    return "\n".join(rows)


def sets_of(report: dict) -> str:
    """The samples that were measured, in words."""
    seeds = ", ".join(map(str, report.get("seeds", [])))
    return f"Sets of {report['num_images']:,} samples (`{drawing_flags(report)}`, seeds {seeds})"


def measure_rows(measured: dict, names: dict[str, str], of: str = "") -> list[str]:
    """A line of a table for each measure that was taken."""
    rows = []
    for key, label in names.items():
        if key in measured:
            found = measured[key]
            spread = f"{min(found['values']):.4g} to {max(found['values']):.4g}"
            rows.append(f"| {label}{of} | {found['mean']:.4g} ({spread}) | {found['floor']:.4g} |")
    return rows


def read_report(path: Path) -> dict:
    """Read a report of evaluate.py. Raises ValueError for any other file."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(report, dict) or not (
        "dataset" in report and {"checkpoint", "samples"} & report.keys()
    ):
        raise ValueError(f"{path}: this is not a report of evaluate.py")
    return report
