#!/usr/bin/env python3
"""Rebuild the sample photographs that ship inside the package.

The photographs come from two places: Debian (bookworm) packages, which are fetched with
``apt-get download`` and unpacked with ``dpkg -x`` into a temporary folder (nothing is
installed), and the project's shared folder of photographs. Each one is turned upright,
converted to sRGB, flattened on white, made to fit MAX_SIDE and written as a JPEG without
metadata.

ATTRIBUTION.csv says what each photograph shows, who made it and under which licence. It is
kept by hand: this script checks that it names exactly the photographs listed here, with
their sources, and copies it beside them. The versions of the packages are those it was
checked against; a newer version gives a warning, since its files and licences may differ.

Where each source states the licence of its single photographs:
  endless-sky-data, lomiri-wallpapers-16.04, plasma-workspace-data: the package's copyright
    file (the last also in a .license file beside each photograph)
  gcompris-qt-data: the README beside the photographs, inside the resource bundles (the
    package's copyright file still describes older pictures of the same names)
  palapeli-data: the .desktop file beside each photograph
  python3-skimage: the notes in skimage/data/_fetchers.py
  tuxpaint-data: its AUTHORS.txt
  shared photos: captions.csv beside them

    apt-get update
    python scripts/make_samples.py --shared ../shared
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

from PIL import Image, ImageCms, ImageOps

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "src" / "twinlens" / "samples"
ATTRIBUTION = "ATTRIBUTION.csv"

MAX_SIDE = 1024
QUALITY = 84
MAX_TOTAL_BYTES = 6_000_000

SHARED = "shared"
SHARED_PHOTOS = "data/photos"

# Debian package -> the version that the selection and ATTRIBUTION.csv were checked against.
PACKAGES = {
    "endless-sky-data": "0.9.8-1.2",
    "gcompris-qt-data": "3.1-2",
    "lomiri-wallpapers-16.04": "20.04.0-2",
    "palapeli-data": "4:22.12.3-1",
    "plasma-workspace-data": "4:5.27.5-2+deb12u2",
    "python3-skimage": "0.19.3-8",
    "tuxpaint-data": "1:0.9.28-sdl2-1",
}

# (package or SHARED, folder) -> {path below the folder: file name here}. A folder that ends
# in ".rcc" is a Qt resource bundle, and the paths below it are those inside the bundle.
Selection = dict[tuple[str, str], dict[str, str]]
SELECTION: Selection = {
    ("endless-sky-data", "usr/share/games/endless-sky/images/land"): {
        "beach11-harro.jpg": "endless_sky_beach11.jpg",
        "bwerner6.jpg": "endless_sky_bwerner6.jpg",
        "dmottl4.jpg": "endless_sky_dmottl4.jpg",
        "industrial0-iridium.jpg": "endless_sky_industrial0.jpg",
        "mfield1.jpg": "endless_sky_mfield1.jpg",
        "myrabella8.jpg": "endless_sky_myrabella8.jpg",
        "sea10-sfiera.jpg": "endless_sky_sea10.jpg",
    },
    ("gcompris-qt-data", "usr/share/gcompris-qt/rcc/categorization.rcc"): {
        "categorization/resource/images/alphabets/alphabets.webp": "gcompris_alphabets.jpg",
        "categorization/resource/images/renewable/windmill13.webp": "gcompris_windmill13.jpg",
    },
    ("gcompris-qt-data", "usr/share/gcompris-qt/rcc/erase.rcc"): {
        "erase/resource/butterfly.webp": "gcompris_butterfly.jpg",
        "erase/resource/crab.webp": "gcompris_crab.jpg",
        "erase/resource/horse.webp": "gcompris_horse.jpg",
        "erase/resource/kingfisher.webp": "gcompris_kingfisher.jpg",
        "erase/resource/kitten.webp": "gcompris_kitten.jpg",
        "erase/resource/penguin.webp": "gcompris_penguin.jpg",
    },
    ("gcompris-qt-data", "usr/share/gcompris-qt/rcc/explore_monuments.rcc"): {
        "explore_monuments/resource/france/eiffelTower.webp": "gcompris_eiffel_tower.jpg",
        "explore_monuments/resource/germany/neuschwansteinCastle.webp": (
            "gcompris_neuschwanstein_castle.jpg"
        ),
        "explore_monuments/resource/wonders/colosseum.webp": "gcompris_colosseum.jpg",
    },
    ("gcompris-qt-data", "usr/share/gcompris-qt/rcc/explore_world_animals.rcc"): {
        "explore_world_animals/resource/animals/giraffe.webp": "gcompris_giraffe.jpg",
        "explore_world_animals/resource/animals/koala.webp": "gcompris_koala.jpg",
        "explore_world_animals/resource/animals/polar_bear.webp": "gcompris_polar_bear.jpg",
    },
    ("gcompris-qt-data", "usr/share/gcompris-qt/rcc/explore_world_music.rcc"): {
        "explore_world_music/resource/music/america.webp": "gcompris_america.jpg",
    },
    ("lomiri-wallpapers-16.04", "usr/share/backgrounds"): {
        "Picture_0B_by_freespace.jpg": "lomiri_picture_0b.jpg",
        "aitzgorri_by_Aitzol_Berasategi.jpg": "lomiri_aitzgorri.jpg",
        "friends_by_Aitzol_Berasategi.jpg": "lomiri_friends.jpg",
        "greentock_by_Peter_Nerlich.jpg": "lomiri_greentock.jpg",
        "life_by_Aitzol_Berasategi.jpg": "lomiri_life.jpg",
        "picosdeeuropa_by_Aitzol_Berasategi.jpg": "lomiri_picosdeeuropa.jpg",
        "seeding_by_Clements_Engelhardt.jpg": "lomiri_seeding.jpg",
    },
    ("palapeli-data", "usr/share/palapeli/collection"): {
        "cincinnati-bridge.jpg": "palapeli_cincinnati_bridge.jpg",
        "citrus-fruits.jpg": "palapeli_citrus_fruits.jpg",
        "european-honey-bee.jpg": "palapeli_european_honey_bee.jpg",
    },
    ("plasma-workspace-data", "usr/share/plasma/avatars/photos"): {
        "Air Balloon.png": "plasma_air_balloon.jpg",
        "Books.png": "plasma_books.jpg",
        "Cat.png": "plasma_cat.jpg",
        "Cocktail.png": "plasma_cocktail.jpg",
        "Dog.png": "plasma_dog.jpg",
        "Fish.png": "plasma_fish.jpg",
        "Owl.png": "plasma_owl.jpg",
        "Pancakes.png": "plasma_pancakes.jpg",
        "Parrot.png": "plasma_parrot.jpg",
        "Pencils.png": "plasma_pencils.jpg",
        "Shuttle.png": "plasma_shuttle.jpg",
        "Soccer.png": "plasma_soccer.jpg",
        "Sunflower.png": "plasma_sunflower.jpg",
        "Sushi.png": "plasma_sushi.jpg",
    },
    ("python3-skimage", "usr/lib/python3/dist-packages/skimage/data"): {
        "coffee.png": "skimage_coffee.jpg",
    },
    (SHARED, SHARED_PHOTOS): {
        "clothing_32662cf1-4440-459c-b55c-0ba39b71f768.jpg": "shared_clothing_32662cf1.jpg",
        "clothing_41e13fef-86f5-40cb-807f-84adde1ba3d2.jpg": "shared_clothing_41e13fef.jpg",
        "clothing_44640d54-24a3-4479-b33f-56bc476376da.jpg": "shared_clothing_44640d54.jpg",
        "clothing_4ac3d6f0-a7e6-4197-899f-d3a65ae1ba7d.jpg": "shared_clothing_4ac3d6f0.jpg",
        "clothing_ec6e46ad-9be8-482d-b67a-8371bbf43326.jpg": "shared_clothing_ec6e46ad.jpg",
        "clothing_fe0ae2fe-9910-4f3f-a7ab-3b6400c9e0b2.jpg": "shared_clothing_fe0ae2fe.jpg",
        "dreambooth_backpack_dog_02.jpg": "shared_backpack_dog_02.jpg",
        "dreambooth_dog3_01.jpg": "shared_dog3_01.jpg",
        "dreambooth_duck_toy_01.jpg": "shared_duck_toy_01.jpg",
        "dreambooth_monster_toy_03.jpg": "shared_monster_toy_03.jpg",
        "dreambooth_rc_car_02.jpg": "shared_rc_car_02.jpg",
        "dreambooth_robot_toy_02.jpg": "shared_robot_toy_02.jpg",
    },
    ("tuxpaint-data", "usr/share/tuxpaint/starters"): {
        "reef-back.png": "tuxpaint_reef.jpg",
        "skyline-sf-dusk-back.jpeg": "tuxpaint_skyline_sf_dusk.jpg",
    },
}


def source_line(origin: str, folder: str, path: str) -> str:
    """What the CSV's source column says of one photograph."""
    name = "shared photos" if origin == SHARED else f"Debian {origin} {PACKAGES[origin]}"
    return f"{name}: {folder}/{path}"


