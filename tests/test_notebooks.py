"""Every notebook runs from top to bottom, in its own process, and is stored in the form a reader needs."""
import json
import re
from types import SimpleNamespace

import pytest

from helpers import ROOT, notebook_processes, run_notebook
from in_step import address, set_head

NBS = sorted([*(ROOT / "nbs").glob("*.ipynb"), *(ROOT / "nbs" / "streets").glob("*.ipynb")])


@pytest.fixture(scope="module")
def processes(): return notebook_processes()


@pytest.mark.parametrize("path", NBS, ids=lambda p: p.stem)
def test_runs(path, processes, tmp_path):
    process = processes.Process(target=run_notebook, args=(path, tmp_path / "output"))
    process.start()
    process.join()
    assert process.exitcode == 0, (tmp_path / "output").read_text()[-6000:]


@pytest.mark.parametrize("path", NBS, ids=lambda p: p.stem)
def test_stored_form(path):
    raw = path.read_text(encoding="utf-8")
    notebook = json.loads(raw)
    assert len(raw) < 1_000_000, "over 1 MB"
    assert "widgets" not in notebook["metadata"], "holds widget state"
    assert not re.search(r"/(?:work|root|tmp|home|Users)/[A-Za-z0-9._-]+", raw), "holds a path of one machine"
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert all(c.get("execution_count") is None for c in code), "holds execution counts"
    outputs = [o for c in code for o in c.get("outputs", [])]
    assert not [o for o in outputs if o["output_type"] == "error"], "a stored output is an error"
    assert outputs or path.stem == "index", "no output is stored"
    slow = [c for c in code if "#| slow" in "".join(c["source"]) and re.search(r"print\(|plt\.", "".join(c["source"]))]
    assert all(c["outputs"] for c in slow), "a slow cell was not run: its output is not stored"


@pytest.mark.parametrize("path", NBS, ids=lambda p: p.stem)
def test_a_widget_has_a_picture_before_it(path):
    "A reader on the web sees no widget, so a static picture of it is stored above."
    pictures = 0
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        kinds = {kind for o in cell.get("outputs", []) for kind in o.get("data", {})}
        if "application/vnd.jupyter.widget-view+json" in kinds: assert pictures, cell["source"]
        pictures += bool(kinds & {"image/png", "image/jpeg"})


@pytest.mark.parametrize("path", ["nbs/11_memory_init.ipynb", "nbs/streets/00_styles.ipynb"])
def test_fetches_the_project_only_where_it_has_an_address(path):
    "The badge leads to this very notebook; without an address nothing is fetched, and the first cell says what to do."
    cells = (notebook := json.loads((ROOT / path).read_text(encoding="utf-8")))["cells"]
    first, without = next(c for c in cells if c["cell_type"] == "code"), json.dumps(notebook)
    assert address() == "" and "colab" not in without.lower()                # as long as the project has none
    assert "pip install -e ." in "".join(first["source"])
    set_head(notebook, path, "https://github.com/someone/project")
    badge = re.search(r"\[!\[.*]\((.*)\)]\((.*)\)", "".join(cells[0]["source"]))
    assert ((ROOT / path).parent / badge[1]).is_file()
    assert badge[2] == f"https://colab.research.google.com/github/someone/project/blob/main/{path}"
    run = []
    shell = SimpleNamespace(system=run.append, run_line_magic=lambda *a: run.append(a))
    there = SimpleNamespace(find_spec=lambda name: None)
    exec("".join(first["source"]).replace("import importlib.util", ""),
         {"get_ipython": lambda: shell, "importlib": SimpleNamespace(util=there)})
    assert run == ["git clone -q https://github.com/someone/project && pip install -q ./project",
                   ("cd", f"project/{path.rsplit('/', 1)[0]}")]
    set_head(notebook, path, "")
    assert json.dumps(notebook) == without
