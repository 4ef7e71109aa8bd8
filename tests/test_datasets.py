"""The published data sets in exact miniature: layouts, every code, splits, lists, and every way a download breaks."""
import json, os, struct, subprocess, sys, zlib
import numpy as np, pytest
from PIL import Image
from helpers import complaint
from pinmem.data import DrawnDomain, FolderDomain
from pinmem.datasets import IDD_NAMES, SETS, files_below, open_domain, open_domains, read_first_channel, read_polygons, split_names
from pinmem.labels import CLASSES, CODES, FULL, IDDLITE7, IGNORE, SYNTHIA16, recode
from pinmem.survey import pair_numbers, survey, survey_text

W, H = 24, 16
RNG = np.random.default_rng(0)
GTAV_PALETTE = [  # colours of ids 0 to 34 in the palette of the label files
    (0, 0, 0), (0, 0, 0), (0, 0, 0), (0, 0, 0), (20, 20, 20), (111, 74, 0), (81, 0, 81), (128, 64, 128), (244, 35, 232),
    (250, 170, 160), (230, 150, 140), (70, 70, 70), (102, 102, 156), (190, 153, 153), (180, 165, 180), (150, 100, 100),
    (150, 120, 90), (153, 153, 153), (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
    (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 0, 90), (0, 0, 110),
    (0, 80, 100), (0, 0, 230), (119, 11, 32), (0, 0, 142)]

# By name, independent of the tables under test.
CITYSCAPES = ['unlabeled', 'ego vehicle', 'rectification border', 'out of roi', 'static', 'dynamic', 'ground', 'road',
              'sidewalk', 'parking', 'rail track', 'building', 'wall', 'fence', 'guard rail', 'bridge', 'tunnel', 'pole',
              'polegroup', 'traffic light', 'traffic sign', 'vegetation', 'terrain', 'sky', 'person', 'rider', 'car',
              'truck', 'bus', 'caravan', 'trailer', 'train', 'motorcycle', 'bicycle']
SYNTHIA = ['void', 'sky', 'building', 'road', 'sidewalk', 'fence', 'vegetation', 'pole', 'car', 'traffic sign', 'person',
           'bicycle', 'motorcycle', 'parking slot', 'road work', 'traffic light', 'terrain', 'rider', 'truck', 'bus',
           'train', 'wall', 'lane marking']
VISTAS = ['Bird', 'Ground Animal', 'Curb', 'Fence', 'Guard Rail', 'Barrier', 'Wall', 'Bike Lane', 'Crosswalk - Plain',
          'Curb Cut', 'Parking', 'Pedestrian Area', 'Rail Track', 'Road', 'Service Lane', 'Sidewalk', 'Bridge',
          'Building', 'Tunnel', 'Person', 'Bicyclist', 'Motorcyclist', 'Other Rider', 'Lane Marking - Crosswalk',
          'Lane Marking - General', 'Mountain', 'Sand', 'Sky', 'Snow', 'Terrain', 'Vegetation', 'Water', 'Banner', 'Bench',
          'Bike Rack', 'Billboard', 'Catch Basin', 'CCTV Camera', 'Fire Hydrant', 'Junction Box', 'Mailbox', 'Manhole',
          'Phone Booth', 'Pothole', 'Street Light', 'Pole', 'Traffic Sign Frame', 'Utility Pole', 'Traffic Light',
          'Traffic Sign (Back)', 'Traffic Sign (Front)', 'Trash Can', 'Bicycle', 'Boat', 'Bus', 'Car', 'Caravan',
          'Motorcycle', 'On Rails', 'Other Vehicle', 'Trailer', 'Truck', 'Wheeled Slow', 'Car Mount', 'Ego Vehicle',
          'Unlabeled']
VISTAS_AS = {'Curb': 'sidewalk', 'Lane Marking - General': 'road', 'Manhole': 'road', 'Utility Pole': 'pole',
             'Traffic Sign (Front)': 'traffic sign', 'Bicyclist': 'rider', 'Motorcyclist': 'rider',
             'Other Rider': 'rider', 'On Rails': 'train'}
LEVEL3 = ['road', 'parking', 'sidewalk', 'terrain', 'person', 'rider', 'motorcycle', 'bicycle', 'autorickshaw', 'car',
          'truck', 'bus', 'other vehicle', 'curb', 'wall', 'fence', 'guard rail', 'billboard', 'traffic sign',
          'traffic light', 'pole', 'other structure', 'building', 'bridge', 'vegetation', 'sky']


def as_train(names, other={}):
    "code -> train id, from names alone"
    return {c: CLASSES.index(n) if (n := other.get(name, name).lower()) in CLASSES else IGNORE
            for c, name in enumerate(names)}


EXPECTED = {'cityscapes': as_train(CITYSCAPES), 'gtav': {**as_train(CITYSCAPES), 34: IGNORE},
            'synthia': as_train(SYNTHIA), 'mapillary': as_train(VISTAS, VISTAS_AS),
            'idd': {**as_train(LEVEL3), 255: IGNORE},
            'idd-ids': as_train(IDD_NAMES, {'non-drivable fallback': 'terrain'}),
            'idd-lite': {0: 0, 1: 1, 2: 11, 3: 13, 4: 5, 5: 2, 6: 10, 255: IGNORE},
            'train': {**{n: n for n in range(19)}, 255: IGNORE}}


def every(codes, h=H, w=W):
    "A label in which each code occurs."
    codes = sorted(codes)
    assert len(codes) <= h * w
    return np.resize(np.array(codes, np.uint8), (h, w))


def photo(path, h=H, w=W, **kw):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (h, w, 3), dtype=np.uint8)).save(path, **kw)
    return path


