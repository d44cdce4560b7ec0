"""The parts of ``mmrepmtl analyse``: one module for each kind of input."""
