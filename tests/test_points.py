import json
from unittest import mock

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import train
import visualize_diffusion
from checkpoints.checkpoint import load_checkpoint
from dataset.points import POINT_SETS, draw_points
from dataset.registry import DATASETS, load_dataset
from evaluation.points import point_distances
from training import preview
from visuals.paths import straightness


@pytest.fixture(scope="module")
def moons(tmp_path_factory):
    """The output folder of a short run on moons, of almost two epochs."""
    output = tmp_path_factory.mktemp("moons")
    options = {"precision": "fp32", "device": "cpu", "batch_size": 256, "sample_interval": 1}
    options |= {"lr": 3e-3, "timesteps": 200}
    with mock.patch.object(preview, "NUM_POINTS", 100):
        trained = train.train(dataset="moons", max_steps=300, output_dir=output, **options)
    assert trained.exit_code == 0
    return output


@pytest.mark.parametrize("name", POINT_SETS)
def test_points_are_centred_and_of_unit_variance(name):
    data = load_dataset(name)
    points = data.items.double()
    assert points.shape[1:] == DATASETS[name].shape == (2,)
    assert data.items.dtype == torch.float32
    assert points.mean(dim=0).abs().max() < 0.15
    assert 0.9 < points.square().mean() ** 0.5 < 1.1
    assert points.abs().max() < 3
    if data.labels is not None:
        assert data.labels.dtype == torch.int64
        assert data.labels.unique().tolist() == list(range(len(data.classes)))
        assert data.labels.bincount().min() > 0.9 * len(points) / len(data.classes)


@pytest.mark.parametrize("name", POINT_SETS)
def test_points_are_reproducible_and_the_test_split_has_different_ones(name):
    data = load_dataset(name).items
    assert torch.equal(data, load_dataset(name).items)
    test = load_dataset(name, split="test").items
    both = torch.cat([data.unique(dim=0), test.unique(dim=0)])
    assert len(both.unique(dim=0)) == len(both)


@pytest.mark.parametrize("name", POINT_SETS)
def test_points_are_drawn_independently(name):
    """Evenly spaced points, as scikit-learn's moons are, would have a smaller chi-square."""
    big = torch.from_numpy(draw_points(name, 20_000, 5)[0])
    for axis in range(2):
        edges = torch.quantile(big[:, axis], torch.linspace(0, 1, 11))[1:-1]
        counts = []
        for seed in range(60):
            x = torch.from_numpy(draw_points(name, 200, seed)[0])[:, axis].contiguous()
            counts.append(torch.bucketize(x, edges).bincount(minlength=10).double())
        chi_square = (torch.stack(counts) - 20).square().sum(dim=1).div(20).mean().item()
        assert 7.5 < chi_square < 10.5  # 9 degrees of freedom


def test_the_checkerboard_has_only_its_dark_squares():
    points, _ = draw_points("checkerboard", 5000, 0)
    spec = POINT_SETS["checkerboard"]
    column, row = np.floor(points * spec.scale + np.array(spec.centre)).astype(int).T
    assert ((column + row) % 2 == 0).all()
    assert set(zip(column.tolist(), row.tolist(), strict=True)) == {
        (i, j) for i in range(4) for j in range(4) if (i + j) % 2 == 0
    }


def test_the_classes_of_gaussians_and_circles_are_where_they_should_be():
    points, labels = draw_points("gaussians", 5000, 0)
    for i in range(8):
        angle = 2 * np.pi * i / 8
        centre = np.array([np.cos(angle), np.sin(angle)]) / POINT_SETS["gaussians"].scale
        assert_close(points[labels == i].mean(axis=0), centre.astype(np.float32), atol=0.02, rtol=0)
    points, labels = draw_points("circles", 5000, 0)
    radius = np.linalg.norm(points, axis=1) * POINT_SETS["circles"].scale
    assert abs(radius[labels == 0].mean() - 1) < 0.01
    assert abs(radius[labels == 1].mean() - 0.5) < 0.01


def test_the_energy_distance_is_small_to_the_same_set_and_large_to_another():
    fresh = torch.from_numpy(draw_points("moons", 1000, 7)[0])
    ours, floor = point_distances(fresh, "moons")
    assert 0.3 < ours / floor < 3
    ours, floor = point_distances(fresh, "circles")
    assert ours / floor > 10


def test_the_defaults_of_a_run_on_points(moons):
    config = json.loads((moons / "config.json").read_text())
    assert config["model"]["name"] == "mlp"
    assert config["data"]["dim"] == 2
    assert config["diffusion"]["clip"] is False
    assert config["train"]["optimizer"] == "adamw"
    assert len(list((moons / "samples").glob("epoch_*.png"))) == 2
    assert load_checkpoint(moons / "model_final.pt")["step"] == 300


def test_samples_resemble_the_data(script, moons, tmp_path):
    result = script("sample", "--checkpoint", moons / "model_final.pt", "--output", "s.npz")
    assert result.code == 0, result.err
    assert "2000 points" in result.out
    samples = torch.from_numpy(np.load(tmp_path / "s.npz")["arr_0"])
    assert samples.shape == (2000, 2)
    ours, floor = point_distances(samples, "moons")
    assert ours < 2 * floor


def test_pictures_of_a_trajectory(script, moons, tmp_path):
    flags = ["--checkpoint", moons / "model_final.pt", "--num-images", 100, "--steps", 4]
    result = script("sample", *flags, "--show-intermediate", "--animate", "--output", "o/s.png")
    assert result.code == 0, result.err
    assert {"s.png", "s.gif", "intermediate"} <= {p.name for p in (tmp_path / "o").iterdir()}
    assert (tmp_path / "o" / "intermediate" / "filmstrip.png").stat().st_size > 5000


