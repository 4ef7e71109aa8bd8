"""Marks that the tests use, and one thread a process: two threads that wait for each other cost far more than they save."""
import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
pytest.register_assert_rewrite("helpers")


def pytest_configure(config):
    config.addinivalue_line("markers", "xdist_group: tests that run in the same process")
    config.addinivalue_line("markers", "report: looks at the report that a run of the command writes")
    config.addinivalue_line("markers", "browser: needs chromium, playwright, voila and jupyterlab; skipped without them")


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the marks
def pytest_collection_modifyitems(items):
    "Tests of one file share what they prepare, so they stay in one process; notebooks go wherever there is time."
    for item in items:
        if item.path.stem != "test_notebooks": item.add_marker(pytest.mark.xdist_group(item.path.stem))
