"""For MkDocs: notebooks as Markdown with their stored outputs, a page for each module, the tracks, the navigation."""
import base64
import importlib.util
import json
import re
import sys
from functools import partial
from os.path import normpath, relpath
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests"))
from in_step import address, notebooks  # noqa: E402
from pinmem.idea import AIMS, TRACKS, reading_minutes  # noqa: E402

DIRECTIVE = re.compile(r"^#\| ?(\w+):? *(.*)\n?", re.M)
WIDGET = "application/vnd.jupyter.widget-view+json"


def fence(text, kind):
    "A block of code, behind more backticks than any inside it."
    wall = "`" * max([3, *(1 + len(found) for found in re.findall("`{3,}", text))])
    return f"{wall}{kind}\n{text}\n{wall}"


PICTURE = re.compile(r'<picture>\s*<source media="[^"]*dark[^"]*" srcset="([^"]*)">\s*'
                     r'<img src="([^"]*)"(.*?)>\s*</picture>')


def to_page(target):
    "A link to a notebook leads to its page."
    return re.sub(r"\.ipynb(?=#|$)", ".md", target)


def prose(text, follow=to_page):
    "A Markdown cell with its links followed; as in Jupyter, lists and equations need not wait for an empty line."
    parts = re.split(r"(^```.*?^```)", text, flags=re.M | re.S)
    for i in range(0, len(parts), 2):
        part = re.sub(r"]\((?!\w+:|#)([^)\s]+)\)", lambda found: f"]({follow(found[1])})", parts[i])
        part = re.sub(r'(href="(?!\w+:)[^"#]*)\.ipynb', r"\1.html", part)
        part = PICTURE.sub(r'<img src="\1#only-dark"\3><img src="\2#only-light"\3>', part)
        part = part.replace("<details>", "<details markdown>").replace("<summary>", '<summary markdown="span">')
        part = re.sub(r"^\$\$.*?\$\$", r"\n\g<0>\n", part, flags=re.M | re.S)
        part = re.sub(r"^( +)\$(\$.*?\$)\$", r"\1\2", part, flags=re.M | re.S)  # inside an item: in its line
        parts[i] = re.sub(r"^(?![ #|>]|[-*] |\d+\. )(.+)\n(?=[-*] |1\. )", r"\1\n\n", part, flags=re.M)
    return "".join(parts)


def shown(output, picture, follow):
    "A stored output; picture(kind, bytes) puts a picture beside the page and returns where."
    data = {"text/plain": output.get("text", "")} | output.get("data", {})
    for kind in ("png", "jpeg"):
        if found := data.get(f"image/{kind}"):
            return f"![What the cell above draws]({picture(kind, base64.b64decode(found))})"
    if "text/markdown" in data: return prose("".join(data["text/markdown"]), follow)
    if WIDGET in data: return "*Here the notebook shows a widget: run it to play with it.*"
    text = "".join(data.get("text/html", data["text/plain"])).rstrip()
    if "text/html" in data: return re.sub(r'<style.*?</style>| border="1" class="dataframe"', "", text, flags=re.S)
    return fence(text, " { .text .output }")


class Notebook:
    "What the book needs to know of one notebook."

    def __init__(self, path):
        self.place = path.relative_to(ROOT / "nbs").with_suffix("").as_posix()
        self.cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in self.cells:
            cell["text"], cell["marks"] = "".join(cell["source"]), {}
            if cell["cell_type"] == "code":
                cell["marks"] = dict(DIRECTIVE.findall(cell["text"]))
                cell["text"] = DIRECTIVE.sub("", cell["text"]).strip()
        self.title, self.summary = re.search(r"^# (.*)\n*(?:> (.*))?", self.cells[0]["text"], re.M).groups()
        self.number = path.name.split("_")[0] if "_" in path.name else ""
        module = next((cell["marks"]["default_exp"] for cell in self.cells if "default_exp" in cell["marks"]), None)
        self.module = module and f"pinmem.{module.removesuffix('.__init__')}"
        self.page, self.api = f"{self.place}.md", f"api/{self.module}.md"
        self.minutes = reading_minutes(path)

    def markdown(self, picture, follow, head):
        "The page; `head` stands under its title and summary."
        parts = []
        for cell in self.cells:
            if cell["marks"].keys() & {"hide", "default_exp"}: continue
            if cell["cell_type"] == "markdown": parts.append(prose(cell["text"], follow))
            else:
                if cell["marks"].get("echo") != "false":
                    parts += [f'<a id="{cell["id"]}"></a>', fence(cell["text"], "python")]
                parts += [shown(output, picture, follow) for output in cell["outputs"]]
        parts[0] = re.sub(r"^# .*\n*(?:>.*\n?)*", lambda found: f"{found[0].rstrip()}\n\n{head}\n\n", parts[0], count=1)
        return "\n\n".join([f"---\nsubtitle: {fives(self.minutes)} min\n---" if self.number else "", *parts])


