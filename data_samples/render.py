"""Render streets with Blender: a source domain made in another way than the drawn styles.

Everything is modelled in code: no asset, texture, scan or photograph is read. Light is traced by Cycles
(sun, sky, bounces), so shadows, reflections and the falling off of light are those of a real camera, which the
drawn styles of `nbs/01_streets.ipynb` only suggest. The mask of every class is a second rendering of the same
scene, one sample a pixel, in which each object shines with its train id.

    python3.11 -m venv .blender && .blender/bin/pip install bpy==5.0.1 pillow
    .blender/bin/python data_samples/render.py OUT --n 400 --seed 0

Pair 7 is OUT/images/0007.jpg and OUT/labels/0007.png. Pair `i` depends on (seed, i) alone, and what is already there
is not rendered again.

Lengths are metres and angles radians, unless a name says otherwise. The road runs ahead along +y, +x is to the right and
+z is up. Along a street, `s` is metres ahead and `d` metres to the right of its middle; side -1 is left, 1 is right.
"""
import argparse
import math
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import bpy
import bmesh
import numpy as np
from mathutils import Vector
from PIL import Image

# The train ids of Cityscapes.
ROAD, PAVEMENT, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, PLANT, GRASS, SKY = range(11)
PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = range(11, 19)


# ---------------------------------------------------------------------------------------------------- nodes
def node(tree, kind, inputs=None, **settings):
    "A new node of a node tree; an input (by name or number) takes a value or another node's output."
    made = tree.nodes.new(f'ShaderNode{kind}')
    for key, value in settings.items():
        setattr(made, key, value)
    for key, value in (inputs or {}).items():
        feed(tree, made.inputs[key], value)
    return made


def feed(tree, socket, value):
    "Set an input to a value, or link it to another node's output."
    if isinstance(value, bpy.types.NodeSocket):
        tree.links.new(value, socket)
    else:
        socket.default_value = value


def multiply(tree, first, second, share=1.):
    "The product of two colours; `share` (0..1) is how far it replaces the first one."
    return node(tree, 'Mix', {0: share, 6: first, 7: second}, data_type='RGBA', blend_type='MULTIPLY').outputs[2]


def noise(tree, where, scale, detail):
    "Noise 0..1 with spots of 1 / `scale` metres."
    return node(tree, 'TexNoise', {'Vector': where, 'Scale': scale, 'Detail': detail}).outputs[0]


def tinted(tree, colour):
    "A colour multiplied by the colour of the object that wears it."
    return multiply(tree, colour, node(tree, 'ObjectInfo').outputs['Color'])


# ------------------------------------------------------------------------------------------------ materials
def blank(name):
    "A new material, its node tree, and where a point lies on its object (metres)."
    made = bpy.data.materials.new(name)
    return made, made.node_tree, node(made.node_tree, 'TexCoord').outputs['Object']


def shaded(material, inputs):
    "The same material, the inputs of its principled shader set."
    tree = material.node_tree
    for key, value in inputs.items():
        feed(tree, tree.nodes['Principled BSDF'].inputs[key], value)
    return material


def grainy(name, dark, light, scale, rough, bump=0., fine=0., metal=0., coat=0., tint=True):
    "A surface mottled between two colours, `scale` spots a metre; `bump` dents it, `fine` dents a metre."
    made, tree, where = blank(name)
    spots = node(tree, 'TexNoise', {'Vector': where, 'Scale': scale, 'Detail': 6., 'Roughness': .65}).outputs[0]
    colour = node(tree, 'Mix', {0: spots, 6: (*dark, 1), 7: (*light, 1)}, data_type='RGBA').outputs[2]
    inputs = {'Base Color': tinted(tree, colour) if tint else colour, 'Roughness': rough, 'Metallic': metal,
              'Coat Weight': coat}
    if bump:
        dents = noise(tree, where, fine, 4.)
        inputs['Normal'] = node(tree, 'Bump', {'Height': dents, 'Strength': bump, 'Distance': .02}).outputs[0]
    return shaded(made, inputs)


def courses(tree, flat, colours, wide, high, gap, bias=0.):
    "Bricks of `wide` x `high` m in the plane of `flat`, in two colours, with mortar of the third; `bias` -1..1 prefers one."
    size = {'Scale': 1., 'Brick Width': wide, 'Row Height': high, 'Mortar Size': gap, 'Bias': bias}
    paint = {key: (*colour, 1) for key, colour in zip(('Color1', 'Color2', 'Mortar'), colours)}
    return node(tree, 'TexBrick', {'Vector': flat, **size, **paint}).outputs['Color']


def bricks(name, first, second, mortar, wide=.22, high=.075, gap=.012, stain=.5):
    "Courses of bricks or plates in the plane (x + y, z), so that every upright wall carries them."
    made, tree, where = blank(name)
    x, y, z = node(tree, 'SeparateXYZ', {0: where}).outputs
    along = node(tree, 'Math', {0: x, 1: y}).outputs[0]
    flat = node(tree, 'CombineXYZ', {0: along, 1: z}).outputs[0]
    colour = courses(tree, flat, (first, second, mortar), wide, high, gap, -.2)
    stained = multiply(tree, colour, noise(tree, where, .6, 8.), stain)
    return shaded(made, {'Base Color': tinted(tree, stained), 'Roughness': .9})


def slabs(name, first, second, size=.6):
    "Paving in the plane of the ground, rows `size` m deep."
    made, tree, where = blank(name)
    mortar = tuple(.5 * v for v in first)
    colour = courses(tree, where, (first, second, mortar), size * 1.4, size, .01)
    stained = multiply(tree, colour, noise(tree, where, .9, 8.), .6)
    return shaded(made, {'Base Color': tinted(tree, stained), 'Roughness': .85})


def shop_window(name):
    "Goods behind glass: upright blotches of any colour, most of them dark. They are part of the building."
    made, tree, where = blank(name)
    upright = node(tree, 'Mapping', {'Vector': where, 'Scale': (2.6, 2.6, 1.1)}).outputs[0]
    goods = node(tree, 'TexVoronoi', {'Vector': upright, 'Scale': 1.}).outputs['Color']
    dark = node(tree, 'Math', {0: noise(tree, where, .9, 4.), 1: 3}, operation='POWER').outputs[0]
    return shaded(made, {'Base Color': multiply(tree, goods, dark), 'Roughness': .12})


def glowing(name, colour, strength):
    "A surface that also shines by itself."
    shines = {'Base Color': (*colour, 1), 'Emission Color': (*colour, 1), 'Emission Strength': strength}
    return shaded(bpy.data.materials.new(name), shines)


def grey(v):
    "A grey as (r, g, b), linear."
    return v, v, v


def ground_materials():
    "Roads, lines, paving, kerbs, grass."
    return [
        grainy('asphalt', grey(.045), grey(.11), .7, .8, bump=.35, fine=60),
        grainy('line', grey(.35), grey(.85), 5, .6),
        slabs('slabs', grey(.26), grey(.36)),
        slabs('setts', (.25, .2, .17), (.33, .28, .25), .12),
        grainy('tarmac', grey(.06), grey(.13), 1.2, .9, bump=.3, fine=60),
        grainy('kerb', grey(.2), grey(.4), 3, .85),
        grainy('grass', (.03, .06, .012), (.1, .16, .03), 1.5, .95, bump=.6, fine=40)]


def building_materials():
    "Walls, roofs, and what closes a window."
    return [
        bricks('brick', (.32, .1, .06), (.2, .07, .05), (.4, .36, .32)),
        bricks('yellow brick', (.5, .38, .2), (.4, .28, .15), (.4, .37, .33)),
        bricks('stone', (.45, .4, .3), (.35, .31, .25), (.25, .22, .2), .7, .35, .015),
        grainy('plaster', grey(.5), grey(.85), .5, .9),
        grainy('concrete', grey(.22), grey(.42), .5, .9, bump=.2, fine=4.),
        bricks('panel', grey(.6), grey(.66), grey(.25), 1.4, 3., .03, .2),
        bricks('tiles', (.2, .1, .07), (.13, .08, .06), grey(.04), .3, .2, .02),
        bricks('slate', grey(.07), (.1, .1, .12), grey(.03), .3, .2, .02),
        grainy('glass', grey(.01), (.03, .035, .04), .3, .08, tint=False),
        shop_window('display'),
        grainy('curtain', grey(.1), grey(.5), .8, .6, tint=False),
        grainy('frame', grey(.6), grey(.8), 2, .5),
        grainy('paint', grey(.75), grey(.95), 1, .4)]


def vehicle_materials():
    "Bodies, wheels, posts."
    return [
        grainy('car', grey(.9), grey(1), .3, .3, coat=1., metal=.25),
        grainy('tyre', grey(.01), grey(.03), 5, .9, tint=False),
        grainy('rim', grey(.3), grey(.5), 3, .35, metal=.8, tint=False),
        grainy('black', grey(.008), grey(.02), 3, .6, tint=False),
        grainy('metal', grey(.2), grey(.35), 2, .5, metal=.5),
        grainy('wood', (.15, .08, .04), (.3, .18, .1), 3, .8)]


