"""One street: a line that bends, the shared meshes, the train id of every object, and the ground."""
import math

import bpy
import numpy as np
from mathutils import Vector

from shapes import Mesh, cover_name, make_materials
from standing import DISTRICTS, bush_mesh, conifer_mesh, lamp_post, post_mesh, sign_mesh, signal_head, tree_mesh
from movers import bicycle_mesh, bus_mesh, car_mesh, motorcycle_mesh, person_mesh, truck_mesh

# The train ids of Cityscapes.
ROAD, PAVEMENT, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, PLANT, GRASS, SKY = range(11)
PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = range(11, 19)


# ------------------------------------------------------------------------------------------------ a street
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


# -------------------------------------------------------------------------------------------------- ground
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
