"""Broken and unusual data folders: every complaint is one line that names the file and the remedy."""
import struct, zlib
import numpy as np, pytest
from PIL import Image
from helpers import complaint
from pinmem.data import CamVidDomain, DrawnDomain, FolderDomain, cache, check_domain, open_domain, read_image

W, H = 12, 8


def save(path, array, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **kw)
    return path


@pytest.fixture
def pairs(tmp_path):
    "A healthy miniature: three pairs, below a folder whose name is not ASCII."
    root, rng = tmp_path / 'Straße 街', np.random.default_rng(0)
    for i in range(3):
        save(root / 'images' / f'ü{i}.png', rng.integers(0, 256, (H, W, 3), dtype=np.uint8))
        save(root / 'labels' / f'ü{i}.png', rng.integers(0, 19, (H, W), dtype=np.uint8))
    return root


def read_all(root): return check_domain(FolderDomain(root), progress=False)


def test_healthy(pairs):
    domain = open_domain(f'folder:{pairs}')
    assert (len(domain), domain.key(0), domain.name) == (3, 'ü0', 'Straße 街')
    image, mask = domain[0]
    assert image.shape == (H, W, 3) and mask.shape == (H, W) and image.dtype == mask.dtype == np.uint8
    assert read_all(pairs)['images'] == 3 and read_all(pairs)['pixels'].sum() == 3 * H * W


def test_missing_folder(tmp_path):
    complaint(FileNotFoundError, lambda: FolderDomain(tmp_path / 'nowhere'), 'nowhere', 'no such folder', 'images/')
    (tmp_path / 'images').mkdir()
    save(tmp_path / 'images' / 'a.png', np.zeros((H, W, 3), np.uint8))
    complaint(FileNotFoundError, lambda: FolderDomain(tmp_path), 'labels', 'no such folder')


def test_empty_folder(tmp_path):
    for part in 'images', 'labels': (tmp_path / part).mkdir()
    complaint(FileNotFoundError, lambda: FolderDomain(tmp_path), 'images', '.png')
    (tmp_path / 'images' / 'notes.txt').write_text('no picture')
    complaint(FileNotFoundError, lambda: FolderDomain(tmp_path), 'images', '.jpg')


@pytest.mark.parametrize('gone, stays', [('labels', 'images'), ('images', 'labels')])
def test_no_partner(pairs, gone, stays):
    (pairs / gone / 'ü1.png').unlink()
    complaint(FileNotFoundError, lambda: FolderDomain(pairs), pairs / stays / 'ü1.png', 'no partner', gone)


def test_two_images_one_name(pairs):
    save(pairs / 'images' / 'ü0.jpg', np.zeros((H, W, 3), np.uint8))
    complaint(ValueError, lambda: FolderDomain(pairs), 'images', "2 files are called 'ü0'", 'keep one')


def test_sizes_differ(pairs):
    save(pairs / 'labels' / 'ü1.png', np.zeros((H, W + 1), np.uint8))
    complaint(ValueError, lambda: read_all(pairs), 'ü1.png', f'{W + 1}x{H}', f'{W}x{H}', 'resize')


def test_value_outside_the_codes(pairs):
    save(pairs / 'labels' / 'ü2.png', np.full((H, W), 33, np.uint8))
    complaint(ValueError, lambda: read_all(pairs), 'ü2.png', '[33]', 'table of codes')
    complaint(ValueError, lambda: check_domain(CamVidDomain(pairs), False), 'expected', '11')


@pytest.mark.parametrize('part', ['images', 'labels'])
def test_truncated(pairs, part):
    file = pairs / part / 'ü1.png'
    file.write_bytes(file.read_bytes()[:60])
    complaint(ValueError, lambda: read_all(pairs), file, 'cannot be read', 'save it again')


def test_truncated_jpeg(pairs):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = save(pairs / 'images' / 'ü9.jpg', noise)
    file.write_bytes(file.read_bytes()[:900])
    complaint(ValueError, lambda: read_image(file), 'ü9.jpg', 'cannot be read')


@pytest.mark.parametrize('part', ['images', 'labels'])
@pytest.mark.parametrize('content', [b'', b'this is no picture', b'\x89PNG\r\n\x1a\n'])
def test_not_a_picture(pairs, part, content):
    (pairs / part / 'ü0.png').write_bytes(content)
    complaint(ValueError, lambda: read_all(pairs), pairs / part / 'ü0.png', 'cannot be read')


