"""The two towers in PyTorch (extra `train`), joined in `clip.py`."""
