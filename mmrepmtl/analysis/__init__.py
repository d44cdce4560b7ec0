"""Looking at trained models; nothing of training depends on it."""