def living_materials():
    "Trees and people."
    return [
        grainy('bark', (.05, .035, .025), (.16, .12, .09), 6, .95, tint=False),
        grainy('leaf', (.02, .06, .01), (.1, .2, .03), .6, .7),
        grainy('needle', (.01, .03, .012), (.04, .09, .03), .8, .8),
        grainy('cloth', grey(.65), grey(1), 3, .9),
        grainy('skin', (.3, .16, .1), (.6, .4, .3), .4, .6, tint=False),
        grainy('hair', grey(.01), (.12, .07, .03), .5, .8, tint=False),
        grainy('trouser', grey(.01), (.08, .09, .14), .4, .9, tint=False)]


def glowing_materials():
    "Lights, and the plates of signs, which stand out even in the shade."
    return [
        glowing('red', (.7, .02, .02), .25),
        glowing('red light', (1., .05, .03), 3.),
        glowing('amber', (1., .45, .02), 2.),
        glowing('green light', (.05, 1., .4), 3.),
        glowing('white', (.85, .85, .85), .1),
        glowing('lamp', (.8, .8, .75), .3),
        glowing('blue', (.02, .1, .5), .15),
        glowing('yellow', (.9, .6, .02), .15)]


def make_materials():
    "Every material by name."
    made = [*ground_materials(), *building_materials(), *vehicle_materials(), *living_materials(), *glowing_materials()]
    return {material.name: material for material in made}


# --------------------------------------------------------------------------------------------------- meshes
class Mesh:
    """Corners (metres), faces, and the name of a material per face; `build` makes the Blender mesh.

    People who label photographs outline a bare crown, a railing or a wheel and fill it. `cover` is another Mesh
    that only the mask shows, for things with holes in them.
    """

    def __init__(self):
        self.corners, self.faces, self.looks, self.cover = [], [], [], None

    def face(self, points, look):
        "A flat polygon."
        start = len(self.corners)
        self.corners += [tuple(p) for p in points]
        self.faces.append(list(range(start, start + len(points))))
        self.looks.append(look)

    def box(self, low, high, look):
        "A box between two opposite corners."
        (a, b, c), (d, e, f) = low, high
        points = [(x, y, z) for z in (c, f) for x, y in ((a, b), (d, b), (d, e), (a, e))]
        for ids in ((3, 2, 1, 0), (4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7)):
            self.face([points[i] for i in ids], look)

    def tube(self, start, end, first, last, look, sides=6):
        "A closed tube between two points; its radius goes from `first` to `last`."
        start, end = Vector(start), Vector(end)
        turn = (end - start).to_track_quat('Z', 'Y')
        ring = [Vector((math.cos(t), math.sin(t), 0)) for t in around(sides)]
        low, high = [start + turn @ (first * p) for p in ring], [end + turn @ (last * p) for p in ring]
        for i in range(sides):
            j = (i + 1) % sides
            self.face((low[i], low[j], high[j], high[i]), look)
        self.face(high, look)
        self.face(low[::-1], look)

    def ball(self, centre, radii, look, rings=6, sides=8):
        "An ellipsoid with a radius per axis."
        (x, y, z), (a, b, c) = centre, radii
        rows = [[(x + a * math.sin(v) * math.cos(u), y + b * math.sin(v) * math.sin(u), z + c * math.cos(v))
                 for u in around(sides)] for v in np.linspace(.02, math.pi - .02, rings + 1)]
        self.loft(rows, lambda i, j: look)

    def loft(self, rows, look, closed=True):
        "Faces between rows of points, each row a ring if `closed`; `look(row, column)` names the material."
        n = len(rows[0])
        for i, (low, high) in enumerate(pairwise(rows)):
            for j in range(n if closed else n - 1):
                k = (j + 1) % n
                self.face((low[j], low[k], high[k], high[j]), look(i, j))

    def build(self, name, materials, smooth=False):
        "The Blender mesh, and beside it the mesh of its cover."
        names = sorted(set(self.looks))
        made = bpy.data.meshes.new(name)
        made.from_pydata(self.corners, [], self.faces)
        for key in names:
            made.materials.append(materials[key])
        made.polygons.foreach_set('material_index', [names.index(k) for k in self.looks])
        if smooth:
            soften(made)
        if self.cover:
            self.cover.build(cover_name(made), materials)
        return made


def around(n):
    "`n` angles around the circle, radians."
    return np.linspace(0, math.tau, n, endpoint=False)


def cover_name(mesh):
    "What the cover of a mesh is called, if it has one."
    return f'{mesh.name} cover'


def soften(mesh):
    "Join the corners that coincide and shade smoothly across edges of up to 40 degrees."
    work = bmesh.new()
    work.from_mesh(mesh)
    bmesh.ops.remove_doubles(work, verts=work.verts, dist=1e-4)
    bmesh.ops.recalc_face_normals(work, faces=work.faces)
    work.to_mesh(mesh)
    work.free()
    mesh.shade_smooth()
    mesh.set_sharp_from_angle(angle=math.radians(40))


# --------------------------------------------------------------------------------------------------- plants
def tree_mesh(rng, leafy):
    "A tree 5..13 m high: branches that fork until they are twigs, and, if leafy, small leaves around the twigs."
    made, height = Mesh(), rng.uniform(5, 13)
    way = Vector((*rng.normal(size=2) * .05, 1)).normalized()
    tips = grow(made, rng, leafy, Vector((0, 0, 0)), way, height * .25, height * .018, 4 if leafy else 6)
    made.cover = Mesh()
    for tip in tips:
        made.cover.ball(tip, (height * (.07 if leafy else .045),) * 3, 'leaf', 3, 5)
    for tip in tips:
        if leafy:
            leaves(made, rng, tip, height * .085, 34, 'leaf', height * .021)
        else:                                            # These twigs are too fine to be modelled one by one.
            leaves(made, rng, tip, height * .025, 4, 'bark', height * .008)
    return made


def grow(made, rng, leafy, start, way, length, radius, depth):
    "A branch along the unit vector `way` and all that forks from it, `depth` times; returns the points that bear leaves."
    end = start + way * length
    made.tube(start, end, max(radius, .02), max(radius * .7, .016), 'bark', 5 if depth > 2 else 3)
    tips = []
    for _ in range(int(rng.integers(2, 4)) + (depth < 2 and not leafy) if depth else 0):
        turn = Vector(rng.normal(size=3) * (.55 if depth < 4 else .4)) + Vector((0, 0, .12))
        tips += grow(made, rng, leafy, end, (way + turn).normalized(), length * rng.uniform(.62, .85),
                     radius * rng.uniform(.5, .68), depth - 1)
    return tips + [end] if depth < 4 else tips


def leaves(made, rng, centre, spread, count, look, size):
    "Quadrilaterals with sides of `size` m, turned at random, scattered around a point by `spread` m."
    for offset, a, b in zip(rng.normal(size=(count, 3)) * spread, rng.normal(size=(count, 3)), rng.normal(size=(count, 3))):
        p, a, b = Vector(centre) + Vector(offset), Vector(a).normalized() * size, Vector(b).normalized() * size
        made.face((p, p + a, p + a + b, p + b), look)


def conifer_mesh(rng):
    "A cone of needles, 4..12 m high."
    made, height = Mesh(), rng.uniform(4, 12)
    made.tube((0, 0, 0), (0, 0, height), height * .02, .02, 'bark')
    for z in np.linspace(.08, 1, 28):
        wide = (1 - z) * height * rng.uniform(.18, .24) + .1
        for _ in range(14):
            t, r = rng.uniform(0, math.tau), wide * math.sqrt(rng.uniform())
            leaves(made, rng, (r * math.cos(t), r * math.sin(t), z * height), .15, 4, 'needle', .28)
    return made


def hedge_mesh(rng, length, height):
    "A hedge along +x, .6 m thick, its sides and top full of leaves."
    made = Mesh()
    made.box((0, -.3, 0), (length, .3, height * .9), 'needle')
    for _ in range(int(length * 60)):
        centre = rng.uniform(0, length), rng.choice([-.3, .3, 0]), rng.uniform(0, height)
        leaves(made, rng, centre, .12, 2, 'leaf', .16)
    return made


def bush_mesh(rng):
    "A round bush, .6..2.2 m high."
    made, high = Mesh(), rng.uniform(.6, 2.2)
    for _ in range(40):
        centre = rng.normal(size=3) * (high * .4, high * .4, high * .2) + (0, 0, high * .5)
        leaves(made, rng, centre, high * .15, 12, 'leaf', .12)
    return made


# ------------------------------------------------------------------------------------------------- vehicles
@dataclass(frozen=True)
class Body:
    "The measures of a car: metres, and shares of its length."
    kind: str
    length: float
    high: float
    wide: float       # half the width
    belt: float       # height of the lower edge of the windows
    bonnet: float     # share up to the windscreen
    tail: float       # share behind the rear window
    front: float      # share that the windscreen takes
    back: float       # share that the rear window takes
    nose: float       # height of the bonnet's front edge
    narrow: float     # half the width of the roof
    low: float = .22  # height of the floor

    @property
    def boot(self):
        "Whether there is a boot lid behind the rear window."
        return self.tail > .012


# Kind of car: its share of the cars, length, height, height of the belt, shares of the tail and of the rear window.
CARS = {'hatch': (.34, 3.9, 1.47, .9, .02, .1), 'saloon': (.22, 4.5, 1.43, .9, .17, .14),
        'estate': (.18, 4.6, 1.47, .92, .01, .05), 'high': (.14, 4.6, 1.75, 1.05, .02, .05),
        'van': (.12, 4.9, 2., 1.2, .005, .05)}


