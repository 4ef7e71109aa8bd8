"""What notebooks wait for and what no notebook changes: slow imports, and the banks of trees and houses that streets are made of."""
import ipywidgets
import matplotlib.pyplot
import nbdev.test
import scipy.stats
import sklearn.manifold

from pinmem.encoders import load_timm
from pinmem.streets import STYLES, draw

load_timm()

for name in STYLES:
    for index in range(2): draw(name, 0, index, (128, 64))
