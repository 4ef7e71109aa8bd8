"""What stands and moves along a street: rows of houses, the pavements, the traffic."""
import math

import numpy as np
from mathutils import Vector

from standing import building_mesh, fence_mesh, hedge_mesh, wall_mesh
from street import (ALONG, BICYCLE, BUILDING, BUS, CAR, FENCE, FURTHEST, GRASS, LIGHT, MOTORCYCLE, PERSON, PLANT,
                    POLE, RIDER, ROAD, SIGN, TRUCK, WALL)


# ------------------------------------------------------------------------------------- rows along a street
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


# ----------------------------------------------------------------------------------------- on the pavement
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


# ------------------------------------------------------------------------------------------------- traffic
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
