"""Generate pinmem/*.py, README.md and clean notebooks from nbs/; without --write, fail if anything changed."""
import configparser
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def notebooks():
    "The notebooks of every room."
    return sorted([*(ROOT / "nbs").glob("*.ipynb"), *(ROOT / "nbs" / "streets").glob("*.ipynb")])


def modules():
    "What they generate: all of the package but its own __init__.py and __main__.py."
    return sorted({*(ROOT / "pinmem").rglob("*.py")} - {ROOT / "pinmem" / f"__{name}__.py" for name in ("init", "main")})


def address():
    "Where the project can be fetched from: `git_url` of settings.ini, if that is on GitHub; else nothing is fetched anywhere."
    settings = configparser.ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    url = settings["DEFAULT"]["git_url"]
    return url if url.startswith("https://github.com/") else ""


HERE = """#| hide
import importlib.util
if importlib.util.find_spec("pinmem") is None:
    raise ImportError("pinmem is not installed here; in the folder of the project run: pip install -e .")"""
FETCH = """#| hide
# in Colab: fetch the project once
import importlib.util
if importlib.util.find_spec("pinmem") is None:
    get_ipython().system("git clone -q {url} && pip install -q ./{name}")
    get_ipython().run_line_magic("cd", "{name}/{folder}")"""
BADGE = "[![Open in Colab]"


def set_head(notebook, path, url):
    "A badge for Colab under the summary and a first cell that fetches the project, both only where there is an address."
    if path == "nbs/index.ipynb": return
    lines = "".join(notebook["cells"][0]["source"]).split("\n")
    if (at := next((i for i, line in enumerate(lines) if line.startswith(BADGE)), None)) is not None: del lines[at:at + 2]
    if url:
        end = next(i for i, line in enumerate(lines) if i > 1 and not line.startswith(">"))
        picture, there = "../" * (path.count("/") - 1) + "images/colab.svg", url.replace("github.com", "colab.research.google.com/github")
        lines[end:end] = ["", f"{BADGE}({picture})]({there}/blob/main/{path})"]
    notebook["cells"][0]["source"] = "\n".join(lines).rstrip().splitlines(keepends=True)
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    text = FETCH.format(url=url, name=url.rsplit("/", 1)[-1], folder=path.rsplit("/", 1)[0]) if url else HERE
    first["source"] = text.splitlines(keepends=True)


def generate():
    "Export every module anew, write README.md from index.ipynb, strip what does not belong into a notebook."
    os.chdir(ROOT)
    url = address()
    for path in modules():
        path.unlink()
    subprocess.run([BIN / "nbdev_export"], check=True)
    subprocess.run([BIN / "nbdev_clean"], check=True)
    for path in notebooks():
        notebook = json.loads(path.read_text(encoding="utf-8"))
        notebook["metadata"].pop("widgets", None)
        set_head(notebook, str(path.relative_to(ROOT)), url)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_readme(ROOT / "nbs" / "index.ipynb", ROOT / "README.md")


def from_root(markdown):
    "The same text, where links that were relative to nbs/ are relative to the project."
    return re.sub(r'(]\(|(?:src|srcset)=")(?![a-z]+:|#)', r"\1nbs/", markdown).replace("nbs/../", "")


def write_readme(index, readme):
    "README.md is index.ipynb as Markdown; of a cell with `#| echo: false` it shows only what the cell has made."
    import nbformat
    notebook = nbformat.read(index, as_version=4)
    parts = []
    for cell in notebook.cells:
        if cell.source.startswith("#| hide"):
            continue
        if cell.cell_type == "markdown":
            parts.append(from_root(cell.source))
        elif cell.cell_type == "code":
            if not cell.source.startswith("#| echo: false"):
                parts.append(f"```python\n{cell.source}\n```")
            parts += [from_root(o.data["text/markdown"]) for o in cell.outputs if "text/markdown" in o.get("data", {})]
            text = "".join(o.get("text", "") for o in cell.outputs if o.output_type == "stream")
            if text:
                parts.append(f"```text\n{text.rstrip()}\n```")
    readme.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def contents():
    "Every watched file with its bytes."
    files = [*notebooks(), *modules(), ROOT / "pinmem" / "__init__.py", ROOT / "README.md"]
    return {str(f.relative_to(ROOT)): f.read_bytes() for f in files if f.exists()}


if __name__ == "__main__":
    if "--write" in sys.argv:
        generate()
        sys.exit()
    before = contents()
    generate()
    after = contents()
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        sys.exit(f"out of step with the notebooks: {', '.join(changed)}; they are generated anew now, look at the "
                 f"difference and commit it")
    print("pinmem/, README.md and the notebooks are in step")