def mask(path, label, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    im = Image.fromarray(label)
    if palette is not None:
        im = Image.frombytes('P', im.size, label.tobytes())
        im.putpalette(np.resize(np.array(palette, np.uint8), 768).tobytes())
    im.save(path)
    return path


def png16(path, channels):
    "A 16-bit PNG by hand, channels (H, W, C)."
    def chunk(kind, body): return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))
    h, w, c = channels.shape
    rows = b''.join(b'\0' + row.astype('>u2').tobytes() for row in channels)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 16, {1: 0, 2: 4, 3: 2, 4: 6}[c],
                     0, 0, 0)) + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))
    return path


def synthia_label(path, label, c=3):
    "Class in the first channel, number of the object (up to 976 in the real set) in the second, nothing in the third."
    channels = np.zeros((*label.shape, c), np.uint16)
    channels[..., 0] = label
    if c > 1: channels[..., 1] = RNG.integers(0, 977, label.shape)
    if c == 4: channels[..., 3] = 65535
    return png16(path, channels)


def polygons(path, h=H, w=W, objects=None):
    "One outline a pixel row, so that every class can be checked; a deleted one and a group among them."
    rows = objects if objects is not None else [
        dict(label=name, deleted=0, draw=True, polygon=[[0, r], [w - 1, r]]) for r, name in enumerate(IDD_NAMES)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(dict(imgHeight=h, imgWidth=w, objects=rows)), encoding='utf-8')


def gtav(root, nested=False, rgb=False):
    for i, (split, h, w) in enumerate([('train', H, W), ('train', H + 2, W), ('valid', H, W + 3), ('test', H, W)], 1):
        place = f'{split}/folder/{i:05d}.png' if nested else f'{i:05d}.png'
        photo(root / 'images' / place, h, w)
        label = every(CODES['gtav'], h, w)
        if rgb: mask(root / 'labels' / place, np.array(GTAV_PALETTE, np.uint8)[label])
        else: mask(root / 'labels' / place, label, GTAV_PALETTE)


def synthia(root, nested=False, c=3):
    for i, split in enumerate(['train', 'train', 'val']):
        place = f'{split}/{i:07d}.png' if nested else f'{i:07d}.png'
        photo(root / 'RGB' / place)
        photo(root / 'GT/COLOR' / place)
        photo(root / 'Depth' / place)
        synthia_label(root / 'GT/LABELS' / place, every(CODES['synthia']), c)


def cityscapes(root, images='leftImg8bit', labels='gtFine', kinds=('labelIds', 'labelTrainIds')):
    for split, city in ('train', 'aachen'), ('train', 'zürich'), ('val', 'ulm'), ('test', 'bonn'):
        name = f'{split}/{city}/{city}_000000_000019'
        photo(root / images / f'{name}_leftImg8bit.png')
        tell = every(CODES['cityscapes']) if split != 'test' else np.full((H, W), 3, np.uint8)
        for kind in kinds: mask(root / labels / f'{name}_gtFine_{kind}.png',
                                recode(tell, CODES['cityscapes']) if 'Train' in kind else tell)
        mask(root / labels / f'{name}_gtFine_instanceIds.png', tell.astype(np.uint16) * 1000)
        photo(root / labels / f'{name}_gtFine_color.png')
        polygons(root / labels / f'{name}_gtFine_polygons.json')


def bdd100k(root, style='new'):
    for i, split in enumerate(['train', 'val', 'val', 'test']):
        images, labels, end = {'new': ('images/10k', 'labels/sem_seg/masks', ''),
                               'old': ('seg/images', 'seg/labels', '_train_id'),
                               'authors': ('images', 'labels', '_train_id')}[style]
        photo(root / images / split / f'0{i}ab-cd{i}.jpg')
        if split != 'test': mask(root / labels / split / f'0{i}ab-cd{i}{end}.png', every(CODES['train']))
    if style == 'new': photo(root / 'images/100k/train/zz.jpg')


def mapillary(root, version='v1.2/'):
    for split, h, w in ('training', 16, 24), ('training', 24, 16), ('validation', 30, 44), ('validation', 44, 30):
        photo(root / split / 'images' / f'-{h}_x-{w}.jpg', h, w)
        mask(root / split / f'{version}labels' / f'-{h}_x-{w}.png', every(CODES['mapillary'], h, w),
             RNG.integers(0, 256, (66, 3)))
        png16(root / split / f'{version}instances' / f'-{h}_x-{w}.png', np.full((h, w, 1), 256 * 55))
    photo(root / 'testing/images/t.jpg')
    (root / 'config.json').write_text('{}')


def idd(root, kinds=('polygons',), images='leftImg8bit', labels='gtFine', h=48):
    for split, drive, stem, ext in (('train', '0', '000005', 'png'), ('train', '201', 'frame0029', 'jpg'),
                                    ('val', '119', '903127', 'png'), ('test', '3', '1', 'png')):
        photo(root / images / split / drive / f'{stem}_leftImg8bit.{ext}', h, W)
        ids = np.repeat(np.minimum(np.arange(h), 39), W).reshape(h, W).astype(np.uint8)
        for kind in kinds if split != 'test' else ():
            file = root / labels / split / drive / f'{stem}_gtFine_{kind}'
            if kind == 'polygons': polygons(file.with_name(file.name + '.json'), h)
            elif kind == 'labelids': mask(file.with_name(file.name + '.png'), ids)
            elif kind == 'labelcsTrainIds': mask(file.with_name(file.name + '.png'), recode(ids, CODES['idd-ids']))
            else: mask(file.with_name(file.name + '.png'), every(CODES['idd'], h))