def car_body(rng):
    "The measures of any hatchback, saloon, estate, off-roader or van."
    kind = str(rng.choice(list(CARS), p=[row[0] for row in CARS.values()]))
    _, length, high, belt, tail, back = CARS[kind]
    length, high, wide = length * rng.uniform(.94, 1.06), high * rng.uniform(.96, 1.04), rng.uniform(.82, .92)
    bonnet, front = rng.uniform(.24, .28), rng.uniform(.13, .17)
    return Body(kind, length, high, wide, belt, .16 if kind == 'van' else bonnet, tail, front, back,
                nose=belt * rng.uniform(.72, .8), narrow=wide * rng.uniform(.74, .8))


def car_stops(car):
    "Cross-sections from nose to tail: share of the length, share of the width, height of the belt, and of the roof or None."
    glass = car.bonnet + car.front
    stops = [(0, .82, car.nose - .2, None), (.012, .9, car.nose, None), (.1, .98, car.belt * .92, None),
             (car.bonnet, 1, car.belt, None), (glass, 1, car.belt, car.high - .04)]
    cabin = np.linspace(glass, 1 - car.tail - car.back, 5)
    stops += [(t + d, 1, car.belt, car.high) for t in cabin[1:4] for d in (-.012, .012)]
    stops += [(cabin[4], 1, car.belt, car.high - .05), (1 - car.tail, .98, car.belt, None)]
    if car.boot:
        stops += [(1 - .012, .96, car.belt - .04, None)]
    return stops + [(1, .9, car.belt - .15, None)]


def ring_of(y, wide, low, belt, roof, narrow):
    "One cross-section of a car at `y`: twelve points from the right sill over the roof to the left sill."
    half = [(wide * .86, low), (wide * .97, low + .1), (wide, low + .3), (wide * .97, belt), (narrow, roof - .06),
            (narrow * .82, roof)]
    return [(x, y, z) for x, z in half] + [(-x, y, z) for x, z in half[::-1]]


def loft_car(made, car):
    "The body of a car, with windows between its pillars and a black floor."
    stops = car_stops(car)
    rows = [ring_of((.5 - t) * car.length, car.wide * w, car.low + (.1 if t in (0, 1) else 0), belt, roof or belt + .02,
                    car.narrow if roof else car.wide * w * .93) for t, w, belt, roof in stops]
    last = len(stops) - (3 if car.boot else 2)                          # The row where the rear window ends.

    def look(i, j):
        "Rows count from the nose, columns around the car: 3 and 7 are the sides' windows, 4 to 6 the roof, 11 the floor."
        pane = 3 <= i < last and (j in (3, 7) or (j in (4, 5, 6) and i in (3, last - 1)))
        solid = i in (5, 7, 9) or (car.kind == 'van' and i > 5)
        return 'black' if j == 11 else 'glass' if pane and not solid else 'car'
    made.loft(rows, look)
    made.face(rows[0], 'car')
    made.face(rows[-1][::-1], 'car')


def car_mesh(rng):
    "A car, its nose towards +y: body, wheels, lamps, mirrors, number plates, bumpers."
    made, car = Mesh(), car_body(rng)
    length, wide, low, belt = car.length, car.wide, car.low, car.belt
    loft_car(made, car)
    for side in (-1, 1):
        for y in (length * .31, -length * .3):
            wheel(made, side * wide * .985, y, .36 if car.kind == 'high' else .31, side)
        plate(made, (side * wide * .68, length * .5, car.nose - .16), (.16, .08), 'lamp', 1)
        plate(made, (side * wide * .76, -length * .5, belt - .22), (.09, .14), 'red', -1)
        made.box((side * wide, length * .15, belt), (side * (wide + .16), length * .18, belt + .12), 'car')
    plate(made, (0, length * .5, low + .28), (.26, .06), rng.choice(['white', 'yellow']), 1)
    plate(made, (0, -length * .5, low + .4), (.26, .06), rng.choice(['white', 'yellow']), -1)
    made.box((-wide * .8, length * .46, low + .02), (wide * .8, length * .505, low + .16), 'black')
    made.box((-wide * .8, -length * .505, low + .02), (wide * .8, -length * .46, low + .16), 'black')
    return made


def plate(made, centre, half, look, way):
    "A lamp or a number plate on the front (`way` 1) or the back (-1) of a vehicle; `half` its width and height."
    (x, y, z), (wide, high) = centre, half
    behind, ahead = (.03, .012) if way > 0 else (.012, .03)
    made.box((x - wide, y - behind, z - high), (x + wide, y + ahead, z + high), look)


def wheel(made, x, y, radius, side):
    "A tyre, its rim, and the dark arch around it; `x` is the outer face."
    made.tube((x - side * .2, y, radius), (x + side * .012, y, radius), radius, radius, 'tyre', 14)
    made.tube((x, y, radius), (x + side * .02, y, radius), radius * .62, radius * .58, 'rim', 10)
    arch = radius * 1.17
    made.tube((x - side * .3, y, radius + .02), (x + side * .004, y, radius + .02), arch, arch, 'black', 14)


def bus_mesh(rng):
    "A bus of one or two decks, its front towards +y."
    made, length, wide = Mesh(), rng.uniform(9.5, 12), 1.25
    high = rng.choice([3.1, 4.3])
    made.box((-wide, -length / 2, .35), (wide, length / 2, high), 'car')
    for low, top in ((1.3, 2.3), (2.9, 3.9))[:1 if high < 4 else 2]:
        for y in np.arange(-length / 2 + .4, length / 2 - 1.2, 1.25):
            for side in (-1, 1):
                made.box((side * wide - .02, y, low), (side * wide + .02, y + 1.1, top), 'glass')
        for end in (-1, 1):
            made.box((-wide + .15, end * length / 2 - .02, low - .2), (wide - .15, end * length / 2 + .02, top), 'glass')
    made.box((-wide + .3, length / 2, 2.45), (wide - .3, length / 2 + .03, 2.75), 'amber')
    wheels_and_lamps(made, length, wide)
    return made


def truck_mesh(rng):
    "A truck with a cab, towards +y, and a box behind it."
    made, length, wide = Mesh(), rng.uniform(6, 9), 1.2
    high = rng.uniform(2.9, 3.8)
    cab = length / 2 - rng.uniform(1.6, 2)
    made.box((-wide * .95, cab, .5), (wide * .95, length / 2, rng.uniform(2.2, 2.8)), 'car')
    made.box((-wide * .85, length / 2 - .02, 1.4), (wide * .85, length / 2 + .02, 2.1), 'glass')
    for side in (-1, 1):
        x = side * wide * .95
        made.box((x - .02, cab + .5, 1.4), (x + .02, length / 2 - .3, 2.05), 'glass')
    made.box((-wide, -length / 2, .9), (wide, cab - .1, high), rng.choice(['paint', 'car', 'frame']))
    made.box((-.4, -length / 2, .5), (.4, cab, .9), 'black')
    wheels_and_lamps(made, length, wide)
    return made


def wheels_and_lamps(made, length, wide):
    "What a bus and a truck have in common; `wide` is half the width."
    for side in (-1, 1):
        for y in (length * .33, -length * .3):
            wheel(made, side * wide * .97, y, .48, side)
        plate(made, (side * wide * .75, length / 2, .75), (.18, .1), 'lamp', 1)
        plate(made, (side * wide * .82, -length / 2, .9), (.1, .18), 'red', -1)
    plate(made, (0, -length / 2, .7), (.28, .07), 'yellow', -1)


def bicycle_mesh():
    "A bicycle along +y: two wheels with spokes and a frame."
    made, r, base = Mesh(), .34, .52
    for y in (-base, base):
        tyre(made, y, r, .022)
        for t in np.linspace(0, math.pi, 5, endpoint=False):
            made.tube(rim_point(y, r, r, t), rim_point(y, r, -r, t), .004, .004, 'metal', 3)
    frame(made, r, base, .02)
    return made


def motorcycle_mesh():
    "A motorcycle along +y: fat tyres, a frame, tank, seat, engine and lamp."
    made, r, base = Mesh(), .31, .7
    for y in (-base, base):
        tyre(made, y, r, .07)
    frame(made, r, base, .05)
    made.ball((0, .12, .8), (.17, .3, .16), 'car')
    made.box((-.14, -.7, .72), (.14, 0, .84), 'black')
    made.box((-.16, -.15, .3), (.16, .3, .65), 'metal')
    made.box((-.1, .5, .82), (.1, .62, 1.), 'lamp')
    return made


def rim_point(y, r, reach, t):
    "The point `reach` m from the hub of an upright wheel of radius `r`, at the angle `t` above +y."
    return 0, y + reach * math.cos(t), r + reach * math.sin(t)


def tyre(made, y, r, thick):
    "A ring of tubes that stands on the ground."
    for a, b in pairwise(np.linspace(0, math.tau, 15)):
        made.tube(rim_point(y, r, r, a), rim_point(y, r, r, b), thick, thick, 'tyre', 4)


