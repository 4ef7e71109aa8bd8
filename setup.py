"""Packaging: every fact is read from settings.ini, so that it is written once."""
import configparser
from pathlib import Path

from setuptools import setup

here = Path(__file__).parent
ini = configparser.ConfigParser(delimiters=["="])
ini.read(here / "settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
EXTRAS = "book", "export", "video", "cluster"  # whoever develops has them all

setup(
    name=cfg["lib_name"], version=cfg["version"], description=cfg["description"],
    author=cfg["author"], keywords=cfg["keywords"].split(),
    license="Apache-2.0", python_requires=f">={cfg['min_python']}",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    packages=["pinmem", "pinmem.streets", "pinmem.rendered"],           # the rendered streets travel with it
    package_dir={"pinmem": "pinmem", "pinmem.rendered": "data_samples/rendered"},
    package_data={"pinmem.rendered": ["images/*.jpg", "labels/*.png"]},
    install_requires=cfg["requirements"].split(),
    extras_require={"dev": " ".join(cfg[f"{name}_requirements"] for name in ("dev", *EXTRAS)).split(),
                    **{name: cfg[f"{name}_requirements"].split() for name in (*EXTRAS, "app")}},
    entry_points={"console_scripts": [cfg["console_scripts"]],
                  "nbdev": ["pinmem=pinmem._modidx:d"]},
)
