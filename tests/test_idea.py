"""The first page: its experiment, its toy, its pictures and its tables say what they should."""
import json
import re

import matplotlib
import numpy as np
import pytest
import torch
from helpers import ROOT
from matplotlib.text import Text

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from pinmem.evaluation import paired_difference  # noqa: E402
from pinmem.idea import (THEMES, TOY, TRACKS, claim_table, claim_words, claims, change_the_light, fit_layer, home_and_away,  # noqa: E402
                         idea_picture, light_table, name_pixels, on_circle, paired_scores, points, reading_minutes, relit,
                         save_pictures, shift_figure, shift_sliders, step_picture, toy_domain, toy_facts, toy_read, tracks_table, verdict)
from pinmem.memory_read import read  # noqa: E402
from pinmem.published import published  # noqa: E402
from pinmem.streets import UNSEEN, draw  # noqa: E402

ROWS = on_circle(np.array([*TOY.values()]))


@pytest.fixture(autouse=True)
def no_figure_stays():
    yield
    plt.close("all")


@pytest.mark.parametrize("light", ["night", "fog", "rain"])
def test_another_light_changes_the_image_and_not_the_mask(light):
    for i in range(3):
        (day, truth), (dark, same) = (draw(relit("town", name), 0, 100 + i) for name in ("town", light))
        assert np.array_equal(truth, same)
        assert np.abs(day.astype(int) - dark).mean() > 10
    assert all(map(np.array_equal, draw(relit("town", "town"), 0, 1), draw("town", 0, 1)))


def test_a_layer_learns_what_a_plane_can_part():
    "Two classes with features at right angles, some cells ignored: layer and class means find them."
    mask = np.zeros((8, 8), np.uint8)
    mask[:, 4:], mask[:2] = 3, 255
    f = torch.zeros(2, 4, 4)
    f[0, :, :2] = f[1, :, 2:] = 1
    layer, rows = fit_layer([(f, mask)])
    assert torch.allclose(rows[[0, 3]], torch.eye(2)) and not rows[1].any()
    for weights in (layer, rows.T):
        said = name_pixels(weights, f, (8, 8)).numpy()
        assert set(np.unique(said)) == {0, 3} and (said[:, 0] == 0).all() and (said[:, -1] == 3).all()


def test_the_failure_is_there():
    "What the page says of its experiment; also: one light alone loses nothing against itself."
    found = change_the_light(("town", "night", "town"), learn=8, exam=5)
    assert [*found] == ["town", "night"]
    day, night = found["town"], found["night"]
    assert day["cosine"] > .999 > .8 > night["cosine"]
    assert day["right"] > night["right"] + .05 and day["row"] > night["row"] + .05
    lines = light_table(found, cosine="cosine", row="nearest row").splitlines()
    assert lines[0] == "| light | cosine | nearest row |" and len(lines) == 4
    assert lines[2] == f"| as learned | 1.00 | {100 * day['row']:.0f} % |" and lines[3].startswith("| night | 0.")


@pytest.mark.parametrize("tau", [.05, .1, 1.])
def test_the_toy_reads_as_the_network_does(tau):
    features, _ = toy_domain(.7)
    weights, got = toy_read(features, ROWS, tau)
    f = torch.from_numpy(features.T.copy())[None, :, None]                             # (1, 2, 1, P)
    qm, _, w = read(f, torch.from_numpy(ROWS), tau)
    assert np.allclose(w[0, :, 0].T, weights) and np.allclose(qm[0, 2:, 0].T, got)


def test_a_shift_moves_features_and_no_row():
    (near, y), (far, same) = toy_domain(0), toy_domain(.8)
    assert (y == same).all() and len(y) == 90
    assert np.allclose(far - near, far[0] - near[0]) and np.isclose(np.linalg.norm(far[0] - near[0]), .8)
    still = toy_facts(0)
    assert still["features"] == still["reads"] == 0 and still["right"] == 1