def idd_lite(root):
    for split, drive in ('train', '87'), ('train', '103'), ('val', '132'), ('test', '9'):
        photo(root / 'leftImg8bit' / split / drive / f'{drive}57164_image.jpg')
        if split != 'test':
            mask(root / 'gtFine' / split / drive / f'{drive}57164_label.png', every(CODES['idd-lite']))
            mask(root / 'gtFine' / split / drive / f'{drive}57164_inst_label.png', every(range(9)))


BUILD = {'gtav': gtav, 'synthia': synthia, 'cityscapes': cityscapes, 'bdd100k': bdd100k, 'mapillary': mapillary,
         'idd': idd, 'idd-lite': idd_lite}


@pytest.fixture
def root(tmp_path): return tmp_path / 'Straße 街'


def check(domain, coding, n):
    "n pairs, and every code of the table arrives as the train id that its name says."
    assert (len(domain), domain.coding) == (n, coding)
    met = set()
    for i in range(n):
        image, label = domain.read(i)
        truth = domain[i][1]
        assert image.shape[:2] == label.shape == truth.shape and truth.dtype == np.uint8
        for code in np.unique(label):
            assert set(truth[label == code]) == {EXPECTED[coding][int(code)]}, (coding, code)
            met.add(int(code))
    return met


@pytest.mark.parametrize('name', EXPECTED)
def test_tables_agree_with_the_names(name):
    assert CODES[name] == EXPECTED[name]


# --- every set, every layout, every code -------------------------------------------------------------------------

@pytest.mark.parametrize('nested', [False, True], ids=['download', 'authors'])
@pytest.mark.parametrize('rgb', [False, True], ids=['index', 'rgb'])
def test_gtav(root, nested, rgb):
    gtav(root, nested, rgb)
    domain = open_domain(f'gtav:{root}')
    met = check(domain, 'gtav', 4)
    assert domain.name == 'gtav' and domain.labels == FULL
    assert met == set(range(35)) - ({1, 2, 3, 18, 34} if rgb else set()), 'ids that share a colour read as the first'
    if rgb:
        truth = domain[0][1].ravel()
        assert truth[18] == CLASSES.index('pole') and truth[34] == CLASSES.index('car'), 'as in the authors\' loader'
    if nested:
        assert [len(open_domain(f'gtav:{root}/{s}')) for s in ('train', 'val', 'valid', 'test')] == [2, 1, 1, 1]
        assert open_domain(f'gtav:{root}/valid').name == 'gtav/val'


def test_gtav_leaves_out_the_two_misfits(root):
    gtav(root)
    for stem in '15188', '17705':
        photo(root / f'images/{stem}.png', 10, 20)
        mask(root / f'labels/{stem}.png', every(CODES['gtav'], 11, 20), GTAV_PALETTE)
    assert [key for key, _, _ in open_domain(f'gtav:{root}').pairs] == ['00001', '00002', '00003', '00004']


@pytest.mark.parametrize('nested', [False, True], ids=['download', 'authors'])
def test_synthia(root, nested):
    synthia(root, nested)
    domain = open_domain(f'synthia:{root}')
    assert check(domain, 'synthia', 3) == set(range(23)) and domain.labels == SYNTHIA16
    if nested: assert len(open_domain(f'synthia:{root}/val')) == 1


@pytest.mark.parametrize('c', [1, 2, 3, 4])
def test_sixteen_bits_any_number_of_channels(tmp_path, c):
    label = every(CODES['synthia'])
    assert (read_first_channel(synthia_label(tmp_path / 'a.png', label, c)) == label).all()


def test_eight_bit_synthia_passes(tmp_path):
    label = every(CODES['synthia'])
    assert (read_first_channel(mask(tmp_path / 'a.png', label)) == label).all()
    complaint(ValueError, lambda: read_first_channel(photo(tmp_path / 'b.png')), 'b.png', 'mode RGB')


@pytest.mark.parametrize('where', [('leftImg8bit', 'gtFine'), ('leftImg8bit_trainvaltest/leftImg8bit',
                                                               'gtFine_trainvaltest/gtFine')], ids=['download', 'authors'])
def test_cityscapes(root, where):
    cityscapes(root, *where)
    val, train = open_domain(f'cityscapes:{root}'), open_domain(f'cityscapes:{root}/train')
    assert check(val, 'cityscapes', 1) == check(train, 'cityscapes', 2) == set(range(34))
    assert (val.name, train.name, val.key(0)) == ('cityscapes/val', 'cityscapes/train', 'ulm/ulm_000000_000019')
    complaint(ValueError, lambda: open_domain(f'cityscapes:{root}/test'), 'test', 'no public labels', 'val or train')


def test_cityscapes_train_ids_are_the_second_choice(root):
    cityscapes(root, kinds=('labelTrainIds',))
    assert check(open_domain(f'cityscapes:{root}'), 'train', 1) == {*range(19), 255}


@pytest.mark.parametrize('style', ['new', 'old', 'authors'])
def test_bdd100k(root, style):
    bdd100k(root, style)
    assert check(open_domain(f'bdd100k:{root}'), 'train', 2) == {*range(19), 255}
    assert len(open_domain(f'bdd100k:{root}/train')) == 1


@pytest.mark.parametrize('version', ['v1.2/', ''], ids=['v2 download', 'v1 download'])
def test_mapillary(root, version):
    mapillary(root, version)
    val = open_domain(f'mapillary:{root}')
    assert check(val, 'mapillary', 2) == set(range(66)), 'upright pictures too'
    assert sorted(val[i][1].shape for i in range(2)) == [(30, 44), (44, 30)]
    assert len(open_domain(f'mapillary:{root}/training')) == len(open_domain(f'mapillary:{root}/train')) == 2


