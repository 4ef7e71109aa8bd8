"""Render streets with Blender: a source domain made in another way than the drawn styles.

Everything is modelled in code: no asset, texture, scan or photograph is read. Light is traced by Cycles
(sun, sky, bounces), so shadows, reflections and the falling off of light are those of a real camera, which the
drawn styles of `nbs/01_streets.ipynb` only suggest. The mask of every class is a second rendering of the same
scene, one sample a pixel, in which each object shines with its train id.

    python3.11 -m venv .blender && .blender/bin/pip install bpy==5.0.1 pillow
    .blender/bin/python data_samples/render/render.py OUT --n 400 --seed 0

Pair 7 is OUT/images/0007.jpg and OUT/labels/0007.png. Pair `i` depends on (seed, i) alone, and what is already there
is not rendered again.

Lengths are metres and angles radians, unless a name says otherwise. The road runs ahead along +y, +x is to the right
and +z is up. Along a street, `s` is metres ahead and `d` metres to the right of its middle; side -1 is left, 1 is right.
"""
import argparse
import math
import sys
import tempfile
from pathlib import Path

import bpy
import numpy as np
from PIL import Image

from shapes import grey, node, noise
from street import Library, SKY, Street, lay_ground
from town import build_rows, furnish, populate


# ---------------------------------------------------------------------------------------- light and camera
def light_up(rng, world):
    "A clear, veiled or overcast sky, the sun in any direction."
    tree = world.node_tree
    tree.nodes.clear()
    cover = rng.choice([0, 1, 2], p=[.35, .35, .3])
    blue, cloudy = open_sky(rng, tree, cover), clouds(rng, tree, cover)
    white = rng.uniform(1.2, 3.5)
    colour = (white * rng.uniform(.9, 1), white * .97, white, 1)
    if cover == 2:                                                       # Darker clouds take the place of the blue.
        dark = white * rng.uniform(.3, 1)
        blue = (dark * .93, dark * .97, dark, 1)
    mixed = node(tree, 'Mix', {0: cloudy, 6: blue, 7: colour}, data_type='RGBA').outputs[2]
    node(tree, 'OutputWorld', {0: node(tree, 'Background', {0: mixed}).outputs[0]})


def open_sky(rng, tree, cover):
    "The blue sky; its sun is weaker behind a veil (`cover` 1) and hidden behind clouds (2)."
    made = node(tree, 'TexSky', sun_elevation=math.radians(rng.uniform(8, 60)), sun_rotation=rng.uniform(0, math.tau),
                sun_disc=bool(cover < 2), sun_intensity=rng.uniform(.2, 1) * (1 if cover == 0 else .4),
                sun_size=math.radians(rng.uniform(.6, 3)))
    return made.outputs[0]


def clouds(rng, tree, cover):
    "How much cloud hides the sky, 0..1 in every direction."
    where = node(tree, 'TexCoord').outputs['Generated']
    flat = node(tree, 'Mapping', {'Vector': where, 'Scale': (1, 1, rng.uniform(1.5, 4)),
                                  'Location': tuple(rng.uniform(0, 50, 3))}).outputs[0]
    ramp = node(tree, 'ValToRGB', {0: noise(tree, flat, rng.uniform(1.5, 4), 8)})
    lows = rng.uniform(.5, .75), rng.uniform(.35, .5), rng.uniform(.3, .45)
    first, last = ramp.color_ramp.elements
    first.position, last.position = lows[cover], min(lows[cover] + rng.uniform(.1, .4), 1)
    return ramp.outputs[0]


