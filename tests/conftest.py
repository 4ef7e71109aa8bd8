"""Marks that the tests use."""


def pytest_configure(config):
    config.addinivalue_line("markers", "browser: needs chromium, playwright, voila and jupyterlab; skipped without them")
