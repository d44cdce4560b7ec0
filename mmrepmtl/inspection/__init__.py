"""What a config and its data hold, looked at before a training: checks and pictures."""
