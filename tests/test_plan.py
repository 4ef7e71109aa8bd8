"""The plan of a run: every value is obeyed or refused in one line, and what is stored can be read again."""
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinmem.plan import ABOUT_NORM, ALGORITHMS, GROUPS, PRESETS, Plan, place_of, plan, read_plan, read_switch, takes
from pinmem.settings import choices
from test_algorithms import make, step

NAMES = sorted(set().union(*(group.model_fields for group in GROUPS.values())) - {"method", "preset", "sources", "steps"})
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 300), st.floats(allow_nan=True, allow_infinity=True), st.text(max_size=6),
    st.sampled_from(["none", "true", "False", "1e9", "nan", "hard", "1,2", "[64, 64]", "gumbel", "area", "sgd", "bf16"]),
    st.lists(st.integers(-2, 700), max_size=4), st.lists(st.floats(), max_size=3), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2))


@settings(max_examples=400, deadline=None)
@given(name=st.sampled_from(NAMES), value=ODD, method=st.sampled_from(sorted(ALGORITHMS)), preset=st.sampled_from(["pinmem", "paper", "official"]))
def test_a_value_is_obeyed_or_refused_in_one_line(name, value, method, preset):
    try: made = plan(method, preset, **{**({"photos": ["fog"]} if ALGORITHMS[method].unlabelled else {}), name: value})
    except ValueError as error:
        assert "\n" not in str(error) and name in str(error), str(error)
        return
    stored = json.loads(json.dumps(made.model_dump(mode="json"), allow_nan=False))
    assert read_plan(stored) == made


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(NAMES), text=st.text(max_size=12))
def test_text_becomes_a_value_or_one_line(name, text):
    try: plan(**dict([read_switch(f"{name}={text}")]))
    except ValueError as error: assert "\n" not in str(error)


@pytest.mark.parametrize("name", NAMES)
def test_every_switch_has_help_and_a_default_that_is_allowed(name):
    field = GROUPS[place_of(name)].model_fields[name]
    assert field.description and not field.is_required()
    if place_of(name) != "run" and name in ("frozen_stats", "checkpoint", "compile", "flip", "aux", "pool_norm"):
        for word in ("false", "False", False): assert not getattr(GROUPS[place_of(name)](**{name: word}), name)
    GROUPS[place_of(name)](**{name: field.default})


def test_a_name_stands_in_one_group():
    assert sum(len(group.model_fields) for group in GROUPS.values()) == len(NAMES) + 4


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", ALGORITHMS)
def test_every_method_can_be_planned_with_every_preset(method, preset):
    made = plan(method, preset, ["town", "city", "suburb"], **({"photos": ["fog"]} if ALGORITHMS[method].unlabelled else {}))
    assert isinstance(made, Plan) and read_plan(json.loads(made.model_dump_json())) == made
    assert set(made.algorithm) == set(ALGORITHMS[method].Switches.model_fields)
    wanted = PRESETS[preset].algorithm.given()
    if made.model.head == "twoheads" and "optimiser" not in wanted: wanted |= dict(lr=2e-4, encoder_lr=5.0)  # bare features
    if not method.endswith("+norm") and method != "norm-only": wanted.pop("lam_norm", None)               # no norm loss
    for name, value in wanted.items():
        if name in takes(ALGORITHMS[method]): assert made.algorithm[name] == value


def test_every_stored_result_was_planned_by_something_that_can_be_read():
    "Configurations of all runs whose results are kept, written by older versions."
    rows = [json.loads(line) for path in sorted((Path(__file__).parent.parent / "nbs/results").glob("*.jsonl"))
            for line in path.read_text().splitlines()]
    configs = [row["config"] for row in rows if "config" in row]
    assert configs
    for config in configs:
        made = read_plan(config)
        data = config.get("data", config)                             # older versions kept them beside the rest
        assert made.method == config["method"] and made.data.crop == tuple(data["crop"]) and made.steps == config["steps"]
        assert made.data.settle == data.get("settle", 0) and made.data.unweigh == data.get("unweigh", 0)
        assert {name: made.algorithm.get(name) for name in config["algorithm"]} == config["algorithm"]


@pytest.mark.parametrize("name", [name for name in NAMES if place_of(name) in ("algorithm", "model")
                                  and choices(GROUPS[place_of(name)].model_fields[name].annotation) and name not in ("head", "schedule", "optimiser", "visits")])
