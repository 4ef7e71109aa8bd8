"""Every notebook runs from top to bottom, in its own process, and is stored in the form a reader needs."""
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

NBS = sorted((Path(__file__).parent.parent / "nbs").glob("*.ipynb"))
RUN = """
import sys, os
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb
os.environ['IN_TEST'] = '1'
ok, seconds = test_nb(Path(sys.argv[1]), basepath=get_config().config_path, skip_flags=get_config().tst_flags.split())
sys.exit(not ok)
"""


@pytest.mark.parametrize("path", NBS, ids=lambda p: p.stem)
def test_runs(path):
    done = subprocess.run([sys.executable, "-c", RUN, str(path)], cwd=path.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


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