@pytest.mark.parametrize('kinds, coding', [
    (('polygons',), 'idd-ids'), (('labelids',), 'idd-ids'), (('labellevel3Ids',), 'idd'),
    (('labelcsTrainIds', 'polygons', 'labelids'), 'train'), (('polygons', 'labellevel3Ids'), 'idd-ids')])
def test_idd(root, kinds, coding):
    idd(root, kinds)
    train = open_domain(f'idd:{root}')
    met = check(train, coding, 2)
    assert met == {'idd-ids': set(range(40)), 'idd': {*range(26), 255}, 'train': {*range(19), 255}}[coding]
    assert train.name == 'idd/train' and len(open_domain(f'idd:{root}/val')) == 1, '.png and .jpg images together'


def test_idd_in_the_authors_folders(root):
    idd(root, ('labelcsTrainIds',), 'leftImg8bit_trainvaltest/leftImg8bit', 'gtFine_trainvaltest/gtFine')
    assert check(open_domain(f'idd:{root}'), 'train', 2)


def test_idd_labels_made_either_way_agree(tmp_path):
    for kind in 'polygons', 'labelids', 'labelcsTrainIds': idd(tmp_path / kind, (kind,))
    masks = [open_domain(f'idd:{tmp_path / kind}')[0][1] for kind in ('polygons', 'labelids', 'labelcsTrainIds')]
    assert (masks[0] == masks[1]).all() and (masks[0] == masks[2]).all()


def test_polygons(tmp_path):
    box = lambda x: [[x, 0], [x + 3, 0], [x + 3, H - 1], [x, H - 1]]
    file = tmp_path / 'a_gtFine_polygons.json'
    polygons(file, objects=[dict(label='car', polygon=box(0)), dict(label='persongroup', polygon=box(2)),
                            dict(label='bus', deleted=1, polygon=box(8)), dict(label='sky', polygon=[[1, 1]])])
    row = read_polygons(file)[5]
    names = [IDD_NAMES[c] for c in row]
    assert names == ['car'] * 2 + ['person'] * 4 + ['unlabeled'] * (W - 6), 'later on top, deleted not at all'
    polygons(file, objects=[dict(label='spaceship', polygon=box(0))])
    complaint(ValueError, lambda: read_polygons(file), file, 'spaceship')
    for text in '', '{', '[]', '{"objects": []}':
        file.write_text(text)
        complaint(ValueError, lambda: read_polygons(file), file, 'cannot be read', 'unpack it again')


def test_idd_lite(root):
    idd_lite(root)
    val = open_domain(f'idd-lite:{root}')
    assert check(val, 'idd-lite', 1) == {*range(7), 255} and val.labels == IDDLITE7
    assert len(open_domain(f'idd-lite:{root}/train')) == 2, 'the object pictures are no labels'
    truth, label = val[0][1], val.read(0)[1]
    assert all(IDDLITE7.merge[truth[label == c]].tolist() == [c] * (label == c).sum() for c in range(7)), 'own group'


@pytest.mark.parametrize('kind', SETS)
def test_top_folder_one_deeper_and_resized(root, kind):
    BUILD[kind](root / 'as unpacked')
    domain = open_domain(f'{kind}:{root}', size=(12, 10))
    assert domain[0][0].shape == (10, 12, 3) and domain[0][1].shape == (10, 12)
    BUILD[kind](root / 'another')
    complaint(ValueError, lambda: open_domain(f'{kind}:{root}'), 'another', 'as unpacked', 'both')


# --- split lists -------------------------------------------------------------------------------------------------

def test_split_from_a_list(root):
    gtav(root)
    complaint(FileNotFoundError, lambda: open_domain(f'gtav:{root}/train'), 'train.txt', 'split.mat')
    (root / 'train.txt').write_text('00001.png\n\n00003.png\n')
    domain = open_domain(f'gtav:{root}/train')
    assert [p[0] for p in domain.pairs] == ['00001', '00003'] and domain.name == 'gtav/train'
    (root / 'gtav_split_val.txt').write_text('images\\00002.png labels/00002.png\r\n', encoding='utf-8-sig')
    assert [p[0] for p in open_domain(f'gtav:{root}/val').pairs] == ['00002']
    (root / 'mine.txt').write_text('/elsewhere/00004.JPG\n00002\n')
    assert [p[0] for p in open_domain(f'gtav:{root}/mine.txt').pairs] == ['00002', '00004']
    assert open_domain(f'gtav:{root}/mine.txt').name == 'gtav/mine'


def test_split_of_the_makers_of_gtav(root):
    from scipy.io import savemat
    gtav(root)
    savemat(root / 'split.mat', dict(trainIds=[[1], [4]], valIds=[[2]], testIds=[[3]]))
    assert [[p[0] for p in open_domain(f'gtav:{root}/{s}').pairs] for s in ('train', 'val')] == [['00001', '00004'],
                                                                                                ['00002']]
    (root / 'split.mat').write_bytes(b'MATLAB 5.0, but no more')
    complaint(ValueError, lambda: open_domain(f'gtav:{root}/train'), root / 'split.mat', 'trainIds', 'unpack it again')


def test_list_names_missing_files(root):
    synthia(root)
    (root / 'val.txt').write_text('0000001.png\n0000077.png\n0000078.png\n')
    complaint(FileNotFoundError, lambda: open_domain(f'synthia:{root}/val'), root / 'val.txt', '2 of 3', '0000077',
              'line 2', 'unpack the rest')
    (root / 'val.txt').write_text('\n')
    complaint(ValueError, lambda: open_domain(f'synthia:{root}/val'), 'val.txt', 'names no picture')
    (root / 'val.txt').write_bytes(b'\xff\xfe\x00')
    complaint(ValueError, lambda: open_domain(f'synthia:{root}/val'), 'val.txt', 'cannot be read')
    complaint(ValueError, lambda: open_domain(f'synthia:{root}/none.txt'), 'none.txt', 'cannot be read')


