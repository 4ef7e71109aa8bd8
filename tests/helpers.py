"""What several test files use."""
import importlib.util
from pathlib import Path

import pytest

REFERENCE = Path(__file__).resolve().parent / "reference"


def load_recipe():
    "The numpy module that makes every input of the reference from its name and a seed."
    spec = importlib.util.spec_from_file_location("recipe", REFERENCE / "recipe.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def complaint(kind, f, *words):
    "f() must raise `kind` with one line that holds every word; returns the line."
    with pytest.raises(kind) as caught: f()
    text = str(caught.value)
    assert '\n' not in text and len(text) > 30
    for word in words: assert str(word) in text, f'{word!r} is missing in: {text}'
    return text
