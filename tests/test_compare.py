"""A comparison can be killed, continued, run twice at once and fed a damaged file, and never loses or repeats a cell."""
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from helpers import complaint
from pinmem import compare as module
from pinmem.compare import Cell, append_row, is_finished, key_of, make_cells, only_one, read_rows, train_cell, train_words
from pinmem.comparison import (choose_setting, chosen_rows, class_differences, compare, comparison_table, lost_cells,
                               score_of, seed_difference, seed_scores, variant_of)
from pinmem.plan import PRESETS
from pinmem.runs import train
from pinmem.streets import SOURCES

FORK = multiprocessing.get_context("fork")


def slow_comparison(out, seconds, processes):
    "Six cells that take `seconds` each and note that they ran."
    def run(cell, folder, lock):
        with open(out / "ran", "a") as file: file.write(cell.name + "\n")
        time.sleep(seconds)
        return fake(cell, folder, lock)
    compare(["aggregation", "pinmem"], [0, 1, 2], out=out, run=run, say=quiet, processes=processes)


def start(out, seconds, processes=1):
    out.mkdir(exist_ok=True)
    process = FORK.Process(target=slow_comparison, args=(out, seconds, processes))
    process.start()
    return process


def many_rows(path, method):
    for i in range(40): append_row(path, dict(method=method, seed=i, sources=["town"], miou={"x": 0.1}, pad="y" * 20_000))


def fake(cell, folder, lock):
    "A training that takes no time."
    if cell.options.get("lr") == 9: raise RuntimeError("the loss is not finite")
    night = 0.2 + 0.01 * cell.seed + 0.02 * (cell.method == "pinmem")
    miou = {"town": 0.5, "night": night, "camvid": 0.3}
    return dict(miou=miou, iou={d: {"road": v, "train": None} for d, v in miou.items()}, sources=["town"],
                targets=["night", "camvid"], cpu=30.0)


def quiet(line): pass


def wait_for(path, lines, seconds=60):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.exists() and len(path.read_text().splitlines()) >= lines: return
        time.sleep(0.05)
    raise AssertionError(f"{path} never had {lines} lines")


def test_killed_comparison_continues(tmp_path):
    out = tmp_path / "c"
    first = start(out, 0.4)
    wait_for(out / "results.jsonl", 2)
    first.kill(); first.join()
    before = (out / "results.jsonl").read_text()
    second = start(out, 0)
    second.join(60)
    assert second.exitcode == 0
    assert (out / "results.jsonl").read_text().startswith(before)
    rows, problems = read_rows(out / "results.jsonl")
    assert len(rows) == 6 and not problems
    ran = (out / "ran").read_text().split()
    done = {Cell(r["method"], r["seed"], r["setting"], r["options"], r["plan"]).name for r in map(json.loads, before.splitlines())}
    assert len(done) >= 2 and all(ran.count(name) == 1 for name in done), "a finished cell ran again"


def test_two_comparisons_at_once(tmp_path):
    out = tmp_path / "c"
    both = [start(out, 0.2, 2), start(out, 0.2, 2)]
    for process in both: process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    rows, problems = read_rows(out / "results.jsonl")
    assert len(rows) == 6 and not problems and len((out / "results.jsonl").read_text().splitlines()) == 6
    assert len((out / "ran").read_text().split()) == 6, "a cell ran twice"


def test_many_writers_tear_no_line(tmp_path):
    path = tmp_path / "results.jsonl"
    jobs = [FORK.Process(target=many_rows, args=(path, str(k))) for k in range(3)]
    for job in jobs: job.start()
    for job in jobs: job.join(60)
    rows, problems = read_rows(path)
    assert len(rows) == 120 and not problems


@pytest.mark.parametrize("bad", [b'{"method": "pinmem", "se', b"\xff\xfe\x00", b"[1, 2]", b'{"seed": 1}', b"null",
                                 b'{"method": "pinmem", "seed": 0, "sources": ["town"], "miou": {"night": "high"}}'])