def test_a_list_excuses_what_it_leaves_out(root):
    gtav(root)
    (root / 'labels/00004.png').unlink()
    complaint(FileNotFoundError, lambda: open_domain(f'gtav:{root}'), '00004.png', 'NAME:PATH/LIST.txt')
    (root / 'some.txt').write_text('00001\n00002\n')
    assert len(open_domain(f'gtav:{root}/some.txt')) == 2


# --- broken downloads --------------------------------------------------------------------------------------------

TOPS = {'gtav': ('images', 'labels'), 'synthia': ('RGB', 'GT'), 'cityscapes': ('leftImg8bit', 'gtFine'),
        'bdd100k': ('images', 'labels'), 'idd': ('leftImg8bit', 'gtFine'), 'idd-lite': ('leftImg8bit', 'gtFine')}


@pytest.mark.parametrize('kind', TOPS)
@pytest.mark.parametrize('what', [0, 1], ids=['images gone', 'labels gone'])
def test_one_archive_not_unpacked(root, kind, what):
    BUILD[kind](root)
    (root / TOPS[kind][what]).rename(root / '.gone')
    complaint(FileNotFoundError, lambda: open_domain(f'{kind}:{root}'), TOPS[kind][what], TOPS[kind][1 - what],
              'no such folder', ('images', 'labels')[what], 'unpack')


def test_vistas_v2_alone_is_not_v12(root):
    mapillary(root, 'v2.0/')
    complaint(FileNotFoundError, lambda: open_domain(f'mapillary:{root}'), 'v1.2', 'no such folder', 'unpack')


@pytest.mark.parametrize('kind', SETS)
def test_nowhere_and_nothing(tmp_path, kind):
    complaint(FileNotFoundError, lambda: open_domain(f'{kind}:{tmp_path}/none'), 'none', 'no such folder', kind)
    complaint(FileNotFoundError, lambda: open_domain(f'{kind}:{tmp_path}'), tmp_path, f'not the top folder of {kind}',
              'expected', 'unpack')


def test_half_of_the_files(root):
    bdd100k(root)
    (root / 'labels/sem_seg/masks/val/01ab-cd1.png').unlink()
    complaint(FileNotFoundError, lambda: open_domain(f'bdd100k:{root}'), '01ab-cd1.jpg', 'no partner', '1 such of 2')
    bdd100k(root)
    (root / 'images/10k/val/02ab-cd2.jpg').unlink()
    complaint(FileNotFoundError, lambda: open_domain(f'bdd100k:{root}'), '02ab-cd2.png', 'no partner')
    for file in (root / 'images/10k/val').iterdir(): file.unlink()
    for file in (root / 'labels/sem_seg/masks/val').iterdir(): file.unlink()
    complaint(FileNotFoundError, lambda: open_domain(f'bdd100k:{root}'), 'no picture NAME.png', 'holds nothing',
              'unpack')


def test_another_set_in_the_same_folders(root):
    idd(root)
    complaint(FileNotFoundError, lambda: open_domain(f'cityscapes:{root}'), '_gtFine_labelIds.png', 'other files',
              'polygons.json')
    complaint(FileNotFoundError, lambda: open_domain(f'idd-lite:{root}'), 'NAME_image.png', 'such as 903127_leftImg8bit')
    complaint(FileNotFoundError, lambda: open_domain(f'gtav:{root}'), 'not the top folder of gtav',
              'it could be cityscapes or idd or idd-lite')


@pytest.mark.parametrize('kind, file, written, fits', [
    ('cityscapes', 'gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png', 'train', 'train'),
    ('gtav', 'labels/00001.png', 'mapillary', 'mapillary'), ('gtav', 'labels/00001.png', 'idd', 'idd'),
    ('synthia', 'GT/LABELS/0000000.png', 'cityscapes', 'cityscapes, gtav'),
    ('bdd100k', 'labels/sem_seg/masks/val/01ab-cd1.png', 'cityscapes', 'cityscapes, gtav'),
    ('mapillary', 'validation/v1.2/labels/-30_x-44.png', 'train', 'train')])
def test_labels_of_another_coding(root, kind, file, written, fits):
    BUILD[kind](root)
    h, w = np.array(Image.open(root / file)).shape[:2]
    mask(root / file, every(CODES[written], h, w))
    domain = open_domain(f'{kind}:{root}')
    i = [p[2] for p in domain.pairs].index(root / file)
    text = complaint(ValueError, lambda: domain[i], root / file, 'fit the codes of', 'choose the table')
    assert fits in text.partition('fit the codes of')[2]


def test_colours_that_stand_for_nothing(root):
    gtav(root)
    mask(root / 'labels/00001.png', np.full((H, W, 3), (1, 2, 3), np.uint8))
    complaint(ValueError, lambda: open_domain(f'gtav:{root}')[0], '00001.png', '(1, 2, 3)', 'never as JPEG')
    bdd100k(root / 'b')
    photo(root / 'b/labels/sem_seg/masks/val/01ab-cd1.png')
    complaint(ValueError, lambda: open_domain(f'bdd100k:{root}/b')[0], 'mode RGB', 'class numbers')


@pytest.mark.parametrize('ext', ['.JPG', '.jpeg', '.Jpeg', '.PNG'])
def test_extensions_in_any_case(root, ext):
    bdd100k(root)
    for file in (root / 'images/10k/val').iterdir(): file.rename(file.with_suffix(ext))
    for file in (root / 'labels/sem_seg/masks/val').iterdir(): file.rename(file.with_suffix('.PNG'))
    (root / 'images/10k/val/.DS_Store').write_text('litter')
    (root / 'images/10k/val/._01ab-cd1.jpg').write_text('litter')
    assert check(open_domain(f'bdd100k:{root}'), 'train', 2)


