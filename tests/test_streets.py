"""Drawn streets: what a notebook cell does not cover."""
import os, subprocess, sys
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from pinmem.streets import SOURCES, STYLES, UNSEEN, Style, draw, write_samples

SAMPLES = Path(__file__).resolve().parents[1] / 'data_samples'


def pairs():
    return sorted(SAMPLES.glob('*/images/*.png'))


def test_samples_cover_every_style_and_stay_small():
    assert {f.parts[-3] for f in pairs()} == set(STYLES) == set(SOURCES) | set(UNSEEN)
    assert sum(f.stat().st_size for f in SAMPLES.rglob('*') if f.is_file()) < 8e6


@pytest.mark.parametrize('file', pairs(), ids=lambda f: f'{f.parts[-3]}-{f.stem}')
def test_samples_are_drawn_again_pixel_by_pixel(file):
    image, mask = draw(file.parts[-3], 0, int(file.stem))
    assert (np.array(Image.open(file)) == image).all()
    assert (np.array(Image.open(file.parents[1] / 'labels' / file.name)) == mask).all()


def test_another_process_draws_the_same():
    code = ("import zlib; from pinmem.streets import draw; draw('city', 1, 1); a, m = draw('night', 4, 2, (96, 64)); "
            "print(zlib.crc32(a.tobytes()), zlib.crc32(m.tobytes()))")
    env = {**os.environ, 'PYTHONHASHSEED': '123'}
    out = [subprocess.run([sys.executable, '-c', c], env=env, capture_output=True, text=True, check=True).stdout
           for c in (code, code.replace("draw('city', 1, 1); ", ''))]
    assert out[0] == out[1] and len(out[0].split()) == 2


@pytest.mark.parametrize('name', list(STYLES))
def test_masks_hold_only_train_ids(name):
    for index in range(12):
        image, mask = draw(name, 11, index, (96, 72))
        assert image.shape == (72, 96, 3) and mask.shape == (72, 96)
        assert image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) <= set(range(19)) | {255}
        assert image.std() > 3, 'an empty picture'


def test_every_class_occurs_in_the_sources():
    seen = set()
    for name in SOURCES:
        for index in range(40): seen |= set(np.unique(draw(name, 3, index, (96, 64))[1]).tolist())
    assert set(range(19)) <= seen


@pytest.mark.parametrize('size', [(16, 16), (64, 128), (333, 77), (512, 256)])
def test_any_size(size):
    image, mask = draw('town', 0, 1, size)
    assert image.shape == (size[1], size[0], 3) and mask.shape == (size[1], size[0])


@pytest.mark.parametrize('call, word', [(lambda: draw('moon', 0, 0), 'moon'), (lambda: draw('town', 0, 0, (8, 8)), '16')])
def test_errors_say_what_is_wrong(call, word):
    with pytest.raises(ValueError, match=word): call()


def test_an_own_style(tmp_path):
    image, mask = draw(Style('mine', trees=0., garden=0., gap=0., hedge=0., people=0., bikes=0., cars=0.), 0, 0)
    assert not np.isin(mask, (11, 12)).any() and (mask == 2).any()
    write_samples(tmp_path, n=1, size=(32, 16))
    assert len(list(tmp_path.glob('*/labels/0000.png'))) == len(STYLES)
