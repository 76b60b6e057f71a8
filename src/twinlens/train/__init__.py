"""Losses and loops that fit two towers to pairs (extra `train`)."""

from twinlens.errors import require_package

require_package("torch", extra="train", purpose="training")