def aim(rng, street, camera):
    "A camera behind a windscreen, in its own lane: height, lens, yaw and pitch as cars have them."
    own = (-1 if street.left_hand else 1) * street.half * .5
    place, _ = street.at(0, own + rng.normal() * .5)
    camera.location = (place[0], 0, rng.uniform(1.15, 2.1))
    camera.data.angle = math.radians(rng.uniform(48, 80))
    yaw = rng.normal() * 7 if rng.uniform() < .85 else rng.normal() * 30      # Degrees; some cars are turning.
    pitch, roll = 90 + rng.normal() * 2 - 1.5, rng.normal() * .7
    camera.rotation_euler = (math.radians(pitch), math.radians(roll), math.radians(yaw))


def label_material():
    "A material that shines with the label of its object, divided by 255."
    made = bpy.data.materials.new('mask')
    tree = made.node_tree
    tree.nodes.clear()
    label = node(tree, 'ObjectInfo').outputs['Object Index']
    share = node(tree, 'Math', {0: label, 1: 255}, operation='DIVIDE').outputs[0]
    node(tree, 'OutputMaterial', {0: node(tree, 'Emission', {0: share}).outputs[0]})
    return made


class Studio:
    "Blender's scene, its camera, and the two ways to see a street: in traced light, or as labels."

    def __init__(self, size, samples):
        "`size` is (width, height) in pixels, `samples` the rays per pixel of a photograph."
        bpy.ops.wm.read_factory_settings(use_empty=True)
        self.scene, self.samples = bpy.context.scene, samples
        self.camera = bpy.data.objects.new('camera', bpy.data.cameras.new('camera'))
        self.camera.data.clip_end = 1000
        self.scene.collection.objects.link(self.camera)
        self.scene.camera = self.camera
        self.sky, self.plain = bpy.data.worlds.new('sky'), bpy.data.worlds.new('mask')
        back = next(n for n in self.plain.node_tree.nodes if n.type == 'BACKGROUND')
        back.inputs[0].default_value = (*grey(SKY / 255), 1)
        self.mask = label_material()
        self.set_up(size)

    def set_up(self, size):
        "The settings that all renderings share."
        scene, cycles, render = self.scene, self.scene.cycles, self.scene.render
        render.engine = 'CYCLES'
        render.resolution_x, render.resolution_y = size
        render.dither_intensity, scene.view_settings.view_transform = 0, 'Raw'
        render.image_settings.file_format, render.image_settings.color_mode = 'OPEN_EXR', 'RGB'
        cycles.max_bounces, cycles.diffuse_bounces, cycles.glossy_bounces = 4, 2, 2
        cycles.use_adaptive_sampling, cycles.denoising_prefilter = False, 'NONE'  # Both would lose twigs.

    def clear(self):
        "Remove the objects of the last street and the meshes that only it used."
        for made in [m for m in self.scene.collection.objects if m.type == 'MESH']:
            bpy.data.objects.remove(made)
        for mesh in [m for m in bpy.data.meshes if m.users == 0]:
            bpy.data.meshes.remove(mesh)

    def show_covers(self, shown):
        "Show or hide what only the mask shows."
        for made in self.scene.collection.objects:
            if made.type == 'MESH' and made.data.name.endswith(' cover'):
                made.hide_render = not shown

    def photograph(self, rng):
        "The street in traced light, as a camera shows it."
        cycles = self.scene.cycles
        self.show_covers(False)
        self.scene.world, self.scene.view_layers[0].material_override = self.sky, None
        cycles.samples, cycles.use_denoising = self.samples, True
        cycles.filter_width, cycles.pixel_filter_type = rng.uniform(1.2, 1.8), 'BLACKMAN_HARRIS'
        return develop(rng, self.render())

    def labels(self):
        "The train id of what the middle of each pixel shows."
        cycles = self.scene.cycles
        self.show_covers(True)
        self.scene.world, self.scene.view_layers[0].material_override = self.plain, self.mask
        cycles.samples, cycles.use_denoising = 1, False
        cycles.filter_width, cycles.pixel_filter_type = .01, 'BOX'
        return Image.fromarray(np.rint(self.render()[..., 0] * 255).astype(np.uint8))

    def render(self):
        "The rendered picture as linear light, (H, W, 3)."
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / 'light.exr')
            self.scene.render.filepath = path
            bpy.ops.render.render(write_still=True)
            read = bpy.data.images.load(path)
            light = np.empty(len(read.pixels), np.float32)
            read.pixels.foreach_get(light)
            light = light.reshape(read.size[1], read.size[0], -1)[::-1, :, :3]
            bpy.data.images.remove(read)
        return light


