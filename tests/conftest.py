import gc


def pytest_collection_finish() -> None:
    """mmengine's data sets collect garbage when they are built: 0.4 s or more each time, for all that was imported."""
    gc.freeze()