def test_what_the_page_says_of_the_toy():
    near, far, warm = toy_facts(.6), toy_facts(1.2), toy_facts(.6, tau=1.)
    assert np.isclose(near["features"], .6) and near["reads"] < .1 and near["right"] > .95     # pinned
    assert far["reads"] > .5 and far["right"] < .7                                             # to the wrong row
    weights, _ = toy_read(toy_domain(1.2)[0], ROWS, .1)
    assert weights[4, [*TOY].index("sky")] > .9                                                # the ringed pixel, a road
    spread = [np.linalg.norm(toy_read(toy_domain(.6)[0], ROWS, tau)[1], axis=1).mean() for tau in (.1, 1.)]
    assert spread[1] < .5 < .9 < spread[0]                                                     # they crowd in the middle
    assert warm["right"] == near["right"]                                                      # no other row comes first


def test_the_figure_shows_weights_of_the_ringed_pixel():
    bars = [bar.get_height() for bar in shift_figure(.9, .2).axes[1].patches]
    assert np.allclose(bars, toy_read(toy_domain(.9)[0], ROWS, .2)[0][4])


def test_both_sliders_redraw():
    box, picture = shift_sliders().children
    seen = {bytes(picture.value)}
    for slider, value in zip(box.children, (1.5, 1.)):
        slider.value = value
        assert picture.value[:4] == b"\x89PNG" and picture.value not in seen
        seen.add(bytes(picture.value))


@pytest.mark.parametrize("paint", [idea_picture, step_picture])
def test_diagrams_say_the_same_on_both_pages_and_nothing_is_cut_off(paint):
    said = {}
    for theme in THEMES:
        fig = paint(theme)
        fig.canvas.draw()
        texts = [t for t in fig.findobj(Text) if t.get_text()]
        page, boxes = fig.bbox, [t.get_window_extent() for t in texts]
        assert page.width == 700 and all(0 <= b.x0 and b.x1 <= page.width and 0 <= b.y0 and b.y1 <= page.height for b in boxes)
        for i, a in enumerate(boxes):
            assert not any(a.overlaps(b) for b in boxes[i + 1:]), f"something lies over {texts[i].get_text()!r}"
        assert min(t.get_fontsize() for t in texts) >= 8.5
        said[theme] = [t.get_text() for t in texts]
    assert said["light"] == said["dark"]


@pytest.mark.parametrize("theme", THEMES)
def test_diagrams_can_be_read_on_their_page(theme):
    "Contrast of at least 4.5 to 1 between letters and page, as the web's guidelines ask for."
    def brightness(colour):
        c = np.array(matplotlib.colors.to_rgb(colour))
        return np.where(c <= .04045, c / 12.92, ((c + .055) / 1.055) ** 2.4) @ (.2126, .7152, .0722)
    colours = dict(THEMES[theme])
    paper = brightness(colours.pop("paper"))
    colours.pop("line")                                                                # draws no letters
    for name, colour in colours.items():
        dark, bright = sorted((brightness(colour), paper))
        assert (bright + .05) / (dark + .05) >= 4.5, name


def test_the_pictures_of_readme_are_those_that_are_drawn(tmp_path):
    save_pictures(tmp_path)
    for theme in THEMES:
        now, stored = (plt.imread(folder / f"idea_{theme}.png")[..., :3] for folder in (tmp_path, ROOT / "nbs" / "images"))
        assert now.shape == stored.shape == (528, 1120, 3)
        assert np.abs(now - stored).mean() < .01, f"idea_{theme}.png is out of date; run save_pictures() in nbs"


def row(method, seed, unseen, photographs, setting="default", status="done"):
    return dict(method=method, seed=seed, setting=setting, status=status,
                miou={**dict.fromkeys(UNSEEN, unseen), "camvid/test": photographs, "town": .5, "suburb": .5, "city": .5,
                      "winter": .1})