def test_duplicate_names(root):
    gtav(root)
    photo(root / 'images/00002.jpg')
    complaint(ValueError, lambda: open_domain(f'gtav:{root}'), '00002.png', '00002.jpg', 'keep one')


def test_the_same_name_in_two_cities_is_no_duplicate(root):
    gtav(root, nested=True)
    photo(root / 'images/valid/folder/00001.png')
    mask(root / 'labels/valid/folder/00001.png', every(CODES['gtav']))
    assert len(open_domain(f'gtav:{root}')) == 5


def test_links(root, tmp_path):
    gtav(tmp_path / 'disk 2')
    root.mkdir()
    (root / 'images').symlink_to(tmp_path / 'disk 2/images')
    (root / 'labels').mkdir()
    for file in (tmp_path / 'disk 2/labels').iterdir(): (root / 'labels' / file.name).symlink_to(file)
    (root / 'labels/again').symlink_to(root / 'labels')
    assert check(open_domain(f'gtav:{root}'), 'gtav', 4), 'a link to the folder itself is entered once'
    (tmp_path / 'disk 2/labels/00003.png').unlink()
    complaint(FileNotFoundError, lambda: open_domain(f'gtav:{root}'), root / 'labels/00003.png', 'a link to', 'not there')


def test_a_folder_that_cannot_be_listed(root):
    complaint(OSError, lambda: list(files_below(root / 'images')), root / 'images', 'cannot be listed', 'may read it')


def test_unreadable_files(root):
    gtav(root)
    domain = open_domain(f'gtav:{root}')
    (root / 'labels/00001.png').unlink()
    (root / 'labels/00001.png').mkdir()            # reading a folder fails for everyone, even for root
    complaint(ValueError, lambda: domain[0], '00001.png', 'cannot be read')
    (root / 'labels/00002.png').write_bytes((root / 'labels/00002.png').read_bytes()[:90])
    complaint(ValueError, lambda: domain[1], '00002.png', 'cannot be read', 'save it again')
    if os.geteuid():
        (root / 'images/00003.png').chmod(0)
        complaint(ValueError, lambda: domain[2], '00003.png', 'Permission denied')
    synthia(root / 's')
    file = root / 's/GT/LABELS/0000001.png'
    file.write_bytes(file.read_bytes()[:70])
    complaint(ValueError, lambda: open_domain(f'synthia:{root}/s')[1], file, 'cannot be read')


def test_sizes_that_differ(root):
    bdd100k(root)
    photo(root / 'images/10k/val/01ab-cd1.jpg', H, W + 2)
    complaint(ValueError, lambda: open_domain(f'bdd100k:{root}')[0], '01ab-cd1.png', f'{W}x{H}', f'{W + 2}x{H}')


def test_names_are_listed_when_one_is_mistyped():
    text = complaint(ValueError, lambda: open_domain('cityscape:/data'), "did you mean 'cityscapes:'")
    assert all(f'{kind}:PATH' in text for kind in SETS)


# --- survey --------------------------------------------------------------------------------------------------------

def street(root, n=6, codes='cityscapes', upside=False, level=120):
    "Sky above, buildings, a car, road below: a folder of n pairs in some coding."
    back = {v: c for c, v in CODES[codes].items() if v != IGNORE}
    scene = np.repeat([10, 2, 8, 13, 1, 0], 4)[:, None].repeat(W, 1)
    label = np.vectorize(back.get)(scene).astype(np.uint8)[::-1 if upside else 1]
    for i in range(n):
        photo(root / f'leftImg8bit/val/ulm/ulm_{i:06d}_000019_leftImg8bit.png', 24, W)
        if level is not None: mask(root / f'leftImg8bit/val/ulm/ulm_{i:06d}_000019_leftImg8bit.png',
                                   np.full((24, W, 3), level, np.uint8))
        mask(root / f'gtFine/val/ulm/ulm_{i:06d}_000019_gtFine_labelIds.png', label)
    return open_domain(f'cityscapes:{root}')


def test_survey_of_a_good_set(root):
    domain = street(root)
    domain.published = None
    report = survey(domain, out=root / 'survey.png', progress=False)
    assert report['suspicious'] == [] and report['broken'] == {} and report['unknown'] == {}
    assert report['sizes'] == {'24x24': 6} and report['pixels']['road'] == 6 * 4 * W and report['ignored'] == 0
    assert report['labels_with']['sky'] == 6 and report['sky'] < report['road']
    assert json.loads(json.dumps(report)) == report
    with Image.open(root / 'survey.png') as picture: assert min(picture.size) > 200
    text = survey_text(report)
    assert 'nothing suspicious' in text and 'road' in text and '16.67 %' in text


def suspicious(domain, **kw): return ' | '.join(survey(domain, progress=False, **kw)['suspicious'])


def test_survey_goes_past_every_broken_file(root):
    domain = street(root, n=9)
    for i, content in (0, b''), (4, b'no picture'), (8, b'\x89PNG\r\n\x1a\n'):
        domain.pairs[i][1 + (i > 0)].write_bytes(content)
    report = survey(domain, out=root / 'survey.png', progress=False)
    assert len(report['broken']) == 3 and report['looked'] == 9 and report['pixels']['sky'] == 6 * 4 * W
    assert '3 of 9 pairs are broken' in report['suspicious'] and survey_text(report).count('cannot be read') == 3
    for _, image, _ in domain.pairs: image.write_bytes(b'')
    report = survey(domain, out=root / 'survey.png', progress=False)
    assert 'no pair could be read' in report['suspicious'] and '4 more' in survey_text(report)