def test_damaged_line_is_named_and_its_cell_runs_again(tmp_path, bad):
    out = tmp_path / "c"
    compare(["aggregation", "pinmem"], [0, 1], out=out, run=fake, say=quiet)
    path = out / "results.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], bad, *lines[2:]]) + b"\n")
    said, ran = [], []
    rows = compare(["aggregation", "pinmem"], [0, 1], out=out, run=lambda *a: ran.append(a[0]) or fake(*a), say=said.append)
    assert "line 2" in said[0] and "results.jsonl" in said[0] and len(ran) == 1
    assert [r["status"] for r in rows] == ["done"] * 4 and bad in path.read_bytes(), "nothing is ever taken out of the file"


def test_a_torn_last_line_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_bytes(b'{"method": "pin')
    append_row(path, dict(method="pinmem", seed=0, sources=["town"], miou={}))
    rows, problems = read_rows(path)
    assert len(rows) == len(problems) == 1


def test_failed_seed_is_shown_and_only_retry_runs_it_again(tmp_path):
    ran = []
    def breaks(cell, folder, lock):
        ran.append(cell.name)
        if cell.method == "pinmem" and cell.seed == 1 and len(ran) < 7: raise RuntimeError("step 17: loss_seg is not finite")
        return fake(cell, folder, lock)
    call = lambda **more: compare(["aggregation", "pinmem"], [0, 1, 2], out=tmp_path / "c", run=breaks, say=said.append, **more)
    said = []
    rows = call()
    assert [r["status"] for r in rows].count("failed") == 1 and "FAILED: seed 1" in said[-1] and "step 17" in said[-1]
    assert list(seed_scores(rows, "pinmem", "night").index) == [0, 2] and len(lost_cells(rows)) == 1
    said.clear()
    rows = call()
    assert len(ran) == 6, "a failed cell ran again unasked"
    assert "5 were finished before, 0 to run, 1 failed before" in said[0], "a failed cell is not called finished"
    assert "pinmem-default-1" in said[1] and "step 17" in said[1] and len(lost_cells(rows)) == 1
    said.clear()
    rows = call(retry=True)
    assert len(ran) == 7 and [r["status"] for r in rows] == ["done"] * 6 and "FAILED" not in said[-1]
    assert "1 to run" in said[0] and "failed before" not in said[0] and not lost_cells(rows)


def test_all_failed(tmp_path):
    said = []
    rows = compare(["pinmem"], [0, 1], {"hot": {"lr": 9}}, out=tmp_path / "c", run=fake, say=said.append)
    assert {r["status"] for r in rows} == {"failed"} and "FAILED: seed 0, 1" in said[-1] and "not finite" in said[-1]
    with pytest.raises(ValueError, match="no seed finished"): choose_setting(rows, "pinmem")
    assert [line.split(":")[0] for line in lost_cells(rows)] == ["pinmem, hot, seed 0", "pinmem, hot, seed 1"]


def test_numbers_of_the_table(tmp_path):
    rows = compare(["aggregation", "pinmem"], [0, 1, 2], out=tmp_path / "c", run=fake, say=quiet, steps=5)
    assert score_of({**rows[0], "targets": ["night", "fog"], "sources": ["town", "night"], "miou": dict(night=.4, fog=.2)}, "unseen styles") == 20
    d = seed_difference(seed_scores(rows, "pinmem", "night"), seed_scores(rows, "aggregation", "night"))
    assert d["n"] == 3 and np.allclose([d["mean"], *d["t"], *d["bootstrap"]], 2)
    text = comparison_table(rows, domains=["night"])
    assert " 21.0  1.00" in text and "+2.0" in text and "[  18.5,   23.5]" in text
    assert sorted(p.name for p in (tmp_path / "c").glob("*.png")) == ["classes-1.png", "differences.png", "seeds.png", "time.png"]
    assert (tmp_path / "c" / "table.txt").read_text().startswith("Differences are to aggregation")
    line = json.loads((tmp_path / "c" / "results.jsonl").read_text().splitlines()[0])
    assert {"method", "seed", "setting", "options", "status", "seconds", "time", "miou", "iou"} <= set(line)
    assert list(class_differences(rows, "pinmem", "aggregation", "night")) == ["road"], "no score, no class"
    assert not class_differences(rows, "pinmem", "aggregation", "moon")