MAIN = [row("aggregation", 0, .2, .4), row("aggregation", 1, .3, .4), row("aggregation", 2, .1, .1, status="failed"),
        row("pinmem", 0, .25, .41), row("pinmem", 1, .36, .38), row("pinmem", 2, .9, .9), row("pinmem", 0, .9, .9, "tau=1"),
        row("pinmem+", 0, .2, .4), row("pinmem+", 1, .3, .4)]
ADAPTED = [row("bn-only", 0, .2, .3), row("norm-only", 0, .2, .35)]
HEADS = [row("clan", 0, .2, .3), row("clan+norm", 0, .19, .32), row("bn-only", 0, .9, .9)]


def test_scores_are_paired_by_seed():
    ours, base = paired_scores(MAIN, "pinmem", "aggregation", ["night", "camvid/test"])
    assert np.allclose(ours, [33, 37]) and np.allclose(base, [30, 35])
    assert home_and_away(MAIN).count("**40.0 %**") == 1 and "**25.0 %**" in home_and_away(MAIN) and "2 trainings" in home_and_away(MAIN)


def test_claims_by_hand():
    bench = ([31., 33.], [30., 30.]), ([41.], [40.])
    first, same, plus, norm, alone = claims(MAIN, ADAPTED, HEADS, bench, published, paired_difference)
    assert np.isclose(first[1], (44.51 - 33.42 + 38.07 - 29.07 + 42.70 - 32.19) / 3)
    assert np.isclose(first[2]["mean"], 5.5) and np.isclose(first[3]["mean"], -.5) and first[2]["n"] == 2
    assert same[1] is None and same[2]["mean"] == 2 and same[3] == dict(mean=1., low=None, high=None, n=1)
    assert plus[1] is None and plus[2]["mean"] == 0
    assert np.isclose(norm[1], 44.81 - 43.2) and np.isclose(norm[2]["mean"], -1) and np.isclose(norm[3]["mean"], 2)
    assert alone[1] is None and np.isclose(alone[2]["mean"], 0) and np.isclose(alone[3]["mean"], 5)
    lines = claim_table([first, plus, norm]).splitlines()
    assert "| +10.2 | +5.5 [−0.9, +11.9] |" in lines[2] and "| – | 0.0 [0.0, 0.0] |" in lines[3]
    assert lines[4].endswith("| +1.6 | −1.0 (one run) | +2.0 (one run) |")
    words = claim_words([first, plus, norm])
    assert "10.2 points" in words and "2 pairs" in words and words.count("not distinguishable") == 2


@pytest.mark.parametrize("low, high, words", [(.1, 1, "ahead of"), (-1, -.1, "behind"), (-1, .1, "not distinguishable"), (None, None, "one run")])
def test_an_interval_allows_to_say(low, high, words):
    assert words in verdict(dict(mean=0., low=low, high=high, n=3))


def test_points_are_rounded_and_signed():
    assert points(dict(mean=-.04, low=-1.25, high=.9, n=3)) == "0.0 [−1.2, +0.9]"
    assert points(dict(mean=.26, low=None, high=None, n=1)) == "+0.3 (one run)"
    assert points(dict(mean=.04, low=-.04, high=.1, n=3)) == "0.0 [0.0, +0.1]"


def test_minutes_count_what_is_read(tmp_path):
    cell = lambda kind, text: dict(cell_type=kind, source=[text])
    cells = [cell("markdown", "word " * 400), cell("code", "#| hide\n" + "x\n" * 300), cell("code", "x\n\n" * 30),
             cell("markdown", "## The code of this page"), cell("code", "x\n" * 900)]
    (tmp_path / "a.ipynb").write_text(json.dumps(dict(cells=cells)))
    assert reading_minutes(tmp_path / "a.ipynb") == 3


def test_tracks_lead_to_notebooks():
    table = tracks_table(ROOT / "nbs")
    for track, names in TRACKS.items():
        line = next(line for line in table.splitlines() if f"**{track}**" in line)
        assert re.findall(r"\((\w+)\.ipynb\)", line) == [*names]
        assert int(line.split("|")[-2]) % 5 == 0 and 20 <= int(line.split("|")[-2]) <= 240