def test_survey_names_codes_that_it_does_not_know(root):
    domain = street(root)
    mask(domain.pairs[3][2], np.full((24, W), 77, np.uint8))
    report = survey(domain, progress=False)
    assert report['unknown'] == {'77': dict(labels=1, first='ulm/ulm_000003_000019')}
    assert 'not in the table: 77' in ' '.join(report['suspicious']) and 'unknown code 77' in survey_text(report)


def test_survey_is_suspicious(root):
    assert '500 were published' in suspicious(street(root / 'few'))
    assert 'sky lies below the road' in suspicious(street(root / 'turned', upside=True))
    assert 'almost black' in suspicious(street(root / 'black', level=3))
    domain = street(root / 'void')
    mask(domain.pairs[2][2], np.zeros((24, W), np.uint8))
    assert "wholly ignored: 1 of 6, first 'ulm/ulm_000002_000019'" in suspicious(domain)
    for _, _, file in domain.pairs: mask(file, np.full((24, W), 7, np.uint8))
    assert 'one class only: 6 of 6' in suspicious(domain)
    for _, _, file in domain.pairs: mask(file, np.zeros((24, W), np.uint8))
    assert 'wholly ignored: 6 of 6' in suspicious(domain) and '100 % of all pixels' in suspicious(domain)


def test_survey_recognises_train_ids_read_as_label_ids(root):
    domain = street(root)
    for _, _, file in domain.pairs: mask(file, np.resize(np.arange(19, dtype=np.uint8), (24, W)))
    report = survey(domain, progress=False)
    assert report['unknown'] == {}, 'no single code gives it away'
    assert any('fit those of' in s and 'train' in s for s in report['suspicious'])


@pytest.mark.parametrize('kind', SETS)
def test_survey_of_every_set(root, kind):
    BUILD[kind](root)
    report = survey(open_domain(f'{kind}:{root}'), out=root / 'survey.png', progress=False)
    assert report['broken'] == {} and report['unknown'] == {} and (root / 'survey.png').is_file()
    assert kind in survey_text(report)


def test_survey_reads_no_more_than_the_limit(root):
    domain, opened = street(root, n=20), []
    read = domain.read
    domain.read = lambda i: opened.append(i) or read(i)
    report = survey(domain, limit=5, progress=False)
    assert opened == [0, 5, 10, 14, 19] and report['pairs'] == 20 and report['looked'] == 5


def test_survey_of_drawn_streets_and_folders(root):
    assert survey(DrawnDomain('town', n=3, size=(64, 32)), progress=False)['suspicious'] == []
    photo(root / 'images/a.png')
    mask(root / 'labels/a.png', every(CODES['train']))
    assert survey(FolderDomain(root), progress=False)['labels_with']['train'] == 1


def test_pair_numbers_by_hand():
    found = pair_numbers(np.full((2, 2, 3), 9, np.uint8), np.array([[23, 23], [7, 99]]), CODES['cityscapes'])
    assert found['codes'] == {7: 1, 23: 2, 99: 1} and (found['sky'], found['road']) == (.25, .75)
    assert found['pixels'].sum() == 3 and found['level'] == 9 and found['size'] == '2x2'


# --- several at once ---------------------------------------------------------------------------------------------

def folder(path, n=1):
    for i in range(n):
        photo(path / f'images/{i}.png')
        mask(path / f'labels/{i}.png', every(CODES['train']))
    return f'folder:{path}'


def names(*specs, **kw): return [domain.name for domain in open_domains(specs, 2, size=(64, 32), **kw)]


def test_every_domain_has_a_name_of_its_own(root):
    a, b, town = folder(root / 'a/val'), folder(root / 'b/val', 2), folder(root / 'town')
    assert names('town', a) == ['town', 'val'], 'the usual name where nobody else has it'
    assert names(a, 'rain', b) == [a, 'rain', b]
    assert names(town) == [town] and names(town, 'town') == [town, 'town'], 'a drawn style keeps its name'
    assert names(folder(root / 'rendered'), 'rendered') == [f'folder:{root}/rendered', 'rendered']
    assert names(a, a) == ['val'] and names('town', 'town', 'rain') == ['town', 'rain'], 'the same words are one set'
    assert names(a, f'{a}/') == [a, f'{a}/'], 'other words, other rows'
    assert [len(domain) for domain in open_domains([a, b])] == [1, 2] and names() == []
    gtav(root / 'x'); gtav(root / 'y')
    assert names(f'gtav:{root}/x', 'town', f'gtav:{root}/y') == [f'gtav:{root}/x', 'town', f'gtav:{root}/y']
    assert [domain.name for domain in open_domains(f'town,{a}')] == ['town', 'val']
    complaint(ValueError, lambda: open_domains(['town', 'rainn']), "did you mean 'rain'")


def test_virtual_domains_of_what_is_named_twice(root):
    a, b = folder(root / 'a/val'), folder(root / 'b/val')
    assert names('town', 'rain', 'town', virtual=True) == ['town#1', 'rain', 'town#2']
    assert names(a, b, b, virtual=True) == [a, f'{b}#1', f'{b}#2'] and names(a, a, virtual=True) == ['val#1', 'val#2']


def test_size_is_that_of_drawn_scenes(root):
    drawn, stored = open_domains(['town', folder(root / 'a')], 3, seed=5, size=(64, 32))
    assert (len(drawn), drawn.seed, drawn[0][1].shape, stored[0][1].shape) == (3, 5, (32, 64), (H, W))


