"""Lists a zip archive of weights and says where each part's bytes lie in the file.

The standard zipfile reads the directory; this adds what hostile and damaged archives need:
parts that overlap, repeat, are encrypted or lie on another disk are refused, so that nothing
read from an archive is larger than the archive, unless it is compressed, which is for the
caller to allow part by part. Knows nothing of tensors.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

from twinlens.errors import CheckpointMismatch

LOCAL_HEADER = b"PK\x03\x04"
LOCAL_HEADER_SIZE = 30  # bytes, before name and extra field
END_HEADER_SIZE = 22  # bytes, before the comment
ENCRYPTED = 0x1
# A compressed part may grow to this times the archive's size plus a floor. Weights hardly
# compress; what grows a thousandfold is a bomb.
MAX_GROWTH = 16
GROWTH_FLOOR = 16 * 2**20  # bytes
READ_BYTES = 2**20


@dataclass(frozen=True)
class ZipEntry:
    """One part of an archive; sizes and places in bytes."""

    name: str
    start: int  # of its content, in the file
    stored_size: int
    size: int  # once unpacked
    compressed: bool
    info: zipfile.ZipInfo


@dataclass(frozen=True)
class ZipIndex:
    """The parts of one archive, by name."""

    path: Path
    entries: dict[str, ZipEntry]

    def stored_range(self, entry: ZipEntry) -> tuple[int, int]:
        """First byte of an uncompressed part in the file, and the one behind its last."""
        if entry.compressed:
            raise CheckpointMismatch(
                f"{self.path} was compressed after it was saved, so its numbers cannot be mapped. "
                f"Unpack it and zip it without compression, or save the weights again."
            )
        return entry.start, entry.start + entry.size

    def read(self, entry: ZipEntry) -> bytearray:
        """The content of one part, unpacked; a compressed part must match its checksum."""
        if not entry.compressed:
            # Not through zipfile: torch.save may be told to leave the checksums out.
            with self.path.open("rb") as file:
                file.seek(entry.start)
                return bytearray(file.read(entry.size))
        check_growth(self.path, entry.size)
        content = bytearray()
        with zipfile.ZipFile(self.path) as archive, archive.open(entry.info) as stream:
            while part := stream.read(READ_BYTES):
                content += part
        if len(content) != entry.size:
            raise damaged(self.path, f"its part {entry.name!a} ends too early")
        return content


def open_zip(path: Path) -> ZipIndex:
    """List the parts. Raises CheckpointMismatch unless each is plainly there, once."""
    entries: dict[str, ZipEntry] = {}
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            size = path.stat().st_size
            file.seek(size - END_HEADER_SIZE - len(archive.comment))
            end = file.read(END_HEADER_SIZE)
            # 0xFFFF: the true number is in the zip64 record, which zipfile checks itself.
            if any(end[at : at + 2] not in (b"\0\0", b"\xff\xff") for at in (4, 6)):
                raise damaged(path, "it is one of several volumes of a zip archive")
            reached = 0
            for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
                if info.flag_bits & ENCRYPTED:
                    raise CheckpointMismatch(
                        f"{path} is an encrypted zip archive. Unpack it with its password first."
                    )
                if info.volume or info.filename in entries or info.header_offset < reached:
                    raise damaged(path, f"its part {info.filename!a} overlaps or repeats another")
                file.seek(info.header_offset)
                header = file.read(LOCAL_HEADER_SIZE)
                if len(header) < LOCAL_HEADER_SIZE or header[:4] != LOCAL_HEADER:
                    raise damaged(path, f"its part {info.filename!a} is not where it should be")
                name_size = int.from_bytes(header[26:28], "little")
                extra_size = int.from_bytes(header[28:30], "little")
                start = info.header_offset + LOCAL_HEADER_SIZE + name_size + extra_size
                reached = start + info.compress_size
                compressed = info.compress_type != zipfile.ZIP_STORED
                if reached > archive.start_dir or not (
                    compressed or info.file_size == info.compress_size
                ):
                    raise damaged(path, f"its part {info.filename!a} claims a wrong size")
                entries[info.filename] = ZipEntry(
                    info.filename, start, info.compress_size, info.file_size, compressed, info
                )
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
        raise damaged(path, f"as a zip archive, {error}") from error
    return ZipIndex(path, entries)


def check_growth(path: Path, size: int) -> None:
    """Refuse to unpack `size` bytes out of a far smaller file."""
    if size > MAX_GROWTH * path.stat().st_size + GROWTH_FLOOR:
        raise CheckpointMismatch(
            f"{path} would unpack to {size:,} bytes, more than {MAX_GROWTH} times its own size, "
            f"which weights never do. Use a file from a source you trust."
        )


def damaged(path: Path, reason: str) -> CheckpointMismatch:
    """The error for a file that is not what its maker wrote."""
    return CheckpointMismatch(
        f"{path} is cut short or damaged: {reason}. Copy or download it again."
    )
