"""Labelled and captioned pictures in Parquet files, as Hugging Face datasets writes them.

A picture is a struct {bytes, path} (or a path below the file's folder); a label column's class
names stand in the schema's metadata under `huggingface`. The pictures' bytes are unpacked row
group by row group when they are asked for; the other columns are read at once.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from twinlens.data.image import ImageSource
from twinlens.data.tables import IMAGE_FIELDS
from twinlens.errors import ConfigError, require_package
from twinlens.evaluate.class_names import ClassList
from twinlens.evaluate.items import LABEL_FIELDS, Found, Item, item_of
from twinlens.evaluate.pictures import GroupedRows


def open_parquet(paths: Sequence[Path], name: str, *, classes: ClassList | None) -> Found:
    """Everything in these files, which must have the same columns."""
    files = [_open(path) for path in paths]
    field = _image_field(paths[0], files[0])
    features = _features(files[0])
    items: list[Item] = []
    groups: list[tuple[Path, int]] = []
    sizes: list[int] = []
    for path, file in zip(paths, files, strict=True):
        for number, row in enumerate(_words(path, file, field)):
            items.append(item_of(row, _identity(path, number, row[field]), len(items)))
        for group in range(file.metadata.num_row_groups):
            groups.append((path, group))
            sizes.append(file.metadata.row_group(group).num_rows)
    label = next((f for f in LABEL_FIELDS if _class_names(features.get(f))), None)
    if classes is None and label is not None:
        names = _class_names(features[label])
        classes = ClassList(f"the schema of {paths[0].name}", tuple((n,) for n in names), ())
    unpack = partial(_unpack, groups, field)
    return Found(
        name=name,
        images=GroupedRows(sizes, unpack),
        items=items,
        classes=classes,
        root=str(paths[0].parent),
    )


def _open(path: Path) -> Any:
    require_package("pyarrow", extra="evaluate", purpose="reading Parquet")
    import pyarrow  # type: ignore[import-untyped,unused-ignore]
    from pyarrow import parquet  # type: ignore[import-untyped,unused-ignore]

    try:
        return parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{path} is not a readable Parquet file: {error}") from error


def _image_field(path: Path, file: Any) -> str:
    names = file.schema_arrow.names
    for field in IMAGE_FIELDS:
        if field in names:
            return field
    raise ConfigError(
        f"{path} has no column for the pictures ({', '.join(IMAGE_FIELDS[:3])}, ...). "
        f"It has {', '.join(map(repr, names))}."
    )


def _features(file: Any) -> Mapping[str, Any]:
    """What datasets wrote about the columns; empty where another program wrote the file."""
    try:
        text = (file.schema_arrow.metadata or {})[b"huggingface"]
        features = json.loads(text)["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _class_names(feature: Any) -> list[str]:
    names = feature.get("names") if isinstance(feature, dict) else None
    return [str(name).replace("_", " ") for name in names] if isinstance(names, list) else []


def _words(path: Path, file: Any, field: str) -> list[dict[str, Any]]:
    """All columns but the pictures' bytes, row by row; the picture's path stays as `field`."""
    import pyarrow

    columns = [name for name in file.schema_arrow.names if name != field]
    kind = file.schema_arrow.field(field).type
    is_struct = pyarrow.types.is_struct(kind)
    if is_struct and any(child.name == "path" for child in kind):
        columns.append(f"{field}.path")
    elif pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        columns.append(field)
    try:
        rows: list[dict[str, Any]] = file.read(columns=columns).to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
    for row in rows:
        picture = row.get(field)
        row[field] = picture.get("path") if isinstance(picture, dict) else picture
    return rows


def _identity(path: Path, number: int, own: Any) -> str:
    """The row's number keeps it unique; the picture's own name says more to a person."""
    return f"{path.stem}/{number}" + (f"/{own}" if isinstance(own, str) and own else "")


def _unpack(groups: Sequence[tuple[Path, int]], field: str, number: int) -> list[ImageSource]:
    """The pictures of one row group; b"" for a row without one."""
    import pyarrow

    path, group = groups[number]
    file = _open(path)
    try:
        values = file.read_row_group(group, columns=[field]).column(field).to_pylist()
    except (OSError, pyarrow.ArrowException):
        return [b""] * int(file.metadata.row_group(group).num_rows)
    return [_picture(value, path.parent) for value in values]


def _picture(value: Any, folder: Path) -> ImageSource:
    if isinstance(value, dict):
        if isinstance(value.get("bytes"), bytes):
            return bytes(value["bytes"])
        value = value.get("path")
    if isinstance(value, bytes):
        return value
    return folder / value if isinstance(value, str) else b""
