"""Scenes cut into tiles, with an index that says where each one lies and whether it is for training."""
