"""The package as it is installed: metadata, imports, and what it must not need."""
import ast
import configparser
import importlib.metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(p for p in (ROOT / "pinmem").glob("*.py") if p.stem not in ("__init__", "_modidx"))


def imports(path):
    "Names of the modules that a file imports, at the top or inside a function."
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom): yield "." * node.level + (node.module or "")


def test_metadata_is_that_of_settings():
    ini = configparser.ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini")
    assert importlib.metadata.version("pinmem") == ini["DEFAULT"]["version"]
    assert importlib.metadata.metadata("pinmem")["Summary"] == ini["DEFAULT"]["description"]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_library_needs_no_notebook_tools(path):
    allowed = {"IPython"} if path.stem in ("plots", "embeddings") else set()
    found = {name.split(".")[0] for name in imports(path)} & {"nbdev", "fastcore", "execnb", "IPython"}
    assert found <= allowed


def test_import_direction_is_the_number_order():
    number = {p.stem.split("_", 1)[1]: int(p.stem[:2]) for p in (ROOT / "nbs").glob("[0-9]*.ipynb")}
    for path in MODULES:
        if path.stem == "cli": continue  # the command stands on the roof
        for name in imports(path):
            other = name.lstrip(".").removeprefix("pinmem.")
            if name.startswith(".") and other in number:
                assert number[other] < number[path.stem], f"{path.stem} imports {other}"
            assert other != "cli", f"{path.stem} imports cli"


def test_every_module_has_its_notebook():
    names = {p.stem.split("_", 1)[1] for p in (ROOT / "nbs").glob("[0-9]*.ipynb")}
    assert {p.stem for p in MODULES} <= names
