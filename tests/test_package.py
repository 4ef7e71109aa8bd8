"""The package as it is installed: metadata, imports, and what it must not need."""
import ast
import configparser
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted({*(ROOT / "pinmem").rglob("*.py")} - {ROOT / "pinmem" / f"{stem}.py" for stem in ("__init__", "__main__", "_modidx")})


def module_name(path):
    "`streets.noise` for pinmem/streets/noise.py, `streets` for pinmem/streets/__init__.py."
    parts = path.relative_to(ROOT / "pinmem").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def numbers():
    "Module -> its place in the reading order: rooms before the door of their sub-package."
    place = {p.stem.split("_", 1)[1]: (int(p.stem[:2]), 99) for p in (ROOT / "nbs").glob("[0-9]*.ipynb")}
    for p in (ROOT / "nbs").glob("*/[0-9]*.ipynb"):
        door = p.parent.name
        place[f"{door}.{p.stem.split('_', 1)[1]}"] = place[door][0], int(p.stem[:2])
    return place


def imports(path):
    "Full names of the modules that a file imports, at the top or inside a function."
    home = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import): yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = home[:len(home) - node.level + 1] if node.level else ()
            yield ".".join([*base, node.module] if node.module else base)


def test_metadata_is_that_of_settings():
    ini = configparser.ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini")
    assert importlib.metadata.version("pinmem") == ini["DEFAULT"]["version"]
    assert importlib.metadata.metadata("pinmem")["Summary"] == ini["DEFAULT"]["description"]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_library_needs_no_notebook_tools(path):
    allowed = {"IPython"} if path.stem in ("plots", "embeddings") else set()
    found = {name.split(".")[0] for name in imports(path)} & {"nbdev", "fastcore", "execnb", "IPython"}
    assert found <= allowed


def test_import_direction_is_the_number_order():
    number = numbers()
    for path in MODULES:
        if path.stem == "cli": continue  # the command stands on the roof
        for name in imports(path):
            this, other = module_name(path), name.removeprefix("pinmem.")
            if name != other and other in number:
                assert number[other] < number[this], f"{this} imports {other}"
            assert other != "cli", f"{this} imports cli"


def test_every_module_has_its_notebook():
    assert {module_name(p) for p in MODULES} <= set(numbers())


def definitions(path):
    "Public functions, classes and constants that a file defines; what it only imports does not count."
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): yield node.name
        for target in getattr(node, "targets", []):
            yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))


def test_no_public_name_has_two_meanings():
    found = {}
    for path in sorted((ROOT / "pinmem").rglob("*.py")):
        if path.stem == "_modidx": continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
        assert len(defined) == len(set(defined)), f"{path.name} defines one name twice"
        for name in set(definitions(path)):
            if not name.startswith("_"): found.setdefault(name, []).append(str(path.relative_to(ROOT)))
    twice = [f"{name} ({', '.join(paths)})" for name, paths in sorted(found.items()) if len(paths) > 1]
    assert not twice, f"defined in two modules: {'; '.join(twice)}; rename one of each"


PACKAGES = {"PIL": "pillow", "sklearn": "scikit-learn"}  # where a module is called otherwise than its package
BROUGHT = {"IPython": "ipywidgets", "traitlets": "ipywidgets", "huggingface_hub": "timm"}  # always there with these


def test_imports_stand_in_requirements():
    ini = configparser.ConfigParser(delimiters=["="])
    ini.read(ROOT / "settings.ini")
    wanted = " ".join(ini["DEFAULT"][name] for name in ("requirements", *(f"{extra}_requirements" for extra in ("app", "export", "video", "cluster")))).split()
    named = {re.split("[<>=!~]", word)[0].replace("_", "-").lower() for word in wanted}
    used = {}
    for path in sorted((ROOT / "pinmem").rglob("*.py")):
        for name in imports(path):
            top = name.split(".")[0]
            if top and top not in sys.stdlib_module_names and top != "pinmem": used.setdefault(top, path.name)
    package = lambda top: BROUGHT.get(top) or PACKAGES.get(top, top).replace("_", "-").lower()
    missing = [f"{top} (in {file})" for top, file in used.items() if package(top) not in named]
    assert not missing, f"imported, but not in the requirements of settings.ini: {', '.join(missing)}"


def test_lines_and_functions_are_short():
    "No line over 120 characters, no function over 30 lines."
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        wide = [n for n, line in enumerate(text.splitlines(), 1) if len(line) > 120 and not line.startswith("__all__")]
        assert not wide, f"{path.name}: lines {wide} are over 120 characters"
        long = [node.name for node in ast.walk(ast.parse(text))
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno - node.lineno >= 30]
        assert not long, f"{path.name}: {', '.join(long)} has more than 30 lines"


def test_tests_of_one_file_run_in_one_process(request):
    "What a file prepares once is prepared once; pytest 9.2 no longer reads the names that xdist groups by."
    if request.config.getoption("loadgroup", False): assert request.node.nodeid.endswith("@test_package")


def readme(): return (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_is_read_in_minutes():
    "At most 700 words of prose; code, tables, tags and the targets of links do not count."
    prose = re.sub(r"```.*?```", "", readme(), flags=re.S)
    prose = re.sub(r"<[^>]*>|(?<=])\([^)]*\)|^\|.*$", "", prose, flags=re.M)
    words = re.findall(r"\w[\w'’.+-]*", prose)
    assert 200 < len(words) <= 700, f"README has {len(words)} words of prose; expected at most 700, move something to a notebook"


def test_links_of_readme_lead_somewhere():
    "Relative links and pictures exist, and where a link names a heading of a notebook, the notebook has it."
    links = re.findall(r']\(([^)]*)\)|(?:src|srcset)="([^"]*)"', readme())
    links = [a or b for a, b in links if not (a or b).startswith("http")]
    assert len(links) > 10
    for link in links:
        file, _, heading = link.partition("#")
        assert (ROOT / file).is_file(), link
        if heading: assert re.search(rf'"#+ {heading.replace("-", " ")}(\\n)?"', (ROOT / file).read_text(encoding="utf-8")), link