def test_a_choice_on_a_target_is_called_oracle(tmp_path):
    rows = compare(["pinmem"], [0, 1], {"a": {"lr": 0.001}, "b": {"lr": 0.002}}, out=tmp_path / "c", run=fake, say=quiet)
    assert choose_setting(rows, "pinmem")["chosen_on"] == choose_setting(rows, "pinmem", ["town"])["chosen_on"] == "source validation"
    assert choose_setting(rows, "pinmem", ["camvid"])["chosen_on"] == "oracle"
    assert choose_setting(rows, "pinmem", ["town", "night"])["chosen_on"] == "oracle"
    assert all("oracle" in variant_of(r) for r in chosen_rows(rows, ["night"]))
    assert not any("oracle" in variant_of(r) for r in chosen_rows(rows))


def test_a_setting_that_fails_is_not_chosen(tmp_path):
    def run(cell, folder, lock):
        if cell.setting == "b" and cell.seed == 1: raise RuntimeError("not finite")
        made = fake(cell, folder, lock)
        return {**made, "miou": {**made["miou"], "town": 0.9 if cell.setting == "b" else 0.5}}
    rows = compare(["pinmem"], [0, 1], {"a": {"lr": 0.001}, "b": {"lr": 0.002}}, out=tmp_path / "c", run=run, say=quiet)
    assert choose_setting(rows, "pinmem")["setting"] == "a"


def test_settings_are_compared_on_the_seeds_that_all_have(tmp_path):
    "Seed 1 is a lucky one; only one setting had it."
    def run(cell, folder, lock):
        made = fake(cell, folder, lock)
        return {**made, "miou": {**made["miou"], "town": 0.5 + 0.3 * cell.seed + 0.1 * (cell.setting == "a")}}
    go = lambda seeds, name, lr: compare(["pinmem"], seeds, {name: {"lr": lr}}, out=tmp_path / name, run=run, say=quiet)
    rows = go([0], "a", 0.001) + go([0, 1], "b", 0.002)
    assert choose_setting(rows, "pinmem", ["town"])["setting"] == "a"
    assert choose_setting([rows[0], rows[2]], "pinmem", ["town"])["setting"] == "b"       # none is shared: each has its own


def test_a_changed_preset_makes_other_cells(tmp_path, monkeypatch):
    ran = []
    run = lambda *a: ran.append(a) or fake(*a)
    compare(["pinmem"], [0], out=tmp_path / "c", run=run, say=quiet)
    base = PRESETS["pinmem"]
    monkeypatch.setitem(PRESETS, "pinmem", base.but(algorithm=base.algorithm.but(alpha=0.123)))
    compare(["pinmem"], [0], out=tmp_path / "c", run=run, say=quiet)
    assert len(ran) == 2


@pytest.mark.parametrize("words, arguments", [
    ("magic", dict(methods=["magic"])),
    ("seeds is empty", dict(seeds=[])),
    ("names one twice", dict(seeds=[1, 1])),
    ("whole number", dict(seeds=[0.5])),
    ("did you mean 'tau'", dict(settings={"x": {"teu": 1}})),
    ("no memory", dict(methods=["aggregation"], settings={"x": {"tau": 1.0}})),
    ("are the same", dict(settings={"x": {"tau": 1.0}, "y": {"tau": 1.0}})),
    ("needs two or more", dict(sources="town")),
    ("height is 'foo'", dict(settings={"x": {"height": "foo"}})),
    ("settle is 1.5", dict(settings={"x": {"settle": 1.5}})),
    ("classes is 17", dict(classes=17)),
    ("baseline", dict(baseline="mldg")),
    ("processes", dict(processes=0)),
])
def test_mistakes_before_anything_runs(tmp_path, words, arguments):
    given = dict(methods=["pinmem"], seeds=[0], out=tmp_path / "c", run=fake, say=quiet)
    with pytest.raises(ValueError) as error: compare(**{**given, **arguments})
    assert words in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "c").exists()


