"""Broken and unusual data folders: every complaint is one line that names the file and the remedy."""
import struct, zlib
import numpy as np, pytest
from PIL import Image
from helpers import complaint
from pinmem.data import (PICTURE_KINDS, TURNS, CamVidDomain, DrawnDomain, FolderDomain, cache, check_domain, evenly, find_images,
                         read_image, read_label, say_absent)
from pinmem.datasets import open_domain
from pinmem.survey import check_place, survey

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


def read_all(root): return check_domain(FolderDomain(root), limit=None)


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
    complaint(ValueError, lambda: check_domain(CamVidDomain(pairs)), 'expected', '11')


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


# --- pictures as people have them --------------------------------------------------------------------------------

LITTER = ['._a.jpg', '.DS_Store', 'Thumbs.db', 'desktop.ini', '.hidden.png', 'a.jpg:Zone.Identifier', 'notes.txt']


def litter(folder):
    for name in LITTER: (folder / name).write_bytes(b'no picture')


@pytest.mark.parametrize('kind', [*PICTURE_KINDS, '.TIF', '.JPG', '.WebP'])
def test_every_kind_of_picture_counts_in_a_folder_as_by_name(pairs, tmp_path, kind):
    for file in (pairs / 'images').iterdir():
        with Image.open(file) as im: im.save(pairs / 'images' / f'{file.stem}{kind}')
        if kind != '.png': file.unlink()
    for part in 'images', 'labels': litter(pairs / part)
    report = read_all(pairs)
    assert report['images'] == 3 and report['looked'] == 3
    found = find_images([pairs / 'images'])
    assert [f.name for f in found] == [f'ü{i}{kind}' for i in range(3)] == [f.name for f in find_images(found)]
    assert all(read_image(f).shape == (H, W, 3) for f in found)


def test_find_images(pairs, tmp_path):
    files = sorted((pairs / 'images').iterdir())
    assert find_images([pairs / 'images', str(files[1])]) == [*files, files[1]], 'folders and files, in that order'
    (tmp_path / 'street').write_bytes(files[0].read_bytes())
    assert read_image(find_images([tmp_path / 'street'])[0]).shape == (H, W, 3), 'by name, without an extension'
    (tmp_path / 'linked').symlink_to(pairs / 'images')
    assert len(find_images([tmp_path / 'linked'])) == 3
    (tmp_path / 'empty').mkdir()
    complaint(FileNotFoundError, lambda: find_images([tmp_path / 'empty']), tmp_path / 'empty', 'holds no', '.webp', '.jpg')
    litter(tmp_path / 'empty')
    complaint(FileNotFoundError, lambda: find_images([tmp_path / 'empty']), tmp_path / 'empty', 'holds no')
    complaint(FileNotFoundError, lambda: find_images([tmp_path / 'none.png']), 'none.png', 'no such file', 'name a picture')
    assert find_images([]) == []


@pytest.mark.parametrize('kind', ['.gif', '.tif', '.webp', '.png'])
def test_of_several_frames_the_first_is_read_and_said(tmp_path, kind):
    white, black = (Image.new('RGB', (W, H), (level,) * 3) for level in (255, 0))
    white.save(tmp_path / f'a{kind}', save_all=True, append_images=[black, white])
    with pytest.warns(UserWarning, match=f'a{kind}: holds 3 pictures; only the first'): image = read_image(tmp_path / f'a{kind}')
    assert image.shape == (H, W, 3) and image.min() > 240


def test_the_preview_that_a_camera_adds_is_no_second_picture(tmp_path, recwarn):
    white, black = (Image.new('RGB', (W, H), (level,) * 3) for level in (255, 0))
    white.save(tmp_path / 'a.jpg', 'MPO', save_all=True, append_images=[black])
    assert read_image(tmp_path / 'a.jpg').min() > 240 and not recwarn.list


@pytest.mark.parametrize('kind', ['.png', '.tif'])
def test_deep_pictures_of_any_kind_are_refused(tmp_path, kind):
    Image.fromarray(np.full((H, W), 30_000, np.uint16)).save(tmp_path / f'a{kind}')
    complaint(ValueError, lambda: read_image(tmp_path / f'a{kind}'), f'a{kind}', '8-bit', 'convert it')
    Image.fromarray(np.zeros((H, W), np.float32)).save(tmp_path / 'f.tif')
    complaint(ValueError, lambda: read_image(tmp_path / 'f.tif'), 'f.tif', '8-bit')


# --- pictures that are turned to be seen -------------------------------------------------------------------------

