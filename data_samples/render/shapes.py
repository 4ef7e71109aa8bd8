"""How things look and what shape they have: materials made of shader nodes, and meshes made of corners and faces."""
import math
from itertools import pairwise

import bpy
import bmesh
import numpy as np
from mathutils import Vector


# --------------------------------------------------------------------------------------------------- nodes
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


# ----------------------------------------------------------------------------------------------- materials
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
    "Bricks of `wide` x `high` m in the plane of `flat`, two colours and a mortar; `bias` -1..1 prefers one colour."
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


# -------------------------------------------------------------------------------------------------- meshes
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
