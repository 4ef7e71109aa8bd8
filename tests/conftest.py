"""Marks that the tests use, and one thread a process: two threads that wait for each other cost far more than they save."""
import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
pytest.register_assert_rewrite("helpers")


def pytest_configure(config):
    config.addinivalue_line("markers", "browser: needs chromium, playwright, voila and jupyterlab; skipped without them")