def test_samples_do_not_depend_on_the_batch_size(script, moons, tmp_path):
    flags = ["--checkpoint", moons / "model_final.pt", "--num-images", 40, "--steps", 8]
    for size in (7, 40):
        script("sample", *flags, "--batch-size", size, "--output", f"{size}.npz")
    few, all_at_once = (np.load(tmp_path / f"{size}.npz")["arr_0"] for size in (7, 40))
    assert_close(few, all_at_once, atol=1e-4, rtol=1e-4)


def test_the_likelihood_of_points(script, moons):
    flags = ["--num-images", 64, "--ode-steps", 20]
    result = script("evaluate", "--checkpoint", moons / "model_final.pt", *flags)
    assert result.code == 0, result.err
    figures = json.loads((moons / "metrics.json").read_text())
    assert abs(figures["bpd_ode"] - figures["bpd_bound"]) < 1
    assert figures["bpd_ode"] < 1.6  # a Gaussian of the same variance has 2.05


def test_the_score_field(script, moons, tmp_path):
    result = script("visualize_diffusion", "--checkpoint", moons / "model_final.pt", "--field")
    assert result.code == 0, result.err
    assert (tmp_path / "outputs" / "score_field.png").stat().st_size > 20_000


def test_the_score_is_that_of_the_noisy_data():
    """With the perfect denoiser of a normal distribution the score is linear, -x_t / variance."""
    from diffusion import GaussianDiffusion
    from oracles import gaussian
    from visualize_diffusion import score

    level = GaussianDiffusion("cosine", prediction="v").nearest(0.7)
    x_t = torch.randn(50, 2)
    variance = (2 * level.alpha) ** 2 + level.sigma**2
    assert_close(score(gaussian(0.0, 2.0), x_t, level), -x_t / variance)


def test_the_forward_process_of_points(script, tmp_path):
    result = script("visualize_diffusion", "--dataset", "swissroll", "--save-path", "f.png")
    assert result.code == 0, result.err
    assert (tmp_path / "f.png").stat().st_size > 20_000


@pytest.mark.parametrize("name", ["gaussians", "moons"])
def test_points_of_each_class_are_sampled(script, monkeypatch, name):
    monkeypatch.setattr(preview, "NUM_POINTS", 100)
    flags = ["--dataset", name, "--max-steps", 5, "--class-conditional", "--sample-interval", 0]
    assert script("train", *flags).code == 0
    count = len(load_dataset(name).classes)
    flags = ["--checkpoint", "outputs/model_final.pt", "--class-id", "all", "--steps", 3]
    result = script("sample", *flags, "--guidance-scale", 2, "--output", "s.npz")
    assert result.code == 0, result.err
    assert np.load("s.npz")["arr_0"].shape == (250 * count, 2)


def test_points_train_with_each_kind_of_process(script, monkeypatch):
    monkeypatch.setattr(preview, "NUM_POINTS", 100)
    arguments = ["--dataset", "moons", "--max-steps", 3, "--sample-interval", 0, "--overwrite"]
    for extra in (
        ["--schedule", "edm", "--optimizer", "muon"],
        ["--schedule", "flow", "--noise-assignment", "optimal"],
        ["--schedule", "linear", "--prediction", "eps", "--learn-sigma", "--loss-weight", "vlb"],
    ):
        result = script("train", *arguments, *extra)
        assert result.code == 0, (extra, result.err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "unet"], "the model unet is for images; for points there are mlp"),
        (["--image-size", 8], "--image-size does not apply to moons: its items are points"),
        (["--prediction", "eps"], "--prediction eps is unstable for points with --schedule cosine"),
        (["--flip"], "--flip mirrors images, and this data set is points"),
        (["--patch-size", 2], "the model mlp has no patch_size"),
        (["--channels", 7], "must be an even number"),
    ],
)
def test_options_that_do_not_apply_to_points_are_errors(script, arguments, message):
    result = script("train", "--dataset", "moons", *arguments)
    assert result.code == 2
    assert message in result.err


def test_sampling_from_images_does_not_apply_to_points(script, moons):
    for flags in (["--interpolate"], ["--start-from", "i.png"], ["--invert", "i.png"]):
        result = script("sample", "--checkpoint", moons / "model_final.pt", *flags)
        assert result.code == 2
        assert f"{flags[0]} is for images, and this checkpoint is of points" in result.err


def test_straightness_is_the_length_of_the_way_over_the_distance():
    line = torch.stack([torch.zeros(5, 2), torch.ones(5, 2), 3 * torch.ones(5, 2)])
    assert straightness(line) == pytest.approx(1)
    corner = torch.tensor([[0.0, 0], [1, 0], [1, 1]])[:, None].expand(3, 4, 2)
    assert straightness(corner) == pytest.approx(2**0.5)


def test_the_trajectories_of_several_models(script, moons, conditional, tmp_path, monkeypatch):
    monkeypatch.setattr(visualize_diffusion, "NUM_POINTS", 200)
    monkeypatch.setattr(visualize_diffusion, "PATH_STEPS", 10)
    result = script("visualize_diffusion", "--paths", moons, moons / "model_final.pt")
    assert result.code == 0, result.err
    assert (tmp_path / "outputs" / "paths.png").stat().st_size > 20_000
    refused = script("visualize_diffusion", "--paths", conditional)
    assert refused.code == 2
    assert "--paths is for points" in refused.err


def test_the_score_field_does_not_apply_to_images(script, conditional):
    result = script("visualize_diffusion", "--checkpoint", conditional, "--field")
    assert result.code == 2
    assert "--field is for points" in result.err
    result = script("visualize_diffusion", "--field")
    assert result.code == 2
    assert "--field has no effect without --checkpoint" in result.err