def check_attribution(table: Path) -> None:
    """Raise ValueError unless the CSV lists exactly the selected photographs and sources."""
    wanted = {
        name: source_line(origin, folder, path)
        for (origin, folder), paths in SELECTION.items()
        for path, name in paths.items()
    }
    with table.open(encoding="utf-8", newline="") as lines:
        listed = {row["file"]: row["source"] for row in csv.DictReader(lines)}
    differing = sorted(
        name for name in wanted.keys() | listed.keys() if wanted.get(name) != listed.get(name)
    )
    if differing:
        raise ValueError(f"{table.name} and the selection differ at: {', '.join(differing)}")


def unpack_package(package: str, folder: Path) -> Path:
    """Download one Debian package and unpack it below the folder; return where it lies."""
    downloads = folder / "debs" / package
    downloads.mkdir(parents=True)
    subprocess.run(["apt-get", "download", "-qq", package], cwd=downloads, check=True)
    (deb,) = downloads.glob("*.deb")
    version = subprocess.run(
        ["dpkg-deb", "--field", str(deb), "Version"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if version != PACKAGES[package]:
        print(f"warning: {package} is {version}, checked was {PACKAGES[package]}", file=sys.stderr)
    target = folder / "unpacked" / package
    target.mkdir(parents=True)
    subprocess.run(["dpkg", "-x", str(deb), str(target)], check=True)
    return target


def read_bundle(bundle: bytes) -> dict[str, bytes]:
    """Return the files of a Qt resource bundle (.rcc), stored plain or with zlib, by path."""
    if bundle[:4] != b"qres":
        raise ValueError("not a Qt resource bundle")
    version, tree, data, names = struct.unpack(">4I", bundle[4:20])
    node_size = 22 if version >= 2 else 14  # from version 2 on, a time stamp ends each node
    files: dict[str, bytes] = {}

    def walk(node: int, parents: tuple[str, ...]) -> None:
        start = tree + node * node_size
        name_offset, flags, first, second = struct.unpack(">IHII", bundle[start : start + 14])
        here = parents
        if node:
            start = names + name_offset
            (length,) = struct.unpack(">H", bundle[start : start + 2])
            name = bundle[start + 6 : start + 6 + 2 * length].decode("utf-16-be")
            here = (*parents, name)
        if flags & 2:  # a folder: number of children, first child
            for child in range(second, second + first):
                walk(child, here)
            return
        start = data + second
        (length,) = struct.unpack(">I", bundle[start : start + 4])
        content = bundle[start + 4 : start + 4 + length]
        files["/".join(here)] = zlib.decompress(content[4:]) if flags & 1 else content

    walk(0, ())
    return files


def read_photos(folder: Path, paths: list[str]) -> list[bytes]:
    """Read the named files of a folder, or of a resource bundle."""
    if folder.suffix != ".rcc":
        return [(folder / path).read_bytes() for path in paths]
    files = read_bundle(folder.read_bytes())
    return [files[f"gcompris/src/activities/{path}"] for path in paths]


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB in the sRGB colour space."""
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGB", "RGBA"):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB")) or image
    return image.convert("RGB")


def encode(photo: bytes) -> bytes:
    """Return the photograph as a plain JPEG: upright, sRGB, on white, small, no metadata."""
    with Image.open(io.BytesIO(photo)) as opened:
        image = ImageOps.exif_transpose(opened)
    if image.mode in ("LA", "P", "PA"):
        image = image.convert("RGBA")
    plain = Image.new("RGB", image.size, "white")
    plain.paste(to_srgb(image), mask=image.getchannel("A") if image.mode == "RGBA" else None)
    plain.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    plain.save(encoded, "JPEG", quality=QUALITY, optimize=True, progressive=True)
    return encoded.getvalue()


def make_samples(shared: Path, out: Path) -> int:
    """Write all the photographs and the attribution table into out; return their bytes."""
    check_attribution(SAMPLES / ATTRIBUTION)
    out.mkdir(parents=True, exist_ok=True)
    total = 0
    with tempfile.TemporaryDirectory() as scratch:
        roots = {package: unpack_package(package, Path(scratch)) for package in PACKAGES}
        roots[SHARED] = shared
        for (origin, folder), paths in SELECTION.items():
            photos = read_photos(roots[origin] / folder, list(paths))
            for name, photo in zip(paths.values(), photos, strict=True):
                encoded = encode(photo)
                (out / name).write_bytes(encoded)
                total += len(encoded)
    if out.resolve() != SAMPLES.resolve():
        shutil.copyfile(SAMPLES / ATTRIBUTION, out / ATTRIBUTION)
    return total


def main() -> int:
    """Run from the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Rebuild the folder of sample photographs.")
    parser.add_argument(
        "--shared", type=Path, default=ROOT.parent / "shared", help="the shared folder"
    )
    parser.add_argument("--out", type=Path, default=SAMPLES, help="where to write")
    arguments = parser.parse_args()
    total = make_samples(arguments.shared, arguments.out)
    count = sum(len(paths) for paths in SELECTION.values())
    print(f"{count} photographs, {total / 1e6:.2f} MB")
    if total > MAX_TOTAL_BYTES:
        print(f"error: more than {MAX_TOTAL_BYTES / 1e6:.1f} MB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
