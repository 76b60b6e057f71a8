"""Losses and loops that fit two towers to pairs (extra `train`)."""