def frame(made, r, base, thick):
    "Frame, handlebar and saddle between wheels of radius `r` at -`base` and `base`; the mask shows the wheels filled."
    made.cover = Mesh()
    for y in (-base, base):
        made.cover.tube((-.01, y, r), (.01, y, r), r, r, 'tyre', 14)
    rear, front, crank, seat, head = (0, -base, r), (0, base, r), (0, -.05, r - .03), (0, -.2, .88), (0, .36, .9)
    for a, b in ((rear, crank), (rear, seat), (crank, seat), (crank, head), (seat, head), (head, front)):
        made.tube(a, b, thick, thick, 'car', 5)
    made.tube((-.28, .36, 1.), (.28, .36, 1.), .018, .018, 'black', 5)
    made.box((-.07, -.35, .9), (.07, -.1, .95), 'black')


# --------------------------------------------------------------------------------------------------- people
@dataclass(frozen=True)
class Pose:
    "How somebody stands, walks or rides, facing +y."
    riding: bool
    scale: float     # of the finished body
    stride: float    # half a step
    root: tuple      # the middle of the hips
    shoulder: tuple  # the middle between the shoulders
    lower: str       # material of the legs
    fat: float       # factor on the thickness of the limbs


def any_pose(rng, riding):
    "A rider leans on the handlebar; others stand or walk."
    scale = rng.uniform(.9, 1.06)
    if riding:
        stride, root, shoulder = 0, (0, -.18, .95), (0, -.18 + .35, .95 + .5)
    else:
        stride = rng.choice([0, 1]) * rng.uniform(.1, .45)
        root, shoulder = (0, 0, .88), (0, rng.uniform(-.02, .06) * .5, .88 + .5)
    return Pose(riding, scale, stride, root, shoulder, rng.choice(['trouser', 'cloth'], p=[.85, .15]), rng.uniform(.85, 1.2))


def person_mesh(rng, riding):
    "A person of tapered limbs, walking or seated on a bicycle, facing +y."
    made, pose = Mesh(), any_pose(rng, riding)
    for side in (-1, 1):
        leg(made, pose, side)
        arm(made, pose, side, rng.choice(['cloth', 'skin']))
    torso(made, pose)
    head(made, pose, rng.choice(['hair', 'hair', 'black', 'white']) if riding else 'hair')
    if not riding and rng.uniform() < .3:
        bag(made, pose, rng.choice(['black', 'trouser', 'wood']))
    made.corners = [tuple(pose.scale * v for v in p) for p in made.corners]
    return made


def leg(made, pose, side):
    "Thigh, shin and shoe; the left leg is the one in front."
    x, fat, stride = side * .1, pose.fat, -side * pose.stride
    if pose.riding:
        knee, foot = (x, .2, .72 - side * .12), (x, .02, .32 - side * .14)
    else:
        lift = .05 if side > 0 and pose.stride > .1 else 0
        knee, foot = (x, stride * .45 + .04, .47), (x, stride - .04, .06 + lift)
    made.tube((x * .9, *pose.root[1:]), knee, .105 * fat, .075 * fat, pose.lower, 7)
    made.tube(knee, foot, .075 * fat, .05, pose.lower, 7)
    made.ball((foot[0], foot[1] + .06, foot[2] - .02), (.05, .13, .05), 'black', 4, 6)


def arm(made, pose, side, forearm):
    "An arm that swings against the leg of its side, or holds the handlebar; `forearm` is its material below the elbow."
    fat, stride = pose.fat, -side * pose.stride
    top = Vector((side * .22 * fat, pose.shoulder[1], pose.shoulder[2] - .03))
    if pose.riding:
        elbow, hand = top + Vector((side * .06, .22, -.2)), Vector((side * .25, .34, 1.02))
    else:
        elbow = top + Vector((side * .03, -stride * .4, -.28))
        hand = elbow + Vector((0, .08 - stride * .3, -.25))
    made.tube(top, elbow, .06 * fat, .05 * fat, 'cloth', 6)
    made.tube(elbow, hand, .05 * fat, .035, forearm, 6)


def torso(made, pose):
    "Five rings from the hips to the neck; a coat hangs lower than the hips of those who walk."
    rows, root, shoulder, fat = [], Vector(pose.root), Vector(pose.shoulder), pose.fat
    for t, rx, ry in ((0, .15, .11), (.3, .16, .11), (.65, .2, .13), (.9, .19, .1), (1, .07, .06)):
        x, y, z = root.lerp(shoulder, t)
        low = .12 if t == 0 and not pose.riding else 0
        rows.append([(x + fat * rx * math.cos(a), y + fat * ry * math.sin(a), z - low) for a in around(10)])
    made.loft(rows, lambda i, j: 'cloth')


def head(made, pose, top):
    "Neck, face, and hair or a helmet of the material `top`."
    neck = Vector(pose.shoulder)
    centre = neck + Vector((0, .06 if pose.riding else .02, .2))
    made.tube(neck - Vector((0, 0, .03)), centre, .055, .05, 'skin', 6)
    made.ball(centre + Vector((0, .01, .02)), (.085, .1, .125), 'skin')
    made.ball(centre + Vector((0, -.02, .05)), (.1, .11, .115), top)


def bag(made, pose, look):
    "A bag at the right hip."
    y, z = pose.shoulder[1], pose.root[2]
    made.box((.2, y - .1, z - .1), (.32, y + .18, z + .2), look)


# ------------------------------------------------------------------------------------------------ buildings
@dataclass(frozen=True)
class District:
    "What the houses of a street have in common."
    walls: tuple
    tall: bool     # one to three more floors
    modern: float  # chance of a house with wide windows and a flat roof
    shops: float   # chance of a shop on the ground floor


DISTRICTS = [District(('brick', 'brick', 'yellow brick', 'plaster', 'stone'), False, .12, .3),
             District(('yellow brick', 'stone', 'plaster', 'stone'), False, .1, .75),
             District(('plaster', 'plaster', 'concrete', 'panel', 'brick'), True, .5, .5),
             District(('brick', 'plaster', 'panel', 'yellow brick', 'concrete'), False, .3, .1)]


@dataclass(frozen=True)
class Front:
    "The front of a house, in the plane y = 0 from x = 0 to `wide`, facing -y."
    wide: float
    wall: str       # material
    bays: int       # windows side by side
    glazing: float  # share of a bay that its window takes
    ground: float   # height of the ground floor
    storey: float   # height of the others
    shop: bool
    door: int       # the bay of the door, where there is no shop
    sill: float     # lower and upper edge of the windows, shares of the floor's height
    lintel: float
    depth: float    # of the reveals
    bands: bool     # a band of stone over every floor
    awning: bool
    board: str      # material of the shop's sign


def any_front(rng, wide, wall, glassy, shops):
    "A front with wide windows if `glassy`; `shops` is the chance of a shop."
    return Front(wide, wall, bays=max(1, round(wide / rng.uniform(1.4, 3.4))),
                 glazing=rng.uniform(.7, .92) if glassy else rng.uniform(.35, .55), ground=rng.uniform(2.9, 3.9),
                 storey=rng.uniform(2.6, 3.3), shop=rng.uniform() < shops, door=int(rng.integers(0, 9)),
                 sill=.1 if glassy else .3, lintel=.92 if glassy else .83, depth=rng.uniform(.06, .2),
                 bands=rng.uniform() < .35, awning=rng.uniform() < .2,
                 board=rng.choice(['paint', 'black', 'blue', 'red', 'wood', 'frame', 'yellow']))


def facade(made, rng, front, floors):
    "All floors of a front; returns their height."
    base = 0
    for floor in range(floors):
        high = front.storey if floor else front.ground
        for i, (a, b) in enumerate(pairwise(np.linspace(0, front.wide, front.bays + 1))):
            kind = 'window' if floor else 'shop' if front.shop else 'door' if i == front.door % front.bays else 'window'
            opening(made, front, (a, b, base, base + high), hole(front, kind, a, b, base, high), filling(rng, kind))
        if front.shop and floor == 0:
            shop_sign(made, front, high)
        base += high
        if front.bands:
            made.box((0, -.08, base - .12), (front.wide, .02, base + .03), 'frame')
    return base


def hole(front, kind, a, b, base, high):
    "Left, right, lower and upper edge of a shop window, a door or a window in the bay from `a` to `b`."
    if kind == 'shop':
        return a + .15, b - .15, base + .45, base + high - .9
    if kind == 'door':
        return (a + b) / 2 - .5, (a + b) / 2 + .5, base + .05, base + 2.15
    margin = (front.wide / front.bays) * (1 - front.glazing) / 2
    return a + margin, b - margin, base + high * front.sill, base + high * front.lintel


def filling(rng, kind):
    "The material that closes an opening."
    if kind == 'door':
        return 'paint'
    if kind == 'shop' and rng.uniform() < .6:
        return 'display'
    return 'curtain' if rng.uniform() < .25 else 'glass'


def opening(made, front, bay, hole, fill):
    "A piece of wall with a hole, its reveals, and what closes it; `bay` and `hole` are left, right, lower, upper edge."
    (a, b, low, high), (l, r, s, t), d, wall = bay, hole, front.depth, front.wall
    for x0, x1, z0, z1 in ((a, l, low, high), (r, b, low, high), (l, r, low, s), (l, r, t, high)):
        made.face(((x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)), wall)
    made.face(((l, 0, s), (r, 0, s), (r, d, s), (l, d, s)), 'frame')
    made.face(((l, d, t), (r, d, t), (r, 0, t), (l, 0, t)), wall)
    made.face(((l, 0, s), (l, d, s), (l, d, t), (l, 0, t)), wall)
    made.face(((r, d, s), (r, 0, s), (r, 0, t), (r, d, t)), wall)
    made.face(((l, d, s), (r, d, s), (r, d, t), (l, d, t)), fill)
    if fill != 'paint':
        window_bars(made, hole, d)


