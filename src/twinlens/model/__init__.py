"""The two towers in PyTorch (extra `train`), joined in `clip.py`."""

from twinlens.errors import require_package

require_package("torch", extra="train", purpose="building the towers in PyTorch")