def develop(rng, light):
    "From linear light to a photograph: exposure, white balance, a camera's curve, noise of the sensor."
    brightness = light.mean(-1)
    street = np.exp(np.log(brightness[brightness.shape[0] // 3:] + 1e-3).mean())
    level = rng.uniform(.05, .26) if rng.uniform() < .75 else rng.uniform(.01, .05)   # A quarter is at dusk.
    light = light * level / street * rng.uniform(.93, 1.07, 3)
    knee = rng.uniform(.6, 1)                                                 # Above it, brightness is compressed.
    light = np.where(light > knee, knee + (1 - knee) * (1 - np.exp(-(light - knee) / max(1 - knee, .05))), light)
    light = np.clip(light + rng.normal(size=light.shape) * rng.uniform(0, .012) * np.sqrt(light + .02), 0, 1)
    shown = np.where(light <= .0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - .055)
    return Image.fromarray(np.rint(255 * np.clip(shown, 0, 1)).astype(np.uint8))


# -------------------------------------------------------------------------------------------- command line
def shoot(studio, library, rng, image, label):
    "Build one street and write what is missing: the image (JPEG), the mask (8-bit PNG of train ids)."
    studio.clear()
    street = Street(rng, library)
    lay_ground(street)
    build_rows(street)
    furnish(street)
    populate(street)
    aim(rng, street, studio.camera)
    light_up(rng, studio.sky)
    if not image.exists():
        save(studio.photograph(rng), image, quality=90)
    if not label.exists():
        save(studio.labels(), label, optimize=True)


def save(picture, path, **options):
    "Write a picture under another name first, so that none is ever left half written."
    part = path.with_name(f'.{path.name}')
    try:
        picture.save(part, **options)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def arguments():
    "What the command line asks for, checked."
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument('out', type=Path, help='folder that gets images/ and labels/')
    words.add_argument('--n', type=int, default=300, help='number of pairs (%(default)s)')
    words.add_argument('--first', type=int, default=0, help='number of the first pair (%(default)s)')
    words.add_argument('--seed', type=int, default=0, help='another seed, other streets (%(default)s)')
    words.add_argument('--size', type=int, nargs=2, default=(288, 180), metavar=('W', 'H'), help='pixels (288 180)')
    words.add_argument('--samples', type=int, default=12, help='rays per pixel (%(default)s)')
    asked = words.parse_args()
    for key, value, least in (('n', asked.n, 1), ('first', asked.first, 0), ('seed', asked.seed, 0),
                              ('size', min(asked.size), 16), ('samples', asked.samples, 1)):
        if value < least:
            sys.exit(f'--{key} {value}: expected {least} or more')
    return asked


def make_folders(out):
    "The folders for images and masks, which must be writable."
    for folder in (out / 'images', out / 'labels'):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as e:
            sys.exit(f'{folder}: cannot be written to ({e.strerror}); choose another OUT')
    return out / 'images', out / 'labels'


def main():
    "Render the pairs that are not there yet."
    asked = arguments()
    images, labels = make_folders(asked.out)
    studio = Studio(asked.size, asked.samples)
    library = Library(asked.seed)
    for i in range(asked.first, asked.first + asked.n):
        image, label = images / f'{i:04d}.jpg', labels / f'{i:04d}.png'
        if not (image.exists() and label.exists()):
            shoot(studio, library, np.random.default_rng([asked.seed, i]), image, label)


if __name__ == '__main__':
    main()