def png16(path, channels):
    "Write a 16-bit PNG by hand: Pillow cannot write 16-bit colour."
    def chunk(kind, body):
        return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    kind = {1: 0, 3: 2}[channels]
    rows = (b'\0' + bytes(range(W * channels * 2))) * H
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', W, H, 16, kind, 0, 0, 0))
                     + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))


@pytest.mark.parametrize('channels', [1, 3])
def test_sixteen_bit_image(pairs, channels):
    png16(pairs / 'images' / 'ü1.png', channels)
    complaint(ValueError, lambda: read_all(pairs), 'ü1.png', '8-bit')


def test_sixteen_bit_label(pairs):
    png16(pairs / 'labels' / 'ü1.png', 1)
    complaint(ValueError, lambda: read_all(pairs), pairs / 'labels' / 'ü1.png', '8-bit')


def test_colour_label(pairs):
    save(pairs / 'labels' / 'ü1.png', np.zeros((H, W, 3), np.uint8))
    complaint(ValueError, lambda: read_all(pairs), 'ü1.png', 'mode RGB', 'class numbers')


def test_palette_label_is_read_as_numbers(pairs):
    numbers = np.full((H, W), 7, np.uint8)
    im = Image.fromarray(numbers).convert('P')
    im.putdata(numbers.ravel().tolist())
    im.putpalette([9, 8, 7] * 256)
    im.save(pairs / 'labels' / 'ü1.png')
    assert (FolderDomain(pairs)[1][1] == 7).all()


def test_all_labels_ignored(pairs):
    void = np.full((H, W), 255, np.uint8)
    save(pairs / 'labels' / 'ü1.png', void)
    with pytest.warns(UserWarning, match='wholly ignored.*ü1'): report = read_all(pairs)
    assert report['ignored'] == ['ü1'] and report['images'] == 3
    for i in 0, 2: save(pairs / 'labels' / f'ü{i}.png', void)
    complaint(ValueError, lambda: read_all(pairs), 'every label', '255', 'ü0', 'train ids')


@pytest.mark.parametrize('mode', ['RGBA', 'L', 'P', 'CMYK', '1', 'LA'])
def test_unusual_modes_become_rgb(tmp_path, mode):
    kind = '.jpg' if mode == 'CMYK' else '.png'
    Image.new('RGB', (W, H), (255, 255, 255)).convert(mode).save(tmp_path / f'a{kind}')
    image = read_image(tmp_path / f'a{kind}')
    assert image.shape == (H, W, 3) and image.dtype == np.uint8 and image.min() >= 250


def test_exif_rotation(tmp_path):
    stored = np.zeros((H, W, 3), np.uint8)
    stored[:, :W // 2] = 255                     # left half white
    exif = Image.Exif()
    exif[0x0112] = 6                             # to be shown turned by 90 degrees clockwise
    Image.fromarray(stored).save(tmp_path / 'a.png', exif=exif)
    image = read_image(tmp_path / 'a.png')
    assert image.shape == (W, H, 3)
    assert (image[:W // 2] == 255).all() and (image[W // 2:] == 0).all(), 'left becomes top'


def test_unknown_domain(pairs):
    from pinmem.streets import STYLES
    style = next(iter(STYLES))
    complaint(ValueError, lambda: open_domain(style + 'x'), f'did you mean {style!r}', 'folder:PATH')
    complaint(ValueError, lambda: open_domain(str(pairs)), f'did you mean folder:{pairs}')
    complaint(ValueError, lambda: open_domain('camvidd:/a'), 'camvid:PATH', style)


def test_index_beyond_the_scenes():
    from pinmem.streets import STYLES
    complaint(IndexError, lambda: DrawnDomain(next(iter(STYLES)), n=2)[2], 'scene 2', '2 scenes')


def test_scenes_drawn_in_other_processes_are_the_same():
    from pinmem.streets import STYLES
    fresh, stored = (DrawnDomain(next(iter(STYLES)), n=3, size=(64, 32)) for _ in range(2))
    cache(stored, processes=2, progress=False)
    assert stored.pool.shape == (3, 32, 64, 4)
    for i in range(3):
        for a, b in zip(fresh[i], stored[i]): assert (a == b).all()
