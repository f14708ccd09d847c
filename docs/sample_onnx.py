"""Sample 16 images with onnxruntime and NumPy alone: DDIM (Song et al. 2020, eq. 12, eta = 0).

python export.py --checkpoint outputs/model_final.pt --to onnx model.onnx
python docs/sample_onnx.py model.onnx samples.ppm
"""

import json
import sys
from itertools import pairwise

import numpy as np
import onnxruntime

X_0 = {  # what the network's output implies, for a = alpha and s = sigma (objectives.py)
    "eps": lambda out, x, a, s: (x - s * out) / a,
    "x_0": lambda out, x, a, s: out,
    "v": lambda out, x, a, s: a / (a**2 + s**2) * x - s / np.hypot(a, s) * out,
    "flow": lambda out, x, a, s: (x - s * out) / (a + s),
    "edm": lambda out, x, a, s: a / (a**2 + s**2) * x + s / np.hypot(a, s) * out,
}


def sample(session, about, noise, labels, steps=50, guidance_scale=1.0):
    """Samples (N, ...) from noise of the same shape, for class labels (N,); `about` is the
    description in the file."""

    def predict(x, t, labels):
        a, s = about["sigma_data"] * about["alpha"][t], about["sigma"][t]
        inputs = {"x_t": np.float32(x / np.hypot(a, s)), "t": np.full(len(x), t), "label": labels}
        inputs = {name: inputs[name] for name in about["inputs"]}
        out = session.run(None, inputs)[0][:, : x.shape[1]]  # without a learned variance
        x_0 = about["sigma_data"] * X_0[about["prediction"]](out, x, a, s)
        return x_0.clip(-1, 1) if about["clip_loss"] else x_0

    alpha, sigma = [*about["alpha"], 1.0], [*about["sigma"], 0.0]  # at t = -1: clean data
    times = [round(len(about["alpha"]) * i / steps - 1) for i in range(steps, 0, -1)]
    x = np.hypot(alpha[times[0]], sigma[times[0]]) * noise
    for t, after in pairwise([*times, -1]):
        x_0 = predict(x, t, labels)
        if guidance_scale != 1:  # Ho & Salimans 2022, eq. 6
            null = predict(x, t, np.full_like(labels, about["null_label"]))
            x_0 = null + guidance_scale * (x_0 - null)
        x_0 = x_0.clip(-1, 1) if about["clip"] else x_0
        eps = (x - alpha[t] * x_0) / sigma[t]
        x = alpha[after] * x_0 + sigma[after] * eps
    return x


def require_supported(about):
    """Exit with a message for a network that this example cannot sample with."""
    if "tokens" in about["inputs"]:
        sys.exit("sample_onnx.py: the network reads captions; this example has no tokenizer")
    if len(about["shape"]) != 3:
        sys.exit("sample_onnx.py: the network draws points; this example writes images")
    if about["tune"] == "consistency":
        sys.exit("sample_onnx.py: the network needs the consistency sampler; this example has DDIM")


if __name__ == "__main__":
    session = onnxruntime.InferenceSession(sys.argv[1])
    about = json.loads(session.get_modelmeta().custom_metadata_map["tiny_diffusion"])
    require_supported(about)
    noise = np.random.default_rng(0).standard_normal((16, *about["shape"]))
    labels = np.arange(16) % max(1, len(about["classes"]))
    images = sample(session, about, noise, labels, about["steps"] or 50)  # (16, C, H, W)
    pixels = np.uint8(np.round((images.clip(-1, 1) + 1) * 127.5)).transpose(0, 2, 3, 1)
    row = np.concatenate(pixels.repeat(3 // pixels.shape[3], axis=3), axis=1)  # (H, 16 W, 3)
    with open(sys.argv[2], "wb") as file:  # a PPM file
        file.write(b"P6 %d %d 255\n" % (row.shape[1], row.shape[0]) + row.tobytes())
