"""What moves: cars, buses, trucks, two-wheelers, people. Every one faces +y."""
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from mathutils import Vector

from shapes import Mesh, around


# ------------------------------------------------------------------------------------------------ vehicles
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
    "Cross-sections from nose to tail: share of the length, of the width, height of the belt, and of the roof or None."
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
        "Rows count from the nose, columns around the car: 3 and 7 are side windows, 4 to 6 the roof, 11 the floor."
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
            y = end * length / 2
            made.box((-wide + .15, y - .02, low - .2), (wide - .15, y + .02, top), 'glass')
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


# -------------------------------------------------------------------------------------------------- people
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
    lower = rng.choice(['trouser', 'cloth'], p=[.85, .15])
    return Pose(riding, scale, stride, root, shoulder, lower, rng.uniform(.85, 1.2))


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