def window_bars(made, hole, d):
    "The frame of a window and the cross in it, before the glass at the depth `d`."
    l, r, s, t = hole
    made.box((l, d - .05, s), (l + .05, d, t), 'frame')
    made.box((r - .05, d - .05, s), (r, d, t), 'frame')
    made.box(((l + r) / 2 - .03, d - .05, s), ((l + r) / 2 + .03, d, t), 'frame')
    made.box((l, d - .05, (s + t) / 2 - .03), (r, d, (s + t) / 2 + .03), 'frame')


def shop_sign(made, front, high):
    "The board over a shop whose floor is `high` m, and its awning."
    made.box((.05, -.25, high - .85), (front.wide - .05, .02, high - .25), front.board)
    if front.awning:
        made.face(((.2, -.02, high - .9), (front.wide - .2, -.02, high - .9), (front.wide - .2, -1.3, high - 1.4),
                   (.2, -1.3, high - 1.4)), 'cloth')


def building_mesh(rng, wide, deep, district):
    "A house, shop or office of `wide` x `deep` m: its front at y = 0, facing -y, its sides, its back and a roof."
    made = Mesh()
    floors = int(rng.integers(2, 5)) + (int(rng.integers(1, 4)) if district.tall else 0)
    wall = rng.choice(district.walls)
    glassy = rng.uniform() < district.modern
    front = any_front(rng, wide, wall, glassy, district.shops)
    top = facade(made, rng, front, floors)
    for x in (0, wide):
        made.face(((x, 0, 0), (x, deep, 0), (x, deep, top), (x, 0, top)), wall)
        if rng.uniform() < .5:
            for z in np.arange(front.ground + .9, top - 1, front.storey):
                made.box((x - .02, deep * .4, z), (x + .02, deep * .4 + 1, z + 1.3), 'glass')
    made.face(((0, deep, 0), (wide, deep, 0), (wide, deep, top), (0, deep, top)), wall)
    (flat_roof if glassy or floors > 5 else pitched_roof)(made, rng, wide, deep, top, wall)
    return made


def flat_roof(made, rng, wide, deep, top, wall):
    "A roof at the height `top` behind a parapet."
    made.face(((0, 0, top), (wide, 0, top), (wide, deep, top), (0, deep, top)), 'concrete')
    made.box((-.1, -.1, top), (wide + .1, .2, top + rng.uniform(.2, .9)), rng.choice([wall, 'frame', 'concrete']))


def pitched_roof(made, rng, wide, deep, top, wall):
    "A roof that rises from the height `top`, its gable or its eaves towards the street, and chimneys."
    tile, rise = rng.choice(['tiles', 'slate']), rng.uniform(1.8, 3.6)
    if rng.uniform() < .2:
        gable(made, wide, deep, top, rise, wall, tile)
    else:
        eaves(made, wide, deep, top, rise, wall, tile)
        if rng.uniform() < .25:
            dormers(made, wide, deep, top)
    for _ in range(int(rng.integers(0, 3))):
        x = rng.uniform(.3, wide - .8)
        made.box((x, deep * .4, top + rise * .5), (x + .6, deep * .4 + .9, top + rise + rng.uniform(.6, 1.4)), wall)


def gable(made, wide, deep, top, rise, wall, tile):
    "A roof whose ridge runs away from the street."
    made.face(((0, 0, top), (wide, 0, top), (wide / 2, 0, top + rise)), wall)
    for x in (0, wide):
        made.face(((x, -.3, top - .1), (wide / 2, -.3, top + rise + .1), (wide / 2, deep, top + rise), (x, deep, top)), tile)


def eaves(made, wide, deep, top, rise, wall, tile):
    "A roof whose ridge runs along the street, and its gutter."
    made.face(((-.1, -.35, top - .15), (wide + .1, -.35, top - .15), (wide + .1, deep / 2, top + rise),
               (-.1, deep / 2, top + rise)), tile)
    made.face(((0, deep, top), (wide, deep, top), (wide, deep / 2, top + rise), (0, deep / 2, top + rise)), tile)
    for x in (0, wide):
        made.face(((x, 0, top), (x, deep, top), (x, deep / 2, top + rise)), wall)
    made.box((0, -.4, top - .25), (wide, -.3, top - .12), 'frame')


def dormers(made, wide, deep, top):
    "Windows that stand out of a roof, one every 3 m."
    for x in np.arange(1.5, wide - 1.5, 3):
        made.box((x, .4, top + .2), (x + 1.3, deep / 2, top + 1.5), 'frame')
        made.box((x + .15, .37, top + .4), (x + 1.15, .42, top + 1.35), 'glass')


# ------------------------------------------------------------------------------------------ street furniture
def lamp_post(rng):
    "A lamp 5..9 m high, its arm towards +x."
    made, high, reach = Mesh(), rng.uniform(5, 9), rng.uniform(.6, 2)
    made.tube((0, 0, 0), (0, 0, 1), .09, .09, 'metal', 8)
    made.tube((0, 0, 1), (0, 0, high), .07, .05, 'metal', 8)
    made.tube((0, 0, high), (reach, 0, high + .3), .04, .04, 'metal')
    made.box((reach - .1, -.12, high + .22), (reach + .6, .12, high + .36), 'metal')
    return made


def post_mesh(high, radius, look):
    "A plain post or bollard."
    made = Mesh()
    made.tube((0, 0, 0), (0, 0, high), radius, radius, look, 8)
    return made


def sign_mesh(rng):
    "A sign facing -y, its middle at the origin: a disc, a triangle, or a rectangle with lines on it."
    made, kind, r = Mesh(), rng.choice(['disc', 'triangle', 'board', 'square']), rng.uniform(.24, .36)
    if kind == 'disc':
        disc(made, rng, r)
        return made
    if kind == 'triangle':
        triangle(made, r)
    elif kind == 'board':
        ground = ['blue', 'needle', 'white', 'yellow', 'white']
        board(made, rng, rng.uniform(.3, .7), rng.uniform(.2, .45), rng.choice(ground))
    else:
        board(made, rng, r * .8, r * .8, rng.choice(['blue', 'white', 'yellow']))
    made.face([(-r * .7, .03, -r * .5), (r * .7, .03, -r * .5), (r * .7, .03, r * .5), (-r * .7, .03, r * .5)], 'metal')
    return made


def disc(made, rng, r):
    "A round sign of radius `r` with a ring, and its metal back."
    ring = [(r * math.cos(t), 0, r * math.sin(t)) for t in around(16)]
    outer, inner = rng.choice([('red', 'white'), ('blue', 'blue'), ('red', 'blue'), ('white', 'white')])
    made.face(ring, outer)
    made.face([(.72 * x, -.01, .72 * z) for x, _, z in ring], inner)
    made.face([(x * 1.02, .03, z * 1.02) for x, _, z in ring], 'metal')


def triangle(made, r):
    "A white triangle with a red edge, one corner up."
    corners = [(r * 1.2 * math.sin(t), 0, r * 1.2 * math.cos(t)) for t in (0, math.tau / 3, -math.tau / 3)]
    made.face(corners, 'red')
    made.face([(.6 * x, -.01, .6 * z) for x, _, z in corners], 'white')


def board(made, rng, w, h, ground):
    "A rectangle with up to three lines of writing; `w` and `h` are half its width and height."
    made.face([(-w, 0, -h), (w, 0, -h), (w, 0, h), (-w, 0, h)], ground)
    ink = 'black' if ground in ('white', 'yellow') else 'white'
    for z in np.linspace(-.6, .6, int(rng.integers(1, 4))) * h:
        made.box((-w * .8, -.015, z - h * .12), (w * rng.uniform(0, .8), -.005, z + h * .12), ink)


def signal_head(rng):
    "A traffic light facing -y with one of its three lights on."
    made, lit = Mesh(), rng.integers(0, 3)
    made.box((-.17, -.1, 0), (.17, .12, .95), 'black')
    made.box((-.26, .1, -.1), (.26, .12, 1.05), 'black')
    for i, look in enumerate(('green light', 'amber', 'red light')):
        made.tube((0, -.1, .18 + .3 * i), (0, -.13, .18 + .3 * i), .11, .11, look if i == lit else 'black', 10)
        made.box((-.13, -.28, .3 + .3 * i), (.13, -.1, .315 + .3 * i), 'black')
    return made


def fence_mesh(rng, length, kind):
    "A fence along +x: 'bars', 'boards', 'wire' on posts, or 'wall bars', a low wall with bars on it."
    made, high, foot = Mesh(), rng.uniform(.9, 1.3), 0.
    if kind == 'wall bars':
        foot = rng.uniform(.4, .7)
        made.box((0, -.15, 0), (length, .15, foot), rng.choice(['brick', 'stone', 'yellow brick', 'concrete']))
        high += .3
    if kind == 'boards':
        high += .5
        boards(made, rng, length, high)
    else:
        step, thin = (.06, .006) if kind == 'wire' else (.13, .012)
        bars(made, length, foot, high, step, thin)
    made.cover = Mesh()
    made.cover.box((0, -.01, 0), (length, .01, high), 'metal')
    for x in np.arange(0, length + .1, 2):
        made.box((x - .04, -.04, 0), (x + .04, .04, high + .05), 'wood' if kind == 'boards' else 'metal')
    return made


