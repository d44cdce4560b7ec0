import gc

import pytest

# Their assertions are to be as readable as those of a test.
pytest.register_assert_rewrite('tests.distributed.harness', 'tests.methods.aggregator_properties')


def pytest_collection_finish() -> None:
    """mmengine's data sets collect garbage when they are built: 0.4 s or more each time, for all that was imported."""
    gc.freeze()
