"""twinlens: pictures and words in one space.

>>> import twinlens
>>> photos = twinlens.index("photos/")
>>> for hit in photos.search("a red sunset over the ocean"): print(hit.score, hit.path)

Importing this package loads nothing else; each public name is fetched when first used.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twinlens.embed import Embedder as Embedder
    from twinlens.runtime.load import load_model as load_model
    from twinlens.runtime.load import load_preprocess as load_preprocess
    from twinlens.runtime.load import load_tokenizer as load_tokenizer
    from twinlens.search.photos import Hit as Hit
    from twinlens.search.photos import PhotoIndex as PhotoIndex
    from twinlens.search.photos import index as index

__version__ = "0.1.0"

SAMPLES = Path(__file__).parent / "samples"
"""The sample photos that ship with the package; licences in ATTRIBUTION.csv beside them."""

_PUBLIC = {
    "Embedder": "twinlens.embed",
    "Hit": "twinlens.search.photos",
    "PhotoIndex": "twinlens.search.photos",
    "index": "twinlens.search.photos",
    "load_model": "twinlens.runtime.load",
    "load_preprocess": "twinlens.runtime.load",
    "load_tokenizer": "twinlens.runtime.load",
}

__all__ = [
    "SAMPLES",
    "Embedder",
    "Hit",
    "PhotoIndex",
    "__version__",
    "index",
    "load_model",
    "load_preprocess",
    "load_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'twinlens' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