def boards(made, rng, length, high):
    "Upright boards, nearly of one height."
    for x in np.arange(0, length - .1, .14):
        made.box((x, -.02, .05), (x + .12, .02, high + rng.uniform(-.02, .02)), 'wood')


def bars(made, length, foot, high, step, thin):
    "Upright bars, one every `step` m and of radius `thin` at the foot, between two rails."
    for x in np.arange(0, length, step):
        made.tube((x, 0, foot + .05), (x, 0, high - .05), thin, .012, 'metal', 4)
    for z in (foot + .1, high - .06):
        made.tube((0, 0, z), (length, 0, z), .025, .025, 'metal', 5)


def wall_mesh(rng, length, high):
    "A garden wall along +x, with a coping."
    made = Mesh()
    made.box((0, -.15, 0), (length, .15, high), rng.choice(['brick', 'stone', 'yellow brick', 'concrete', 'plaster']))
    made.box((0, -.19, high), (length, .19, high + .07), 'concrete')
    return made


# ------------------------------------------------------------------------------------------------- a street
ALONG = -math.pi / 2                                   # The turn that lays the +x of a mesh along the street, ahead.
FURTHEST = 150.                                        # Where the street ends, m ahead of the camera.
TINTS = {WALL: .5, BUILDING: .7, PLANT: .45, GRASS: .4}


class Library:
    "Meshes that many streets share: trees, vehicles, people, posts, signs; they depend on the seed alone."

    def __init__(self, seed):
        self.rng, self.materials = np.random.default_rng([seed, 10 ** 6]), make_materials()
        self.bare = self.many(7, lambda rng: tree_mesh(rng, False), 'bare')
        self.leafy = self.many(6, lambda rng: tree_mesh(rng, True), 'leafy') + self.many(2, conifer_mesh, 'conifer')
        self.bush = self.many(4, bush_mesh, 'bush')
        self.car = self.many(24, car_mesh, 'car', True)
        self.bus, self.truck = self.many(4, bus_mesh, 'bus'), self.many(4, truck_mesh, 'truck')
        self.person = self.many(24, lambda rng: person_mesh(rng, False), 'person', True)
        self.rider = self.many(8, lambda rng: person_mesh(rng, True), 'rider', True)
        # Two-wheelers differ by their paint alone. How many there are decides what the later draws of a seed are.
        self.bicycle = self.many(5, lambda rng: bicycle_mesh(), 'bicycle')
        self.motorcycle = self.many(2, lambda rng: motorcycle_mesh(), 'motorcycle')
        self.sign, self.head = self.many(16, sign_mesh, 'sign'), self.many(4, signal_head, 'head')
        self.lamp = self.many(4, lamp_post, 'lamp')
        self.post = post_mesh(2.6, .035, 'metal').build('post', self.materials)
        self.bollard = [post_mesh(1, .08, k).build(f'bollard {k}', self.materials) for k in ('black', 'metal', 'wood')]
        for mesh in bpy.data.meshes:
            mesh.use_fake_user = True                  # It is kept when no street shows it.

    def many(self, n, make, name, smooth=False):
        "`n` meshes of one kind."
        return [make(self.rng).build(f'{name} {i}', self.materials, smooth) for i in range(n)]


class Street:
    "One street along a gently bending line, and the rules by which things are put there."

    def __init__(self, rng, library):
        self.rng, self.library, self.materials = rng, library, library.materials
        self.bend = rng.normal() * .004 * (rng.uniform() < .6)                # Curvature, 1/m, to the right.
        self.half = rng.uniform(2.9, 5.6)                                     # Half the width of the road.
        self.left_hand = rng.uniform() < .6
        self.walk = rng.uniform(1.6, 4.2, 2)                                  # Width of the left and right pavement.
        self.crossing = rng.uniform(14, 70) if rng.uniform() < .6 else None   # The `s` of a crossing road's middle.
        self.district = DISTRICTS[rng.integers(len(DISTRICTS))]
        self.leafy = rng.choice([0., 0., .4, 1.])                             # Share of the trees in leaf.
        self.side = rng.uniform(2.8, 4.5)                                     # Half the width of the crossing road.

    def at(self, s, d, z=0.):
        "Position, and heading of the street there (clockwise from +y)."
        turn = self.bend * max(s, 0)
        x = self.bend * s * abs(s) / 2 + d * math.cos(turn)
        return Vector((x, s - d * math.sin(turn), z)), turn

    def put(self, mesh, label, s, d, turn=0., z=0., scale=1.):
        "Place a mesh; its +y points ahead along the street before `turn` (clockwise, seen from above)."
        place, heading = self.at(s, d, z)
        return self.place(mesh, label, place, heading + turn, scale)

    def place(self, mesh, label, place=(0, 0, 0), turn=0., scale=1.):
        "An object that shows a mesh, and its cover, with the train id `label` and any colour that suits it."
        made = bpy.data.objects.new(mesh.name, mesh)
        made.location, made.rotation_euler, made.scale = place, (0, 0, -turn), (scale,) * 3
        made.pass_index = label
        made.color = (*any_tint(self.rng, label), 1)
        shown, cover = bpy.context.scene.collection.objects, bpy.data.meshes.get(cover_name(mesh))
        if cover:
            covering = made.copy()
            covering.data = cover
            shown.link(covering)
        shown.link(made)
        return made

    def strip(self, s0, s1, d0, d1, look, label, z=0.):
        "A piece of level ground between two distances and two offsets."
        return self.ribbon(s0, s1, ((d0, z), (d1, z)), look, label)

    def ribbon(self, s0, s1, edges, look, label):
        "A surface from `s0` to `s1` between two edges (d, z), bent with the street."
        made, stops = Mesh(), np.linspace(s0, s1, max(2, int((s1 - s0) / 5) + 1))
        made.loft([[self.at(s, d, z)[0] for d, z in edges] for s in stops], lambda i, j: look, closed=False)
        return self.place(made.build('ground', self.materials), label)

    def gaps(self, margin=0.):
        "The stretches (s0, s1) of the street that no crossing road interrupts."
        if self.crossing is None:
            return [(-12, FURTHEST)]
        return [(-12, self.crossing - self.side - margin), (self.crossing + self.side + margin, FURTHEST)]

    def clear(self, s, distance):
        "Whether `s` is further than `distance` from the middle of the crossing road."
        return self.crossing is None or abs(s - self.crossing) > distance

    def pick(self, meshes):
        "One of them."
        return meshes[self.rng.integers(len(meshes))]

    def any_tree(self):
        "A tree as this street has them: bare, in leaf, or both."
        return self.pick(self.library.leafy if self.rng.uniform() < self.leafy else self.library.bare)


def any_tint(rng, label):
    "A colour (r, g, b), linear, for an object of a class."
    if label in (CAR, TRUCK, BUS, MOTORCYCLE, BICYCLE):
        return paint_colour(rng)
    if label == RIDER and rng.uniform() < .2:
        return np.array([.7, .8, .05])                                        # This one wears high visibility.
    if label in (PERSON, RIDER):
        return cloth_colour(rng)
    spread = TINTS.get(label, .15)
    return np.clip(rng.uniform(1 - spread, 1) * (1 - .15 * rng.uniform(size=3)), 0, 1)


def cloth_colour(rng):
    "How people dress: half of them in greys, the others in muted colours."
    if rng.uniform() < .5:
        return np.clip(rng.uniform(.01, .3) * np.ones(3) + rng.normal(size=3) * .01, 0, 1)
    return np.clip(rng.uniform(.02, .5) + rng.normal(size=3) * .13, .01, .8)


def paint_colour(rng):
    "How cars are painted: mostly black, grey, silver, white; some blue, red, green; few of the rest."
    kind = rng.choice(5, p=[.27, .25, .2, .24, .04])
    if kind == 0:
        return np.full(3, rng.uniform(.005, .03))
    if kind == 1:
        return np.full(3, rng.uniform(.15, .5)) * rng.uniform(.95, 1.05, 3)
    if kind == 2:
        return np.full(3, rng.uniform(.7, .9))
    if kind == 3:
        paints = [(.02, .05, .25), (.35, .01, .015), (.01, .12, .06), (.02, .02, .1), (.25, .03, .04)]
        base = np.array(paints[rng.integers(5)])
    else:
        base = rng.uniform(0, .8, 3)
    return np.clip(base * rng.uniform(.6, 1.6), 0, 1)


def set_grey(made, shade):
    "Give an object a grey instead of its tint."
    made.color = (shade, shade, shade, 1)


# --------------------------------------------------------------------------------------------------- ground
def lay_ground(street):
    "Road, crossing road, pavements, what lies beyond, and markings."
    rng, half, end = street.rng, street.half, FURTHEST
    shade = rng.uniform(.6, 1.8)
    set_grey(street.strip(-12, end, -half, half, 'asphalt', ROAD), shade)
    if street.crossing:
        s0, s1 = street.crossing - street.side, street.crossing + street.side
        for side in (-1, 1):
            made = street.strip(s0, s1, side * half, side * 70, 'asphalt', ROAD)
            set_grey(made, shade * rng.uniform(.8, 1.2))
    paving = rng.choice(['slabs', 'slabs', 'tarmac', 'tarmac', 'setts'])
    for side, wide in zip((-1, 1), street.walk):
        for s0, s1 in street.gaps():
            pavement(street, s0, s1, side, wide, paving)
    street.strip(end, end + 60, -90, 90, 'grass', GRASS, -.05)
    mark(street)