WAYS = {2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a[::-1].swapaxes(0, 1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: a[:, ::-1].swapaxes(0, 1)}


def marked(file, array, mark):
    exif = Image.Exif()
    exif[0x0112] = mark
    return save(file, np.ascontiguousarray(array), exif=exif, **({'lossless': True} if file.suffix == '.webp' else {}))


@pytest.fixture
def turned(tmp_path):
    "A maker of one pair: image stored lying with a mark, label as given; returns the domain and what is right."
    rng = np.random.default_rng(1)
    def make(mark, label_of, kind='.png', shape=(H, W), label_mark=1):
        stored, label = rng.integers(0, 256, (*shape, 3), dtype=np.uint8), rng.integers(0, 19, shape, dtype=np.uint8)
        marked(tmp_path / f'images/a{kind}', stored, mark)
        marked(tmp_path / 'labels/a.png', label_of(label), label_mark)
        turn = WAYS.get(mark, lambda a: a)
        return FolderDomain(tmp_path), turn(stored), turn(label)
    return make


@pytest.mark.parametrize('kind', ['.png', '.webp', '.tif'])
@pytest.mark.parametrize('mark', range(1, 9))
def test_image_and_label_with_the_same_mark_are_turned_alike(turned, mark, kind):
    domain, image, label = turned(mark, lambda label: label, kind, label_mark=mark)
    assert (domain[0][0] == image).all() and (domain[0][1] == label).all()


@pytest.mark.parametrize('kind', ['.png', '.webp', '.tif'])
@pytest.mark.parametrize('mark', range(2, 9))
def test_a_label_that_may_lie_differently_is_refused(turned, tmp_path, mark, kind):
    domain, *_ = turned(mark, lambda label: label, kind)
    lies = 'lies as the image is stored' if mark > 4 else 'nobody knows how it lies'
    text = complaint(ValueError, lambda: domain[0], tmp_path / 'labels/a.png', f'EXIF orientation {mark}', TURNS[mark], lies,
                     'save the image again', 'turn the label')
    assert 'resize' not in text, 'that would distort it'


@pytest.mark.parametrize('mark', range(2, 9))
def test_an_upright_label_passes_where_its_size_proves_it(turned, mark):
    domain, image, label = turned(mark, WAYS[mark])
    if mark > 4: assert (domain[0][0] == image).all() and (domain[0][1] == label).all()
    else: complaint(ValueError, lambda: domain[0], f'EXIF orientation {mark}', 'nobody knows')
    domain, *_ = turned(mark, WAYS[mark], shape=(H, H))
    complaint(ValueError, lambda: domain[0], f'EXIF orientation {mark}', 'nobody knows')
    domain, *_ = turned(mark, lambda label: label[:3, :5])
    complaint(ValueError, lambda: domain[0], 'a.png', '5x3', 'resize the label')


def test_a_mark_that_means_nothing_is_no_mark(turned):
    for mark in 0, 9, 77:
        domain, image, label = turned(mark, lambda label: label)
        assert (domain[0][0] == image).all() and (domain[0][1] == label).all()


def test_a_survey_finds_the_turned_pictures(turned):
    domain, *_ = turned(3, lambda label: label)
    assert 'EXIF orientation 3' in survey(domain, progress=False)['broken']['a']


# --- samples -----------------------------------------------------------------------------------------------------

def test_a_sample_comes_from_all_of_the_set():
    assert evenly(10, 4) == [0, 3, 6, 9] and evenly(2, 9) == evenly(2, 0) == evenly(2) == [0, 1] and evenly(0) == []
    for n in 1, 7, 100, 2975:
        for limit in 1, 2, 20, 99:
            picks = evenly(n, limit)
            assert len(set(picks)) == len(picks) == min(n, limit) and picks == sorted(picks) and picks[0] == 0
            assert limit == 1 or picks[-1] == n - 1


class Counted:
    "A set sorted by class, that counts how often it is read."
    name, labels = 'sorted', None

    def __init__(self, classes): self.classes, self.read = classes, []
    def __len__(self): return len(self.classes)
    def key(self, i): return f'pair {i}'
    def __getitem__(self, i):
        self.read.append(i)
        return np.zeros((2, 3, 3), np.uint8), np.full((2, 3), self.classes[i], np.uint8)


def test_a_check_reads_few_pairs_and_sees_the_end_of_the_set():
    domain = Counted([0] * 97 + [17] * 3)
    report = check_domain(domain)
    assert len(domain.read) == report['looked'] == 20 and report['images'] == 100 and report['pixels'][17] == 6
    text = say_absent([report])
    assert text.startswith('none of the 20 labels looked at holds sidewalk, building') and 'motorcycle' not in text
    assert say_absent([report, check_domain(Counted(list(range(19))))]) == ''
    assert check_domain(Counted([0] * 97 + [17] * 3), limit=None)['looked'] == 100


def test_a_source_without_a_single_label_is_refused():
    domain = Counted([255] * 30)
    complaint(ValueError, lambda: check_domain(domain), 'sorted', 'every label is wholly ignored', 'pair 0', 'leave it out')
    assert sorted(domain.read) == list(range(30)), 'it looks everywhere before it says so'
    domain = Counted([255] * 25 + [3] + [255] * 5)
    with pytest.warns(UserWarning, match="wholly ignored, e.g. 'pair 0'"): report = check_domain(domain, limit=4)
    assert report['pixels'][3] == 6, 'one label somewhere is enough'
    complaint(ValueError, lambda: check_domain(Counted([])), 'sorted', 'every label', 'none is there')


# --- odd inputs --------------------------------------------------------------------------------------------------

def test_one_pixel(tmp_path):
    from pinmem.data import DomainBatches
    save(tmp_path / 'images/a.png', np.full((1, 1, 3), 7, np.uint8))
    save(tmp_path / 'labels/a.png', np.full((1, 1), 10, np.uint8))
    domain = FolderDomain(tmp_path)
    assert check_domain(domain)['pixels'][10] == 1 and survey(domain, tmp_path / 'a.png', progress=False)['sizes'] == {'1x1': 1}
    (x, y), = DomainBatches([domain], 2, crop=(64, 32), workers=0, rare=.5).batch(0)
    assert x.shape == (2, 3, 32, 64) and set(y.unique().tolist()) <= {10, 255}


@pytest.mark.parametrize('shape', [(H, W + 30), (H + 9, W), (3 * H, 3 * W)])
def test_a_label_larger_than_its_image(pairs, shape):
    save(pairs / 'labels' / 'ü1.png', np.zeros(shape, np.uint8))
    complaint(ValueError, lambda: read_all(pairs), 'ü1.png', f'{shape[1]}x{shape[0]}', 'nearest neighbour')


def test_labels_that_hold_no_class_numbers(tmp_path):
    Image.fromarray(np.ones((H, W), np.float32)).save(tmp_path / 'a.png', 'TIFF')
    complaint(ValueError, lambda: read_label(tmp_path / 'a.png'), 'a.png', 'mode F', 'class numbers')
    Image.fromarray(np.ones((H, W), np.uint8)).save(tmp_path / 'b.png', 'JPEG')
    complaint(ValueError, lambda: read_label(tmp_path / 'b.png'), 'b.png', 'class numbers')
    Image.fromarray(np.ones((H, W), bool)).save(tmp_path / 'c.png')
    complaint(ValueError, lambda: read_label(tmp_path / 'c.png'), 'c.png', 'mode 1', 'class numbers')


def test_files_and_links_in_place_of_folders(pairs, tmp_path):
    file = pairs / 'images' / 'ü0.png'
    complaint(FileNotFoundError, lambda: open_domain(f'folder:{file}'), file / 'images', 'no such folder', 'side by side')
    complaint(FileNotFoundError, lambda: open_domain('folder:'), 'images', 'no such folder')
    (tmp_path / 'a link').symlink_to(pairs)
    assert len(open_domain(f'folder:{tmp_path / "a link"}')) == 3
    (pairs / 'images/ü1.png').unlink()
    (pairs / 'images/ü1.png').symlink_to(tmp_path / 'gone.png')
    complaint(ValueError, lambda: read_all(pairs), 'ü1.png', 'cannot be read', 'No such file')
    (pairs / 'images/ü1.png').unlink()
    (pairs / 'images/ü1.png').mkdir()
    complaint(ValueError, lambda: read_all(pairs), 'ü1.png', 'cannot be read')


def test_names_that_nobody_knows(pairs):
    complaint(ValueError, lambda: DrawnDomain('towne'), "unknown style 'towne'", 'town')
    complaint(ValueError, lambda: FolderDomain(pairs, codes='cityscape'), "unknown codes 'cityscape'", 'cityscapes')
    complaint(ValueError, lambda: open_domain(''), "unknown domain ''", 'folder:PATH')
    complaint(ValueError, lambda: open_domain(None), "unknown domain 'None'", 'folder:PATH')


@pytest.mark.parametrize('place, why', [('nowhere/a.png', 'there is no folder'), ('', 'is a folder'), ('a.docx', 'no kind of picture'),
                                        ('file/a.png', 'there is no folder')])
def test_a_bad_place_for_the_picture_is_refused_before_the_reading(tmp_path, place, why):
    (tmp_path / 'file').write_text('')
    domain = Counted([0] * 9)
    complaint(ValueError, lambda: survey(domain, tmp_path / place, progress=False), tmp_path / place, why, 'survey.png')
    assert domain.read == []
    check_place(tmp_path / 'a.PNG'); check_place(tmp_path / 'a.jpg'); check_place(tmp_path / 'no extension')


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', PICTURE_KINDS)
def test_a_file_with_one_wrong_byte_is_read_or_named(tmp_path, kind):
    file = save(tmp_path / f'a{kind}', np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8))
    whole = file.read_bytes()
    for place in range(min(len(whole), 250)):
        for byte in 0, 7, 255:
            file.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1:])
            for read in read_image, read_label:
                try: assert read(file).dtype == np.uint8
                except ValueError as e: assert str(e).startswith(f'{file}: ') and '\n' not in str(e)