def test_every_choice_takes_a_step(name):
    able = [m for m, cls in ALGORITHMS.items() if place_of(name) == "model" or name in takes(cls)]
    if name in ABOUT_NORM: able = [m for m in able if ALGORITHMS[m].Switches.model_fields["kappa"].default]
    method = "pinmem" if "pinmem" in able else able[0]
    photos = {"photos": ["fog"]} if ALGORITHMS[method].unlabelled else {}
    for value in choices(GROUPS[place_of(name)].model_fields[name].annotation):
        made = plan(method, **photos, **{name: value})
        assert plan(method, **photos, **{name: str(value)}) == made, "a choice as it is written on a command line"
        network = {k: v for k, v in made.model.given().items() if k != "memory"}
        how = {k: v for k, v in made.algorithm.items() if k != "weight_decay"}
        losses = step(make(method, network, **how), 0)
        assert np.isfinite(list(losses.values())).all(), value


def test_defaults_of_the_recipe_are_what_they_were():
    made = plan(sources=["town", "city"])
    wanted = dict(lr=3e-3, encoder_lr=0.3, alpha=0.1, objective="sum", warm=0.75, average=0.6, momentum=0.8, lam1=0.02, lam2=0.2, order=2)
    assert {name: made.algorithm[name] for name in wanted} == wanted and made.model.given() == dict(tau=0.1, memory=True)
    assert made.data.model_dump() == dict(per_domain=2, crop=(192, 96), scale=(0.5, 2.0), photometric="strong", photometric_test=None,
                                          rare=0.25, balance=0.5, unweigh=0.5, settle=25, second_phase=0, memory_images=100, photos_per_step=4,
                                          without=None)


@pytest.mark.parametrize("keywords, words", [
    (dict(method="pinmen"), "choose"),
    (dict(preset="mine"), "official"),
    (dict(teu=1), "tau"),
    (dict(method="aggregation", tau=0.1), "no memory"),
    (dict(lam_aux=0.1), "auxiliary head"),
    (dict(aux_dropout=0.5), "auxiliary head"),
    (dict(method="adaptsegnet", photos=["fog"], lam_adv_aux=0.1), "auxiliary head"),
    (dict(method="norm-only", photos=["fog"], target_size=(64, 32)), "adaptsegnet"),
    (dict(method="norm-only", photos=["fog"], kappa=0.1, lam_norm=0.2), "leave one"),
    (dict(method="norm-only", photos=["fog"], snapshot_every=2), "norm_form"),
    (dict(method="norm-only", photos=["fog"], delta_r=0), "delta_r is 0"),
    (dict(method="bn-only", photos=["fog"], norm_on="source"), "is off"),
    (dict(method="source-only", photos=["fog"], kappa=0.1), "kappa=0"),
    (dict(method="mldg", label_mode="area"), "no memory"),
    (dict(method="ibn-b", order=1), "no inner step"),
    (dict(method="mldg-first", order=2), "order=1"),
    (dict(method="episodic-memory", alpha=0.1), "alpha=0.0"),
    (dict(method="aggregation-memory", prime="prime"), "no meta-test"),
    (dict(method="tsmldg", start=10), "robustnet"),
    (dict(method="ibn-a", frozen_stats=True), "frozen_stats=False"),
    (dict(prime="hat", lam2=0), "U"),
    (dict(prime="prime_frozen_eu", objective="outer", order=1), "U"),
    (dict(prime="frozen"), "prime_frozen_e"),
    (dict(order=1.5), "1 or 2"),
    (dict(momentum="most"), "0 to 1"),
    (dict(method="aggregation", photometric_test="hard"), "no meta-test"),
    (dict(method="robustnet", checkpoint=True), "inside of E"),
    (dict(precision="half"), "bf16"),
    (dict(crop=[768]), "crop"),
    (dict(preset="gs-r50", sources=["gtav:a"]), "synthia is missing"),
    (dict(tau=0), "tau"),
    (dict(balance=0, unweigh=0.5), "unweigh"),
    (dict(method="norm-only"), "photos"),
    (dict(method="norm-only", photos=["fog"], settle=3), "photographs"),
    (dict(method="pinmem", photos=["fog"]), "labels alone"),
    (dict(method="norm-only", photos=["fog"], visits="released"), "sgd"),
    (dict(begin="runs/main"), "plan_adaptation"),
    (dict(sources=["town", "city"], domains=3), "domains"),
    (dict(sources=["town", "city"], domains=1), "two"),
])
def test_contradictions_are_one_line(keywords, words):
    with pytest.raises(ValueError) as error: plan(**keywords)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_switches_from_text():
    assert dict(map(read_switch, ["tau=0.3", "prime=hat", "order=1"])) == dict(tau=0.3, prime="hat", order=1)
    for text in ("tau", "=3", ""):
        with pytest.raises(ValueError, match="NAME=VALUE"): read_switch(text)
