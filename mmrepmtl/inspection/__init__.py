"""Checks and pictures of a config and its data, before a training."""
