"""What stands in a street: plants, houses, lamps, signs, fences. Every function returns a Mesh of its own."""
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from mathutils import Vector

from shapes import Mesh, around


# -------------------------------------------------------------------------------------------------- plants
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
    "A branch along the unit vector `way` and what forks from it, `depth` times; returns the points that bear leaves."
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
    for offset, a, b in zip(*rng.normal(size=(3, count, 3))):
        p, a, b = Vector(centre) + Vector(offset * spread), Vector(a).normalized() * size, Vector(b).normalized() * size
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


# ----------------------------------------------------------------------------------------------- buildings
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
        ridge = (wide / 2, -.3, top + rise + .1), (wide / 2, deep, top + rise)
        made.face(((x, -.3, top - .1), *ridge, (x, deep, top)), tile)


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


# ---------------------------------------------------------------------------------------- street furniture
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