def fives(minutes):
    "Rounded to five."
    return max(5, 5 * round(minutes / 5))


def link(text, target, page):
    "A link from one page to another."
    return f"[{text}]({relpath(target, Path(page).parent)})"


def head(notebook, tracks):
    "How long a notebook takes to read, where it and its module are, and which tracks lead through it."
    if not notebook.number: return ""
    file, here = f"nbs/{notebook.place}.ipynb", notebook.page
    parts = [f"about {fives(notebook.minutes)} minutes"]
    parts += [f"[{file}]({address()}/blob/main/{file})" if address() else link(file, f"{notebook.place}.ipynb", here)]
    if notebook.module: parts.append(link(f"`{notebook.module}`", notebook.api, here))
    for name, track in tracks.items():
        if notebook not in track: continue
        at = track.index(notebook) + 1
        then = [f", then {link(after.title, after.page, here)}" for after in track[at:at + 1]]
        parts.append(f"*{name}*, {at} of {len(track)}{''.join(then)}")
    return " · ".join(parts) + "\n{ .head }"


def tracks_page(tracks):
    "Three ways through the notebooks, with minutes."
    lines = ["# Tracks", "", "Three ways through the notebooks. Minutes of reading are estimates."]
    for name, track in tracks.items():
        lines += ["", f"## {name}", "", f"For {AIMS[name]}: about {fives(sum(n.minutes for n in track))} minutes.", ""]
        lines += ["| notebook | minutes | |", "|---|---|---|"]
        lines += [f"| {link(f'{n.number} {n.title}', n.page, '')} | {fives(n.minutes)} | {n.summary} |" for n in track]
    return "\n".join(lines)


def navigation(book, tracks, floors):
    "Tracks, floors, modules; a page that stands in several places belongs to its floor."
    def entry(n): return {f"{n.number} {n.title}": n.page}
    pages, modules, rooms = [], [], [n for n in book if "/" in n.place]
    for floor, name in floors.items():
        here = [n for n in book if n.number.startswith(str(floor)) and n not in rooms]
        under = rooms if floor == 0 else []
        pages.append({name: [*map(entry, here), *[{"Rooms of the streets": [*map(entry, under)]}][:len(under)]]})
        modules.append({name: [{n.module: n.api} for n in [*here, *under] if n.module]})
    ways = [{name: [*map(entry, track)]} for name, track in tracks.items()]
    return [{"Home": ["index.md", "tracks.md", *ways]}, {"Notebooks": pages},
            {"API": [floor for floor in modules if all(floor.values())]}]


def on_config(config):
    "A heading is addressed as in Jupyter, so that links between notebooks fit."
    config.mdx_configs["toc"]["slugify"] = lambda text, separator: text.replace(" ", separator)


def on_files(files, config):
    "A page for each notebook, which stays beside it to be fetched; one for each module; then the navigation."
    def add(path, content): files.append(File.generated(config, path, content=content))

    def bring(path, source):
        if not files.get_file_from_path(path): files.append(File.generated(config, path, abs_src_path=str(source)))

    def picture(notebook, kind, data):
        count = sum(file.src_uri.startswith(f"{notebook.place}/") for file in files)
        add(f"{notebook.place}/{count}.{kind}", data)
        return f"{Path(notebook.place).name}/{count}.{kind}"

    def follow(notebook, target):
        "A file from outside of nbs/ is brought into the book, or it is on GitHub."
        path = normpath(Path("nbs", notebook.place).parent / target)
        if path.startswith("nbs/"): return to_page(target)
        if address(): return f"{address()}/blob/main/{path}"
        bring(path, ROOT / path)
        return relpath(path, Path(notebook.page).parent)

    for file in [file for file in files if file.src_uri.endswith(".map")]: files.remove(file)    # for who mends the theme
    book = {n.place: n for n in map(Notebook, notebooks())}
    tracks = {name: [book[place] for place in track if place in book] for name, track in TRACKS.items()}
    for n in book.values():
        add(n.page, n.markdown(partial(picture, n), partial(follow, n), head(n, tracks)))
        if n.module: add(n.api, f"# {n.module}\n\nDeveloped in {link(n.title, n.page, n.api)}.\n\n::: {n.module}\n")
    add("tracks.md", tracks_page(tracks))
    mathjax = Path(importlib.util.find_spec("mathjax").origin).parent / "static" / "mathjax" / "es5"
    bring("book/mathjax.js", mathjax / "tex-svg-full.js")
    config.nav = navigation(book.values(), tracks, config.extra["floors"])
    return files


def on_nav(nav, **_):
    "From page to page through the floors; a track's order stands in the heads of its pages."
    order = [*{page.file.src_uri: page for page in reversed(nav.pages)}.values()][::-1]
    for before, after in zip(order, order[1:]): before.next_page, after.previous_page = after, before


def on_page_content(html, **_):
    "The search passes over outputs."
    return html.replace('<div class="output highlight"', '<div class="output highlight" data-search-exclude')