def test_a_comma_in_a_path_does_not_cut_it(root):
    odd, plain = folder(root / 'a,b, c'), folder(root / 'a')
    cityscapes(root / 'x,town')
    both = f'cityscapes:{root}/x,town'
    assert split_names('town,rain') == split_names(['town', 'rain']) == split_names([' town , ,rain,']) == ['town', 'rain']
    assert split_names(f'{odd},town,{plain},{odd}') == split_names([odd, f'town,{plain}', odd]) == [odd, 'town', plain, odd]
    assert split_names(f'{both},{both}/train,night') == [both, f'{both}/train', 'night']
    assert split_names(f'{plain},town') == [plain, 'town'] and split_names('folder:/nowhere,town') == ['folder:/nowhere', 'town']
    (root / 'x,town/some, few.txt').write_text('ulm_000000_000019')
    assert split_names(f'{both}/some, few.txt,town') == [f'{both}/some, few.txt', 'town']
    longer = folder(root / 'a,b, c,town')
    assert split_names(f'{longer},{odd}') == [longer, odd], 'of two paths that are there, the longer'
    assert split_names([]) == split_names('') == split_names(',') == [] and split_names('folder:,town') == ['folder:', 'town']
    assert len(open_domains(split_names(f'{odd},{both}/train'))) == 2
    assert split_names('folder:/' + 'x' * 5000 + ',town')[1] == 'town', 'longer than any path may be'


def test_litter_of_other_systems_is_no_part_of_a_set(root):
    cityscapes(root)
    for place in '__MACOSX/leftImg8bit/val/ulm', 'leftImg8bit/val/ulm/@eaDir/x.png', 'leftImg8bit/val/__MACOSX':
        photo(root / place / 'ulm_000009_000019_leftImg8bit.png')
    assert len(open_domain(f'cityscapes:{root}')) == 1
    (root.parent / 'all').mkdir()
    root.rename(root.parent / 'all/as unpacked')
    (root.parent / 'all/as unpacked/__MACOSX').rename(root.parent / 'all/__MACOSX')
    assert len(open_domain(f'cityscapes:{root.parent}/all')) == 1


@pytest.mark.parametrize('ext', ['.webp', '.TIF', '.bmp'])
def test_images_of_any_kind_and_lists_of_them(root, ext):
    gtav(root)
    for file in sorted((root / 'images').iterdir()):
        with Image.open(file) as im: im.save(file.with_suffix(ext))
        file.unlink()
    (root / 'train.txt').write_text(f'00001{ext}\nimages/00003{ext} labels/00003.png\n')
    assert check(open_domain(f'gtav:{root}'), 'gtav', 4) and len(open_domain(f'gtav:{root}/train')) == 2


def test_a_set_trains_and_evaluates(root):
    "From folder to crops to a score."
    from pinmem.data import DomainBatches
    from pinmem.evaluation import evaluate_domain
    import torch
    idd(root / 'i', ('polygons',))
    mapillary(root / 'm')
    sources = [open_domain(f'idd:{root}/i'), open_domain(f'mapillary:{root}/m')]
    (x, y), (x2, y2) = DomainBatches(sources, 2, crop=(32, 16), workers=0).batch(0)
    assert x.shape == x2.shape == (2, 3, 16, 32) and y.dtype == torch.int64 and (y.max() <= 18 or (y == 255).any())
    result = evaluate_domain(lambda x: torch.eye(19)[10].view(1, 19, 1, 1).expand(1, 19, *x.shape[-2:]), sources[1], progress=False)
    truth = [sources[1][i][1] for i in range(2)]
    assert result['pixels'] == sum((t != IGNORE).sum() for t in truth), 'mixed shapes, no padding scored'
    assert abs(result['iou']['sky'] - sum((t == 10).sum() for t in truth) / result['pixels']) < 1e-9


def test_opening_needs_no_more_than_the_listing(root):
    "Opening reads no picture, so that 25,000 of them open at once."
    gtav(root)
    for file in (root / 'images').iterdir(): file.write_bytes(b'')
    assert len(open_domain(f'gtav:{root}')) == 4


def test_the_table_of_readers_is_whole_after_one_import():
    code = ('from pinmem.datasets import READERS; before = dict(READERS); import pinmem.survey, pinmem.cli; '
            'assert READERS == before; print(*READERS)')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ['folder', 'camvid', *SETS]


@pytest.mark.parametrize('kind', SETS)
def test_every_set_trains_and_evaluates_through_the_command(root, tmp_path, capsys, monkeypatch, kind):
    "One step on a tiny network, once as a source and once as a target."
    from test_training_size import LITTLE, WORDS
    from pinmem import cli
    monkeypatch.setattr('pinmem.report.report_run', lambda *args: None)
    BUILD[kind](root)
    spec, run = f'{kind}:{root}', str(tmp_path / 'run')
    assert cli.main(['train', '--method', 'pinmem', '--sources', f'town,{spec}', '--targets', spec, '--steps', '2', '--out', run,
                     *WORDS, *LITTLE, '--quiet']) == 0
    trained = json.loads((tmp_path / 'run/results.json').read_text(encoding='utf-8'))
    target, = set(trained) - {'town'}
    capsys.readouterr()
    assert cli.main(['evaluate', run, spec, '--json', '--device', 'cpu']) == 0
    again = json.loads(capsys.readouterr().out)
    assert set(again) == {target} and again[target]['iou'] == trained[target]['iou'] and 0 <= again[target]['miou'] < 1
    assert cli.main(['evaluate', run, spec, '--device', 'cpu', '--quiet', *(['--classes', '16'] if kind != 'idd-lite' else [])]) == 0
    table = capsys.readouterr().out
    assert target in table and ('road' in table or 'drivable' in table)