def test_same_options_are_one_cell_whatever_they_are_called(tmp_path):
    ran = []
    run = lambda *a: ran.append(a) or fake(*a)
    compare(["pinmem"], [0], {"warm": {"tau": 1.0}}, out=tmp_path / "c", run=run, say=quiet)
    rows = compare(["pinmem"], [0], {"tau=1": {"tau": 1.0}}, out=tmp_path / "c", run=run, say=quiet)
    assert len(ran) == 1 and rows[0]["setting"] == "tau=1"
    compare(["pinmem"], [0], {"tau=1": {"tau": 1.0}}, out=tmp_path / "c", run=run, say=quiet, steps=7)
    assert len(ran) == 2, "other options are another cell"
    compare(["pinmem"], [0], {"tau=1": {"tau": 1}}, out=tmp_path / "c", run=run, say=quiet, steps=7.0)
    assert len(ran) == 2, "1 and 1.0, 7 and 7.0 are one number"
    other = [key_of(dict(method="pinmem", seed=0, options={"memory": value})) for value in (True, 1)]
    assert other[0] != other[1], "yes is no number"


def test_lock_outlives_a_killed_comparison(tmp_path, monkeypatch):
    "The training goes on when the comparison is killed with -9, and nobody else starts its cell meanwhile."
    out = tmp_path / "c"
    words = [sys.executable, "-S", "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
    monkeypatch.setattr(module, "train_words", lambda *a, **k: words)
    parent = FORK.Process(target=compare, args=(["pinmem"], [0]), kwargs=dict(out=out, say=quiet))
    parent.start()
    cell = make_cells(["pinmem"], [0], {"default": {}}, {})[0]
    wait_for(out / f"{cell.name}.log", 1)
    parent.kill(); parent.join()
    child = int((out / f"{cell.name}.log").read_text().split()[0])
    try:
        rows = compare(["pinmem"], [0], out=out, run=fake, say=quiet)
        assert rows[0]["status"] == "busy" and not (out / "results.jsonl").exists()
    finally: os.kill(child, signal.SIGKILL)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with only_one(out / f"{cell.name}.lock") as lock:
            if lock: return
        time.sleep(0.1)
    raise AssertionError("the lock did not go with the process")


@pytest.mark.parametrize("given", ["town,city", ["town", "city"]])
def test_a_cell_is_one_call_of_train(tmp_path, given):
    cell = make_cells(["pinmem"], [3], {"x": {"tau": 1.0}}, dict(steps=5, sources=given))[0]
    python, flag, code, name, words = train_words(cell, tmp_path / "r")
    assert (python, flag, name) == (sys.executable, "-c", "train") and "pinmem" in code
    wanted = dict(method="pinmem", seed=3, tau=1.0, steps=5, sources=["town", "city"], out=str(tmp_path / "r"), threads=1)
    assert wanted.items() <= json.loads(words).items()
    *_, name, words = train_words(cell, tmp_path / "r", resume=True)
    assert name == "resume" and json.loads(words) == dict(out=str(tmp_path / "r"), threads=1, quiet=True)


def test_a_run_that_ends_before_its_schedule_is_finished(tmp_path):
    "Rows of the paper stop at 70,000 of 120,000 steps."
    cell = make_cells(["pinmem"], [0], {"default": {}}, {})[0]
    (tmp_path / "results.json").write_text("{}")
    (tmp_path / "log.csv").write_text("step,loss_seg\n0,1.0\n1,1.0\n")
    known = (dict(steps=2), True), (dict(steps=3), False), (dict(steps=3, stop=2), True), (dict(steps=2, stop=None), True)
    for config, done in known:
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert is_finished(cell, tmp_path) is done, config


def test_interrupted_training_is_not_a_result_and_is_resumed(tmp_path):
    "A real training: half a run lies in the folder, with results of its own."
    options = dict(steps=2, scenes=2, exam=1, size=[64, 32], crop=[64, 32], targets="night", encoder="test_resnet", weights=None)
    cell = make_cells(["aggregation"], [0], {"default": {}}, options)[0]
    run = tmp_path / "c" / cell.name
    train(method="aggregation", out=run, threads=1, quiet=True, stop=1, **{**options, "targets": ["night"]})
    assert (run / "results.json").exists() and not is_finished(cell, run)
    said = []
    row, = compare(["aggregation"], [0], out=tmp_path / "c", say=said.append, **options)
    assert row["status"] == "done", (row, said)
    assert row["resumed"] and row["cpu"] is None and row["steps"] == 2 and set(row["miou"]) == {*SOURCES, "night"}
    assert row["config"]["method"] == "aggregation" and "torch" in row["versions"] and len(row["iou"]["night"]) == 19
    again, = compare(["aggregation"], [0], out=tmp_path / "c", run=lambda *a: 1 / 0, say=quiet, **options)
    assert again == row


def test_a_training_that_fails_says_why(tmp_path):
    "The last line of the process becomes the error of the row."
    cell = make_cells(["aggregation"], [0], {"default": {}}, dict(targets="moon"))[0]
    with only_one(tmp_path / "lock") as lock, pytest.raises(RuntimeError, match="exit code [12].*moon"):
        train_cell(cell, tmp_path / cell.name, lock)


@pytest.fixture(scope="module")
def cluster():
    "Two workers, each a process of its own, on this machine."
    from distributed import Client, LocalCluster
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as found, Client(found) as client:
        client.wait_for_workers(2)
        yield found.scheduler_address, client


def noted(out, seconds):
    "A training that notes where it runs, and takes a while in seed 0 at its first try."
    def run(cell, folder, lock):
        import os, time
        with open(out / "ran", "a") as file: file.write(f"{cell.name} {os.getpid()} {os.getcwd()}\n")
        if cell.seed == 0 and (out / "ran").read_text().count(cell.name) == 1: time.sleep(seconds)
        return dict(miou={"night": .2 + .01 * cell.seed}, sources=["town"])
    return run


def lines_of(path): return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def test_a_worker_dies_and_its_cell_is_done_elsewhere(tmp_path, cluster, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address, client = cluster
    Path("c").mkdir()
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(compare, ["aggregation"], [0, 1, 2, 3], out="c", run=noted(tmp_path / "c", 60), say=quiet, cluster=address)
        wait_for(tmp_path / "c" / "ran", 4)                           # seed 0 is at work, the other worker did the rest
        slow = next(int(pid) for name, pid, _ in lines_of(tmp_path / "c" / "ran") if name.startswith("aggregation-default-0"))
        assert slow in client.run(os.getpid).values(), "it runs on a worker"
        os.kill(slow, signal.SIGKILL)
        rows = job.result(timeout=60)
    assert [row["status"] for row in rows] == ["done"] * 4
    assert [round(row["miou"]["night"], 2) for row in rows] == [.2, .21, .22, .23]
    assert len((tmp_path / "c" / "results.jsonl").read_text().splitlines()) == 4          # none lost, none doubled
    tries = [line for line in lines_of(tmp_path / "c" / "ran") if line[0].startswith("aggregation-default-0")]
    assert len(tries) == 2 and tries[0][1] != tries[1][1] and {where for *_, where in tries} == {str(tmp_path)}


def test_a_cell_that_kills_its_workers_has_failed(tmp_path, cluster):
    def run(cell, folder, lock):
        import os, signal
        if cell.seed == 1: os.kill(os.getpid(), signal.SIGKILL)
        return dict(miou={"night": .2}, sources=["town"])
    rows = compare(["aggregation"], [0, 1], out=tmp_path / "c", run=run, say=quiet, cluster=cluster[0])
    assert [row["status"] for row in rows] == ["done", "failed"] and "memory" in rows[1]["error"]
    assert [row["status"] for row in read_rows(tmp_path / "c" / "results.jsonl")[0]] == ["done", "failed"]


def test_a_worker_with_other_code_is_refused(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(module, "code", lambda: "another")
    complaint(ValueError, lambda: compare(["aggregation"], [0], out=tmp_path, run=fake, say=quiet, cluster=cluster[0]), "another version")
    assert not (tmp_path / "results.jsonl").exists()


def test_no_scheduler_or_no_package_is_one_line(tmp_path, monkeypatch):
    go = lambda address: compare(["aggregation"], [0], out=tmp_path, run=fake, say=quiet, cluster=address)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        complaint(OSError, lambda: go(f"tcp://127.0.0.1:{free.getsockname()[1]}"), "dask scheduler")
    complaint(OSError, lambda: go("nowhere"), "nowhere", "dask scheduler")
    monkeypatch.setitem(sys.modules, "distributed", None)
    complaint(ValueError, lambda: go("tcp://127.0.0.1:1"), "pinmem[cluster]")
