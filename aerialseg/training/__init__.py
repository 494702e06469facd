"""Fitting a network to tiles: crops in, a model file out."""
