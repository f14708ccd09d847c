"""The model card of exported weights: what they are, how they came to be, and how good they are."""

import json
from pathlib import Path

from checkpoints.weights import WEIGHTS, digest
from dataset.items import item_shape, kind_of

MEASURES = {  # of a report of evaluate.py, and what they are called in the card
    "classifier_fid": "classifier-FID",
    "classifier_kid": "classifier-KID",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "confidence": "confidence of the classifier",
    "class_accuracy": "images of the class that was asked for",
}


def model_card(
    name: str,
    command: str,
    config: dict,
    step: int,
    seconds: float,
    weights: tuple[str, dict],
    report: dict,
) -> str:
    """Markdown for the weights in the file `name`.

    Args:
        command: that draws from them.
        config, step, seconds: those of the checkpoint; no seconds, where they are not known.
        weights: whose they are (a key of `WEIGHTS`), and the tensors by name.
        report: what evaluate.py wrote of them (metrics.json).

    Raises ValueError for a report that is of other weights.
    """
    data, train, (which, tensors) = config["data"], config["train"], weights
    if report.get("weights_sha256") != digest({}, tensors):
        raise ValueError("--card: the report is of other weights; measure these by evaluate.py")
    shape = item_shape(data)
    kind, sizes = kind_of(shape), " x ".join(map(str, shape))
    epochs = step * train["update_size"] / (data["count"] - train["validation"])
    told = "" if config["model"].get("num_classes") else "not "
    parameters = sum(tensor.numel() for tensor in tensors.values())
    minutes = f", in {seconds / 60:.1f} minutes of training" if seconds else ""
    recipe = {section: config[section] for section in ("model", "diffusion", "train")}
    return f"""# {name}

A diffusion model of {data["dataset"]}: {kind} of {sizes}, {parameters:,} parameters
({config["model"]["name"]}).

```
{command}
```

## Data

{data["dataset"]}, its training split of {data["count"]:,} {kind}, less {train["validation"]:,}
that were held out to choose by. Classes: {", ".join(data["classes"]) or "none"}; the network
is {told}told them.

## Recipe

{step:,} updates of {train["update_size"]} {kind}, {epochs:.1f} epochs{minutes}.
The weights are the {WEIGHTS[which]}. All choices:

```json
{json.dumps(recipe, indent=1)}
```

## Figures

{figures(report)}

## Limits

It draws {kind} like those of its data set, with that set's biases, and nothing else. The figures
compare only with others of the same classifier; near-copies were looked for pixel by pixel, which
does not find moved or altered ones.
"""


def drawing_flags(report: dict) -> str:
    """The flags of sample.py with which the images of a report were drawn."""
    flags = [f"--sampler {report.get('sampler')}", f"--steps {report.get('steps')}"]
    if report.get("guidance_scale", 1) != 1:
        flags.append(f"--guidance-scale {report['guidance_scale']}")
    return " ".join([*flags, f"--precision {report.get('precision')}"])


def figures(report: dict) -> str:
    """The table of what was measured."""
    measured = report.get("classifier")
    if not measured:
        return "None were measured by a classifier."
    seeds = ", ".join(map(str, report.get("seeds", [])))
    rows = [
        f"Sets of {report['num_images']:,} (`{drawing_flags(report)}`, seeds {seeds}) against the "
        f"{report['compared_with']}, in the features of the classifier "
        f"`{measured['sha256'][:12]}` (right on {100 * measured['accuracy']:.2f} %):",
        "",
        "| measure | generated | as many training images |",
        "| --- | --- | --- |",
    ]
    for key, label in MEASURES.items():
        if key in measured:
            found = measured[key]
            spread = f"{min(found['values']):.4g} to {max(found['values']):.4g}"
            rows.append(f"| {label} | {found['mean']:.4g} ({spread}) | {found['floor']:.4g} |")
    if "ratio" in measured["classifier_fid"]:
        ratio = measured["classifier_fid"]["ratio"]
        rows += ["", f"The classifier-FID is {ratio:.2f} times that of training images."]
    if copied := report.get("copies"):
        rows.append(
            f"Near-copies of training images: {100 * copied['near_copies']:.2f} % "
            f"(held-out images: {100 * copied['of_held_out']:.0f} %)."
        )
    return "\n".join(rows)


def read_report(path: Path) -> dict:
    """A report of evaluate.py. Raises ValueError for a file that is none."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"--card {path}: {error}") from None
    if not isinstance(report, dict) or "dataset" not in report:
        raise ValueError(f"--card {path}: this is no report of evaluate.py")
    return report