def pavement(street, s0, s1, side, wide, paving):
    "A stretch of kerb and pavement, sometimes with a verge, and the ground behind it."
    rng, half = street.rng, street.half
    street.strip(s0, s1, side * half, side * (half + .15), 'kerb', PAVEMENT, .12)
    street.strip(s0, s1, side * (half + .14), side * (half + wide), paving, PAVEMENT, .121)
    street.ribbon(s0, s1, ((side * half, 0), (side * half, .12)), 'kerb', PAVEMENT)
    if rng.uniform() < .12:
        street.strip(s0, s1, side * (half + .16), side * (half + .15 + wide * .4), 'grass', GRASS, .126)
    look = rng.choice(['grass', 'grass', 'tarmac', 'slabs'])
    behind = street.strip(s0, s1, side * (half + wide), side * 70, look, GRASS, .11)
    if look != 'grass':
        behind.pass_index = PAVEMENT


def mark(street):
    "Everything painted on the road or mended in it."
    rng = street.rng
    centre_line(street)
    for side in (-1, 1):
        edge_line(street, side)
    if rng.uniform() < .35:
        zebra(street)
    if rng.uniform() < .35:
        arrow(street)
    if street.crossing and rng.uniform() < .7:
        stop_line(street)
    for _ in range(int(rng.integers(0, 6))):
        patch(street)


def paint(street, s0, s1, d0, d1):
    "A piece of white line."
    return street.strip(s0, s1, d0, d1, 'line', ROAD, .006)


def centre_line(street):
    "Dashes in the middle of most roads."
    dash, gap = street.rng.uniform(1.5, 4), street.rng.uniform(2, 6)
    if street.rng.uniform() < .85:
        for s in np.arange(-8, FURTHEST, dash + gap):
            if street.clear(s, street.side + 1) and street.clear(s + dash, street.side + 1):
                paint(street, s, s + dash, -.06, .06)


def edge_line(street, side):
    "No line, one or two along a kerb, white or yellow."
    kind = street.rng.choice(['none', 'single', 'double', 'dashed'])
    colour = (1, .75, .15, 1) if street.rng.uniform() < .5 else (1, 1, 1, 1)
    for offset in {'none': [], 'single': [.25], 'double': [.25, .45], 'dashed': [.35]}[kind]:
        for s0, s1 in street.gaps(.5):
            paint(street, s0, s1, side * (street.half - offset), side * (street.half - offset - .09)).color = colour


def zebra(street):
    "A zebra crossing, 2.8 m wide."
    s = street.rng.uniform(7, 35)
    for d in np.arange(-street.half + .3, street.half - .3, 1.1):
        paint(street, s, s + 2.8, d, d + .55)


def arrow(street):
    "A shaft with a bar for its head, in the middle of a lane."
    lane, s = street.rng.choice([-.5, .5]) * street.half, street.rng.uniform(5, 20)
    paint(street, s, s + 2, lane - .08, lane + .08)
    paint(street, s + 1.9, s + 2.2, lane - .35, lane + .35)


def stop_line(street):
    "A line across the own lane before the crossing road."
    s = street.crossing - street.side
    d0, d1 = (-street.half, 0) if street.left_hand else (0, street.half)
    paint(street, s - 2, s - 1.6, d0, d1)


def patch(street):
    "A rectangle of newer or older asphalt."
    rng = street.rng
    s, d = rng.uniform(2, 40), rng.uniform(-street.half, street.half - 1)
    made = street.strip(s, s + rng.uniform(.5, 8), d, d + rng.uniform(.5, 1.2), 'asphalt', ROAD, .003)
    set_grey(made, rng.uniform(.4, 1.6))


# ----------------------------------------------------------------------------------------- rows along a street
def build_rows(street):
    "Both sides of the street: houses with or without gardens, parks, car parks; and its far end."
    rng = street.rng
    for side, wide in zip((-1, 1), street.walk):
        edge = side * (street.half + wide)
        for s, end in street.gaps(rng.uniform(1, 3)):
            setback = rng.choice([0., 0., rng.uniform(1, 6)])
            while s < end - 5:
                s += plot(street, s, end - s, edge, setback, side) + (rng.uniform(1, 4) if rng.uniform() < .15 else 0)
    far_end(street)


def plot(street, s, room, edge, setback, side):
    "The next piece of a row, at most `room` m long; returns its length. `edge` is the `d` where the pavement ends."
    rng = street.rng
    length = min(rng.uniform(5, 18), room)
    kind = rng.choice(['house', 'park', 'car park'], p=[.84, .11, .05])
    if kind == 'house':
        house(street, s, length, edge + side * setback, side)
        if setback > .8:
            garden(street, s, length, edge, setback, side)
    elif kind == 'park':
        length = min(length * rng.uniform(1, 3), room)
        park(street, s, length, edge, side)
    else:
        length = min(rng.uniform(15, 30), room)
        car_park(street, s, length, edge, side)
    return length


def house(street, s, length, d, side):
    "A house whose front looks at the street, sometimes with a sign on it."
    rng = street.rng
    mesh = building_mesh(rng, length, rng.uniform(8, 14), street.district).build('house', street.materials)
    street.put(mesh, BUILDING, s if side < 0 else s + length, d, side * math.pi / 2, .12)
    if rng.uniform() < .3:
        t = s + rng.uniform(.2, .8) * length
        sign = street.pick(street.library.sign)
        street.put(sign, SIGN, t, d - side * .5, rng.choice([0, math.pi]), rng.uniform(2.6, 3.4))


def garden(street, s, length, edge, deep, side):
    "A front garden, `deep` m, with bushes behind a hedge, a fence or a wall."
    rng, kind = street.rng, street.rng.choice(['hedge', 'bars', 'boards', 'wall', 'wall bars', 'none'])
    if kind != 'none':
        border(street, kind, s, length, edge, side, hedge=(.8, 2), wall=(.5, 1.8))
    for _ in range(int(rng.integers(0, 4))):
        street.put(street.pick(street.library.bush), PLANT, s + rng.uniform(0, length),
                   edge + side * rng.uniform(.6, max(deep, .7)), 0, .1, rng.uniform(.5, 1))


def border(street, kind, s, length, edge, side, hedge, wall):
    "A hedge, wall or fence along the pavement; `hedge` and `wall` are the ranges of their heights."
    rng = street.rng
    if kind == 'hedge':
        made, label, back = hedge_mesh(rng, length, rng.uniform(*hedge)), PLANT, .4
    elif kind == 'wall':
        made, label, back = wall_mesh(rng, length, rng.uniform(*wall)), WALL, .2
    else:
        made, label, back = fence_mesh(rng, length, kind), FENCE, .2
    street.put(made.build('border', street.materials), label, s, edge + side * back, ALONG, .1)


def park(street, s, length, edge, side):
    "Grass, 40 m deep, with trees and bushes behind a border."
    rng = street.rng
    street.strip(s, s + length, edge, edge + side * 40, 'grass', GRASS, .125)
    for _ in range(int(length / 1.6)):
        street.put(street.any_tree(), PLANT, s + rng.uniform(0, length), edge + side * rng.uniform(2, 35),
                   rng.uniform(0, 6), .1, rng.uniform(.7, 1.4))
    for _ in range(int(length / 3)):
        mesh = street.pick(street.library.bush)
        street.put(mesh, PLANT, s + rng.uniform(0, length), edge + side * rng.uniform(1, 25), 0, .1)
    kind = rng.choice(['bars', 'wall bars', 'wall', 'hedge', 'wire'])
    border(street, kind, s, length, edge, side, hedge=(.8, 2.2), wall=(.6, 2.2))


def car_park(street, s, length, edge, side):
    "Asphalt, 30 m deep, with three rows of cars at right angles to the street."
    street.strip(s, s + length, edge, edge + side * 30, 'asphalt', ROAD, .125)
    for row in (3, 12, 18):
        for t in np.arange(s + 1.5, s + length - 1, 2.6):
            if street.rng.uniform() < .7:
                street.put(street.pick(street.library.car), CAR, t, edge + side * row, math.pi / 2, .125)


def far_end(street):
    "Houses and trees that close the view, and trees behind the rows."
    rng = street.rng
    for d in np.arange(-60, 60, 11):
        if rng.uniform() < .5:
            mesh = building_mesh(rng, 11, 9, street.district).build('far', street.materials)
            street.put(mesh, BUILDING, FURTHEST + rng.uniform(0, 15), d)
        street.put(street.any_tree(), PLANT, FURTHEST - 3 + rng.uniform(0, 10), d, scale=rng.uniform(1, 1.8))
    for _ in range(30):
        street.put(street.any_tree(), PLANT, rng.uniform(10, FURTHEST),
                   rng.choice([-1, 1]) * rng.uniform(street.half + 22, 60), 0, .1, rng.uniform(1, 2))


