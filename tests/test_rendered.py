"""The rendered streets: what lies in data_samples is whole, and `rendered` finds it in a clone and in an installed package."""
import shutil
from pathlib import Path

import numpy as np
import pinmem
import pytest

from pinmem.cli import main
from pinmem.data import DEFAULT_SOURCES, FolderDomain, RENDERED, check_domain, open_domain, rendered_folder
from pinmem.labels import CLASSES
from pinmem.scenes import SOURCES

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "data_samples" / "rendered"


@pytest.fixture(scope="module")
def rendered():
    return FolderDomain(FOLDER, RENDERED)


def test_every_pair_is_whole(rendered):
    report = check_domain(rendered, progress=False)
    assert len(rendered) == report["images"] >= 300 and report["ignored"] == []
    absent = [name for name, pixels in zip(CLASSES, report["pixels"]) if not pixels]
    assert absent == ["train"]
    assert {rendered[i][0].shape for i in range(0, len(rendered), 20)} == {(180, 288, 3)}


def test_no_label_is_a_blend_of_two(rendered):
    "A mask rendered with antialiasing has codes between those of the neighbours."
    for i in range(0, len(rendered), 10):
        assert rendered[i][1].max() < len(CLASSES)


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


def test_packaging_names_the_folder():
    text = (ROOT / "setup.py").read_text()
    assert '"pinmem.rendered": "data_samples/rendered"' in text and '"pinmem.rendered"]' in text
