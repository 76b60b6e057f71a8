"""Reads the arrays of a NumPy .npz file, as big_vision publishes its models.

NumPy's own reader allocates what an array's header claims before it looks whether the file
has that much; this one compares first. Objects are never unpickled.
"""

import io
import math
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from numpy.lib import format as npy
from torch import Tensor

from twinlens.errors import CheckpointMismatch
from twinlens.model.zip_file import ZipEntry, ZipIndex, check_growth, damaged

SUFFIX = ".npy"
PARAMETERS = "params/"  # the weights' branch of a training state; the optimizer's is "opt/"
NUMBERS = "biuf"  # NumPy's kind letters
TEXT = "SU"
# NumPy does not know bfloat16: JAX's arrays arrive as two bytes without meaning.
BFLOAT16_KIND = "V"
HEADER_BYTES = 2**14  # more than NumPy's own limit of 10,000 for a header


def read_npz(path: Path, archive: ZipIndex) -> dict[str, Tensor]:
    """Every array by its name, in the file's dtype; texts are left out.

    Where names start with "params/" only those are read, and the prefix is taken off.
    """
    entries = [entry for name, entry in archive.entries.items() if name.endswith(SUFFIX)]
    check_growth(path, sum(entry.size for entry in entries))
    tensors = {}
    if any(entry.name.startswith(PARAMETERS) for entry in entries):
        entries = [entry for entry in entries if entry.name.startswith(PARAMETERS)]
    for entry in entries:
        tensor = _read_array(path, archive, entry)
        if tensor is not None:
            tensors[entry.name.removesuffix(SUFFIX).removeprefix(PARAMETERS)] = tensor
    return tensors


def _read_array(path: Path, archive: ZipIndex, entry: ZipEntry) -> Tensor | None:
    content = archive.read(entry)
    header = io.BytesIO(content[:HEADER_BYTES])
    try:
        version = npy.read_magic(header)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        shape, fortran_order, dtype = read_header[version](header)
    except (KeyError, ValueError, SyntaxError, TypeError, TokenError) as error:
        raise damaged(path, f"its part {entry.name!a} has no array header") from error
    if dtype.kind in TEXT:
        return None
    is_bfloat16 = dtype.kind == BFLOAT16_KIND and dtype.itemsize == 2 and dtype.names is None
    if dtype.kind not in NUMBERS and not is_bfloat16:
        raise CheckpointMismatch(
            f"{path} holds {entry.name!a} as Python objects or records ({str(dtype)[:60]}), not "
            f"numbers; they were not read. Save it again as plain arrays."
        )
    num_items = math.prod(shape)
    if min(shape, default=0) < 0 or num_items * dtype.itemsize != entry.size - header.tell():
        raise damaged(path, f"its part {entry.name!a} claims shape {str(shape)[:60]}")
    numbers = np.frombuffer(
        content, np.dtype("<i2") if is_bfloat16 else dtype, offset=header.tell()
    )
    array = numbers.reshape(shape, order="F" if fortran_order else "C")
    if array.dtype == np.longdouble and array.dtype != np.float64:
        raise CheckpointMismatch(f"{path} holds {entry.name!a} as {dtype}. Save it as float32.")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    # The header need not leave the numbers aligned.
    tensor = torch.from_numpy(array if array.flags.aligned else array.copy())
    return tensor.view(torch.bfloat16) if is_bfloat16 else tensor