# ------------------------------------------------------------------------------------------ on the pavement
def furnish(street):
    "What stands on the pavements: trees, lamps, signs, lights, bollards, railings, parked two-wheelers."
    rng = street.rng
    planted, step, railed = rng.uniform() < .5, rng.uniform(18, 35), rng.uniform() < .5
    for side, wide in zip((-1, 1), street.walk):
        kerb, wall = side * (street.half + .45), side * (street.half + wide - .4)
        if planted and wide > 2.2:
            tree_row(street, kerb + side * .4)
        lamp_row(street, kerb, side, step)
        for _ in range(int(rng.integers(2, 8))):
            s = 4 + 60 * rng.uniform() ** 1.5
            if free(street, s):
                sign_post(street, s, rng.choice([kerb, kerb, wall]))
        if street.crossing and rng.uniform() < .6:
            signals(street, kerb)
        if rng.uniform() < .3:
            bollard_row(street, kerb)
        if railed and rng.uniform() < .6:
            railing(street, kerb - side * .15)
        if rng.uniform() < .6:
            parked_two_wheelers(street, kerb, wall)


def free(street, s):
    "Whether something can stand on the pavement at `s`: not on the crossing road."
    return street.clear(s, street.side + 1.5)


def tree_row(street, d):
    "Trees at equal distances."
    rng = street.rng
    for s in np.arange(rng.uniform(4, 12), 120, rng.uniform(7, 16)):
        if free(street, s):
            street.put(street.any_tree(), PLANT, s, d, rng.uniform(0, 6), .1, rng.uniform(.7, 1.1))


def lamp_row(street, d, side, step):
    "Lamps every `step` m, their arms over the road."
    for s in np.arange(street.rng.uniform(3, 20), 140, step):
        if free(street, s):
            street.put(street.pick(street.library.lamp), POLE, s, d, 0 if side < 0 else math.pi, .1)


def sign_post(street, s, d):
    "A post with one or two signs that face along the street."
    rng = street.rng
    high = rng.uniform(2, 2.8)
    street.put(street.library.post, POLE, s, d, 0, .1)
    for z in (high, high - .75)[:1 + (rng.uniform() < .3)]:
        turn = rng.choice([0, math.pi]) + rng.normal() * .15
        made = street.put(street.pick(street.library.sign), SIGN, s, d, turn, z)
        made.location += Vector((0, -.07 if abs(turn) < 1 else .07, 0))       # It hangs before its post.


def signals(street, d):
    "A post with a traffic light on each side of the crossing road."
    rng = street.rng
    for s in (street.crossing - street.side - 1.2, street.crossing + street.side + 1.2):
        street.put(street.library.post, POLE, s, d, 0, .1)
        z = rng.choice([2.3, 2.5])
        street.put(street.pick(street.library.head), LIGHT, s, d, rng.choice([0, 0, math.pi, math.pi / 2]), z)


def bollard_row(street, d):
    "Bollards of one kind at equal distances."
    rng = street.rng
    start, mesh = rng.uniform(3, 30), street.pick(street.library.bollard)
    for s in np.arange(start, start + rng.uniform(5, 25), rng.uniform(1.3, 2.5)):
        if free(street, s):
            street.put(mesh, POLE, s, d, 0, .1, rng.uniform(.9, 1.05))


def railing(street, d):
    "A railing along the kerb, before the crossing road."
    rng = street.rng
    s0, s1 = street.gaps(1)[0]
    start = rng.uniform(max(s0, 2), max(s1 - 12, 3))
    made = fence_mesh(rng, min(rng.uniform(6, 25), max(s1 - start, 2)), rng.choice(['bars', 'wire']))
    street.put(made.build('railing', street.materials), FENCE, start, d, ALONG, .1)


def parked_two_wheelers(street, kerb, wall):
    "One to eight of them, most of them bicycles."
    rng, library = street.rng, street.library
    for _ in range(int(rng.integers(1, 9))):
        s = rng.uniform(3, 40)
        meshes, label = (library.bicycle, BICYCLE) if rng.uniform() < .9 else (library.motorcycle, MOTORCYCLE)
        mesh, d = street.pick(meshes), rng.choice([wall, kerb])
        street.put(mesh, label, s, d, rng.choice([0, math.pi]) + rng.normal() * .3, .12)


# -------------------------------------------------------------------------------------------------- traffic
def populate(street):
    "Moving and parked vehicles, people, riders."
    rng = street.rng
    own = -1 if street.left_hand else 1
    parked = [bool(v) for v in rng.uniform(size=2) < .5]                      # Whether cars are parked left, right.
    busy = rng.uniform(.1, 1)
    for lane, way in ((own, 1), (-own, -1)):
        moving(street, lane, way, parked[int(lane > 0)], busy)
    for side, row in zip((-1, 1), parked):
        if row and street.half > 3.4:
            parked_cars(street, side)
    if street.crossing and rng.uniform() < .5:
        crossing_car(street)
    for _ in range(int(rng.choice([4, 10, 18, 30]) * rng.uniform(.5, 1.2))):
        walkers(street)
    if rng.uniform() < .35:
        crossing_people(street)
    if rng.uniform() < .65:
        cyclists(street, own)


def moving(street, lane, way, parked, busy):
    "Vehicles in the left (-1) or right (1) lane, coming (`way` -1) or going (1); `busy` is the chance to fill a place."
    rng, half = street.rng, street.half
    d = lane * (half * .5 - (.5 if parked and half > 4 else 0))
    s = rng.uniform(6, 25) if way > 0 else rng.uniform(3, 20)
    while s < 130:
        if rng.uniform() < busy and street.clear(s, 2):
            kind = rng.choice(['car', 'bus', 'truck', 'bicycle', 'motorcycle'], p=[.78, .05, .05, .1, .02])
            vehicle(street, kind, s, d + rng.normal() * .2, 0 if way > 0 else math.pi)
        s += rng.uniform(7, 30)


def vehicle(street, kind, s, d, turn):
    "A car, bus, truck, bicycle or motorcycle, the last two with a rider."
    library, rng = street.library, street.rng
    meshes, label = {'car': (library.car, CAR), 'bus': (library.bus, BUS), 'truck': (library.truck, TRUCK),
                     'bicycle': (library.bicycle, BICYCLE), 'motorcycle': (library.motorcycle, MOTORCYCLE)}[kind]
    if label in (BICYCLE, MOTORCYCLE):
        turn += rng.normal() * .08
        street.put(street.pick(meshes), label, s, d, turn)
        street.put(street.pick(library.rider), RIDER, s, d, turn)
    else:
        street.put(street.pick(meshes), label, s, d, turn + rng.normal() * .02)


def parked_cars(street, side):
    "A row of cars along a kerb, away from the crossing road."
    rng = street.rng
    for s in np.arange(rng.uniform(1, 10), rng.uniform(20, 110), rng.uniform(5.2, 7)):
        if rng.uniform() < .8 and street.clear(s, street.side + 4):
            mesh, d = street.pick(street.library.car), side * (street.half - 1.05 + rng.normal() * .08)
            street.put(mesh, CAR, s, d, rng.choice([0, math.pi], p=[.8, .2]) + rng.normal() * .02)


def crossing_car(street):
    "A car on the crossing road."
    rng = street.rng
    s = street.crossing + rng.choice([-1, 1]) * street.side * .5
    vehicle(street, 'car', s, rng.uniform(-12, 12), math.pi / 2 * rng.choice([-1, 1]))


def walkers(street):
    "One person on a pavement, or two side by side."
    rng, side = street.rng, street.rng.integers(2)
    s = 2.5 + 70 * rng.uniform() ** 1.6
    d = (side * 2 - 1) * (street.half + rng.uniform(.4, street.walk[side] - .3))
    for k in range(1 + (rng.uniform() < .25)):
        mesh = street.pick(street.library.person)
        street.put(mesh, PERSON, s + .1 * k, d + .55 * k, rng.choice([0, math.pi]) + rng.normal() * .5, .12)


def crossing_people(street):
    "One to three people who cross the road."
    rng, half = street.rng, street.half
    for _ in range(int(rng.integers(1, 4))):
        mesh = street.pick(street.library.person)
        street.put(mesh, PERSON, rng.uniform(9, 45), rng.uniform(-half, half), rng.choice([-1, 1]) * math.pi / 2)


def cyclists(street, own):
    "One to four cyclists at the edges of the road; `own` is the side of those who go ahead."
    rng = street.rng
    for _ in range(int(rng.integers(1, 5))):
        lane = rng.choice([-1, 1])
        s, d = rng.uniform(4, 35), lane * (street.half - rng.uniform(.5, 1.2))
        vehicle(street, 'bicycle', s, d, 0 if lane == own else math.pi)


# ------------------------------------------------------------------------------------------ light and camera
def light_up(rng, world):
    "A clear, veiled or overcast sky, the sun in any direction."
    tree = world.node_tree
    tree.nodes.clear()
    cover = rng.choice([0, 1, 2], p=[.35, .35, .3])
    blue, cloudy = open_sky(rng, tree, cover), clouds(rng, tree, cover)
    white = rng.uniform(1.2, 3.5)
    colour = (white * rng.uniform(.9, 1), white * .97, white, 1)
    if cover == 2:                                                            # Darker clouds take the place of the blue.
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


# ---------------------------------------------------------------------------------------------- command line
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
