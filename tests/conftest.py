"""Marks that the tests use."""
import pytest

pytest.register_assert_rewrite("helpers")


def pytest_configure(config):
    config.addinivalue_line("markers", "browser: needs chromium, playwright, voila and jupyterlab; skipped without them")
