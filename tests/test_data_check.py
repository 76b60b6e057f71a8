"""`twinlens data check` finds what is there twice, what leaks, and what is broken."""

import io
import json

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from pair_data import picture, write_shards, write_tar
from twinlens.cli.main import main
from twinlens.data.check import check_data, quantiles
from twinlens.data.image import read_image
from twinlens.data.likeness import alike, groups_of, look_hashes
from twinlens.data.pairs import ShardSource, source_from_text
from twinlens.data.shards import read_shards


@pytest.fixture
def run(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["data", "check", *map(str, arguments)])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return run


def scene(seed, size=(64, 48)):
    """Blots of light as no two photos have them alike."""
    noise = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def encoded(image, suffix="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


def write_photos(folder, photos):
    """`photos`: name without suffix -> bytes, captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (data, captions) in photos.items():
        (folder / f"{name}.png").write_bytes(data)
        (folder / f"{name}.txt").write_text("\n".join(captions))
    return folder


@pytest.fixture
def photos(tmp_path):
    return write_photos(
        tmp_path / "photos",
        {
            "a": (encoded(scene(1)), ["first scene"]),
            "b": (encoded(scene(2, (128, 96))), ["second scene", "another word for it here"]),
            "copy": (encoded(scene(1)), ["first scene"]),
            "small": (encoded(scene(1, (32, 24))), ["the first, smaller"]),
            "broken": (encoded(scene(3))[:60], ["broken"]),
        },
    )


def test_figures_are_those_of_the_pictures_that_can_be_used(photos):
    report = check_data([source_from_text(str(photos))]).to_dict()["data"]
    assert report["pictures"] == 4 and report["bad"] == {"unreadable picture": 1}
    assert report["width"] == {"least": 32, "5%": 32, "median": 64, "95%": 128, "most": 128}
    assert (report["captions"], report["distinct_captions"]) == (5, 4)
    assert report["most_common_captions"][0] == ("first scene", 2)
    assert report["words_per_caption"]["most"] == 5
    assert report["same_files"] == [["a.png", "copy.png"]]
    assert report["look_alikes"] == [["a.png", "copy.png", "small.png"]]


def test_quantiles_are_values_that_occur():
    assert quantiles(np.array([1, 2, 3, 4, 100])) == {
        "least": 1,
        "5%": 1,
        "median": 3,
        "95%": 100,
        "most": 100,
    }
    assert quantiles(np.array([])) is None


def test_leaks_are_named_and_change_the_exit_code(photos, tmp_path, run):
    test = write_photos(
        tmp_path / "test",
        {
            "new": (encoded(scene(9)), ["new"]),
            "leak": (encoded(scene(2).convert("RGB"), "JPEG", quality=70), ["leak"]),
        },
    )
    code, out, _ = run(photos, "--against", test)
    assert code == 3
    assert "leaks: 1 pictures of the data look like one of --against" in out
    assert "b.png = leak.png" in out
    (test / "leak.png").unlink()
    code, out, _ = run(photos, "--against", test)
    assert code == 0 and "leaks: none" in out


def test_people_read_the_counts_and_the_first_of_each_fault(photos, run):
    code, out, err = run(photos)
    assert code == 0 and err == ""
    assert "pictures         4 usable, 1 bad" in out
    assert "1 x, first: broken.png: unreadable picture (" in out
    assert "width            64 (32 to 128)" in out
    assert "same files       1 groups\n    a.png, copy.png" in out


def test_json_names_everything(photos, run):
    code, out, _ = run(photos, "--json", "--against", photos)
    values = json.loads(out)
    assert code == 3 and len(values["leaks"]) == 10  # 3 x 3 of one scene, and b
    assert values["data"]["look_alikes"] == values["against"]["look_alikes"]


def test_tokens_are_counted_as_the_model_has_them(photos, run, own_folder):
    code, out, _ = run(photos, "--json", "--model", own_folder)
    values = json.loads(out)["data"]
    # Start and end, and a token for each word: "first scene" is 4, "another word for it here" 7.
    assert code == 0 and values["context"] == 12
    assert (values["tokens_per_caption"]["least"], values["tokens_per_caption"]["most"]) == (4, 7)
    assert values["captions_cut"] == 0


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(photos, tmp_path, run):
    (photos / "b.txt").write_text("<script>alert(1)</script>")
    page = tmp_path / "page.html"
    code, _, err = run(photos, "--html", page, "--against", photos)
    text = page.read_text()
    assert code == 3 and f"page: {page}" in err
    assert "<script" not in text and "&lt;script&gt;alert(1)" in text
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("data:image/jpeg;base64,") >= 4 + 3 + 4
    assert "Look-alikes (1 of 1 groups)" in text and "Leaks: 10" in text


def test_a_source_file_may_say_more_than_a_path(tmp_path, run):
    write_tar(tmp_path / "a.tar", [("1.png", picture(1)), ("1.json", b'{"alt": "one"}')])
    settings = {"kind": "shards", "shards": [f"{tmp_path}/a.tar"], "caption_fields": ["alt"]}
    (tmp_path / "source.json").write_text(json.dumps(settings))
    code, out, _ = run(tmp_path / "source.json")
    assert code == 0 and "1 usable, none bad" in out
    (tmp_path / "source.json").write_text('{"kind": "tape"}')
    code, _, err = run(tmp_path / "source.json")
    assert code == 1 and "kind must be one of folder, table, shards" in err


def test_what_is_not_there_is_one_sentence(tmp_path, run):
    code, _, err = run(tmp_path / "nothing")
    assert code == 1 and err.startswith("twinlens: ") and "is not there, or is no data" in err
    (tmp_path / "a.tar").write_bytes(b"")
    code, _, err = run(tmp_path / "a.tar")
    assert code == 1 and "Nothing can be read from" in err and "the file is empty" in err


# Look-alikes


def changed(image):
    """The same picture as people would still call it."""
    yield Image.open(io.BytesIO(encoded(image, "JPEG", quality=40)))
    yield image.resize((image.width // 2, image.height // 2))
    yield image.resize((image.width, image.height * 3 // 4))
    yield image.convert("L").convert("RGB")
    yield ImageEnhance.Contrast(image).enhance(1.2)


def test_changed_copies_are_alike_and_different_scenes_are_not():
    scenes = [scene(seed, (120, 90)) for seed in range(40)]
    images = [*scenes, *(view for image in scenes[:10] for view in changed(image))]
    hashes = np.array([look_hashes(image) for image in images], dtype=np.uint64)
    groups = groups_of(alike(hashes))
    assert groups == [[seed, *range(40 + 5 * seed, 45 + 5 * seed)] for seed in range(10)]


def test_all_pairs_within_the_threshold_are_found():
    random = np.random.default_rng(0)
    centres = random.integers(0, 2**63, (60, 2), dtype=np.uint64)
    hashes = np.repeat(centres, 5, axis=0)
    for row in range(len(hashes)):
        for column in range(2):
            for bit in random.integers(0, 64, row % 7):
                hashes[row, column] ^= np.uint64(1) << np.uint64(bit)
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None]).max(axis=2)
    for threshold in (0, 1, 3, 8):
        expected = np.argwhere(np.triu(distance <= threshold, 1))
        assert np.array_equal(alike(hashes, threshold), expected), threshold


def test_thousands_of_blank_pictures_are_one_group_and_not_millions_of_pairs():
    blank = look_hashes(Image.new("RGB", (50, 50), "white"))
    assert blank == look_hashes(Image.new("RGB", (9, 9), "black"))
    hashes = np.array([blank] * 20_000, dtype=np.uint64)
    pairs = alike(hashes)
    assert len(pairs) == 19_999
    assert [len(group) for group in groups_of(pairs)] == [20_000]


def test_flickr8k_has_the_one_photo_that_it_is_known_to_have_twice(shared_folder):
    """train 1027 and 1359 are the same file, as their bytes say."""
    shard = shared_folder / "data" / "flickr8k" / "train-0001.tar"
    samples = list(read_shards([shard]))
    by_bytes = {}
    for sample in samples:
        by_bytes.setdefault(sample.image, []).append(sample.key)
    copies = [[f"train-0001/{key}" for key in keys] for keys in by_bytes.values() if len(keys) > 1]
    report = check_data([ShardSource(shards=(str(shard),))]).to_dict()["data"]
    assert report["same_files"] == report["look_alikes"] == copies
    hashes = [look_hashes(read_image(sample.image)) for sample in samples[:50]]
    assert len(set(hashes)) == 50


def test_shards_are_checked_like_folders(tmp_path, run):
    write_shards(tmp_path, [3, 2])
    code, out, _ = run(f"{tmp_path}/*.tar", "--threads", 1, "--threshold", 0)
    assert code == 0 and "5 usable, none bad" in out
