"""The rendered streets: what lies in data_samples is whole, and `rendered` finds it in a clone and in an installed package."""
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pinmem
import pytest
from PIL import Image

from pinmem.cli import main
from pinmem.data import DEFAULT_SOURCES, FolderDomain, RENDERED, check_domain, rendered_folder
from pinmem.datasets import open_domain
from pinmem.labels import CLASSES
from pinmem.streets import SOURCES

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "data_samples" / "rendered"


@pytest.fixture(scope="module")
def rendered():
    return FolderDomain(FOLDER, RENDERED)


def test_every_pair_is_whole(rendered):
    report = check_domain(rendered, limit=None)
    assert len(rendered) == report["images"] >= 300 and report["ignored"] == []
    absent = [name for name, pixels in zip(CLASSES, report["pixels"]) if not pixels]
    assert absent == ["train"]
    assert {rendered[i][0].shape for i in range(0, len(rendered), 20)} == {(180, 288, 3)}


def lonely(mask):
    "Share of the pixels whose class none of the eight neighbours has."
    full, (h, w) = np.pad(mask.astype(int), 1, constant_values=-1), mask.shape
    near = [full[1 + dy:1 + dy + h, 1 + dx:1 + dx + w] for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)]
    return (np.stack(near) != mask).all(0).mean()


def test_no_label_is_a_blend_of_two(rendered):
    "A mask rendered with antialiasing has codes between those of its neighbours: pixels that stand alone."
    masks = [rendered[i][1] for i in range(0, len(rendered), 10)]
    assert all(mask.max() < len(CLASSES) for mask in masks)
    blends = [np.asarray(Image.fromarray(m).resize((576, 360), Image.NEAREST).resize((288, 180), Image.BILINEAR, (1, 1, 575, 359)))
              for m in masks]
    assert np.mean([lonely(m) for m in masks]) < .002 < np.mean([lonely(m) for m in blends])


def test_top_is_sky_or_high_and_bottom_is_road(rendered):
    masks = np.stack([rendered[i][1] for i in range(len(rendered))])
    assert (masks[:, -5:] == CLASSES.index("road")).mean() > .5 and (masks[:, :5] == CLASSES.index("road")).mean() == 0
    assert (masks[:, :20] == CLASSES.index("sky")).mean() > (masks[:, 80:] == CLASSES.index("sky")).mean()


def test_size_in_the_repository():
    assert sum(f.stat().st_size for f in FOLDER.rglob("*.*")) < 25e6


def test_opened_by_name_in_a_clone(rendered):
    domain = open_domain(RENDERED)
    assert domain.name == RENDERED and domain.path == FOLDER and len(domain) == len(rendered)
    assert DEFAULT_SOURCES == [*SOURCES, RENDERED]


def test_opened_by_name_in_an_installed_package(tmp_path, monkeypatch, rendered):
    for part in ("images", "labels"):
        (tmp_path / "pinmem" / RENDERED / part).mkdir(parents=True)
    for file in rendered.pairs[0][1:]:
        shutil.copy(file, tmp_path / "pinmem" / RENDERED / file.parent.name)
    monkeypatch.setattr(pinmem, "__file__", str(tmp_path / "pinmem" / "__init__.py"))
    assert rendered_folder() == tmp_path / "pinmem" / RENDERED and len(open_domain(RENDERED)) == 1


def test_missing_folder_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pinmem, "__file__", str(tmp_path / "pinmem" / "__init__.py"))
    assert main(["train", "--sources", "town,rendered", "--out", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "rendered" in said and "leave 'rendered' out of --sources" in said and "Traceback" not in said and not (tmp_path / "run").exists()


def test_the_package_carries_every_pair(tmp_path, rendered):
    "What `pip install` copies, straight from setup.py: the pairs, and every module in every folder."
    subprocess.run([sys.executable, "setup.py", "-q", "build_py", "--build-lib", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    carried = {file.relative_to(tmp_path / "pinmem" / RENDERED) for file in (tmp_path / "pinmem" / RENDERED).rglob("*.*")}
    assert carried >= {file.relative_to(FOLDER) for _, *pair in rendered.pairs for file in pair}
    modules = {file.relative_to(ROOT / "pinmem") for file in (ROOT / "pinmem").rglob("*.py")}
    assert modules == {file.relative_to(tmp_path / "pinmem") for file in (tmp_path / "pinmem").rglob("*.py")}
