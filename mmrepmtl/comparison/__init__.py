"""The comparison of methods over seeds: running it, and reading what came out."""
