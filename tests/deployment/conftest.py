"""The exported model is that of the tests of prediction."""

from tests.apis.conftest import run as run  # a fixture
