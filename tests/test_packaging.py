"""`pip install .` installs mini_diffusion, its command and NumPy, and nothing else."""

import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from conftest import ROOT

# Not copied: large, or no sources.
IGNORED = (".*", "__pycache__", "*.egg-info", "build", "data", "docs", "outputs", "weights")


class Installed(NamedTuple):
    """A fresh virtual environment with the project installed by pip."""

    folder: Path
    packages: Path  # site-packages
    names: set[str]  # in site-packages
    distribution: metadata.Distribution


def run(*command, cwd: Path) -> str:
    """Standard output of a command, which must succeed."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Installed:
    """Build a wheel from a copy of the sources, offline, and install it."""
    pytest.importorskip("setuptools", minversion="77")
    pip = Path(pytest.importorskip("pip").__file__).parent
    base = tmp_path_factory.mktemp("packaging")
    source, folder = base / "source", base / "venv"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*IGNORED))
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]

    run(sys.executable, pip, "wheel", *options, "--no-build-isolation", ".", cwd=source)
    (wheel,) = source.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=base)
    (packages,) = folder.glob("lib/python*/site-packages")
    python = folder / "bin" / "python"  # runs the pip of this environment, which saves seconds
    run(python, pip, "install", *options, "--no-compile", wheel, cwd=base)
    names = {path.name for path in packages.iterdir()}
    (distribution,) = metadata.distributions(path=[str(packages)])
    for path in Path(np.__file__).parents[1].glob("numpy*"):  # with numpy.libs
        (packages / path.name).symlink_to(path)
    return Installed(folder, packages, names, distribution)


def test_mini_diffusion_is_the_only_package_installed(installed):
    dist_info = f"tiny_diffusion-{installed.distribution.version}.dist-info"
    assert installed.names == {"mini_diffusion", dist_info}
    modules = {path.name for path in (ROOT / "mini_diffusion").glob("*.py")}
    assert {path.name for path in (installed.packages / "mini_diffusion").iterdir()} == modules


def test_numpy_is_the_only_dependency(installed):
    assert installed.distribution.requires == ["numpy"]


def test_the_description_is_the_readme(installed):
    description = installed.distribution.metadata.get_payload()
    assert description.strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


def test_the_installed_command_runs(installed):
    (command,) = installed.distribution.entry_points
    assert (command.group, command.name) == ("console_scripts", "mini-diffusion-demo")
    out = run(installed.folder / "bin" / command.name, "--help", cwd=installed.folder)
    assert out.startswith("usage: mini-diffusion-demo")


def test_the_installed_package_is_imported_from_site_packages(installed):
    code = "import mini_diffusion; print(mini_diffusion.__file__)"
    out = run(installed.folder / "bin" / "python", "-c", code, cwd=installed.folder)
    assert Path(out.strip()).parent == installed.packages / "mini_diffusion"
