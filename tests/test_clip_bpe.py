"""CLIP's own tokenizer: the references' ids, and nobody's text ends where a user says so."""

import html
import json
import random
import time
from pathlib import Path

import ftfy
import numpy as np
import pytest

from twinlens.data.cleaning import Cleaning, clean
from twinlens.data.clip_bpe import (
    ClipBpeTokenizer,
    Specials,
    clip_vocabulary,
    read_clip_vocabulary,
    read_merges_vocabulary,
)
from twinlens.errors import ConfigError

START, END = 49406, 49407
NAMES = ("<start_of_text>", "<end_of_text>", "<|startoftext|>", "<|endoftext|>")


@pytest.fixture(scope="module")
def clip() -> ClipBpeTokenizer:
    return ClipBpeTokenizer(clip_vocabulary())


def tokenizer(context: int, specials: Specials, cleaning: Cleaning = "clip") -> ClipBpeTokenizer:
    return ClipBpeTokenizer(
        clip_vocabulary(),
        context,
        specials=specials,
        cleaning=cleaning,
    )


@pytest.fixture(scope="module")
def texts(shared_folder: Path) -> list[str]:
    path = shared_folder / "golden" / "tokenizer" / "texts.json"
    found: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def expected(shared_folder: Path) -> dict[str, np.ndarray]:
    with np.load(shared_folder / "golden" / "tokenizer" / "expected.npz") as arrays:
        return dict(arrays)


# --- without any file but the package's own ---


def test_a_well_known_caption_has_its_published_ids(clip: ClipBpeTokenizer) -> None:
    # From the README of openai/CLIP: "a diagram", "a dog", "a cat".
    rows = clip(["a diagram", "a dog", "a cat"])
    assert rows.shape == (3, 77) and rows.dtype == np.int64
    assert rows[:, :5].tolist() == [
        [START, 320, 22697, END, 0],
        [START, 320, 1929, END, 0],
        [START, 320, 2368, END, 0],
    ]


@pytest.mark.parametrize("name", [*NAMES, "<|ENDOFTEXT|>", "&lt;end_of_text&gt;"])
def test_special_tokens_typed_by_a_user_are_text(clip: ClipBpeTokenizer, name: str) -> None:
    ids = clip.encode(f"a dog {name} a cat")
    assert ids[0] == START and ids[-1] == END
    assert all(number < START for number in ids[1:-1])
    assert ids[1:3] == [320, 1929] and ids[-3:-1] == [320, 2368] and len(ids) > 8


def test_each_reference_finds_its_own_special_tokens_alone() -> None:
    text = " ".join(NAMES)
    assert tokenizer(77, "open_clip").encode(text)[1:3] == [START, END]
    assert END not in tokenizer(77, "open_clip").encode(NAMES[3])[1:-1]
    assert tokenizer(77, "openai").encode(text)[-3:-1] == [START, END]
    assert END not in tokenizer(77, "openai").encode(NAMES[1])[1:-1]


def test_a_long_text_keeps_its_end_token_and_says_what_was_kept() -> None:
    short = tokenizer(6, "text")
    assert short(["a dog and a cat"])[0].tolist() == [START, 320, 1929, 537, 320, END]
    assert short.kept_text("A dog  and a cat.") == "A dog  and a"
    assert short.kept_text("A dog &amp; a cat") == "A dog &amp; a"
    assert short.kept_text("a dog and a") == "a dog and a"
    assert short.kept_text("floccinaucinihilipilification") == ""


def test_chunks_hold_everything_and_part_between_words() -> None:
    short = tokenizer(5, "text")
    text = "a dog and a cat by the antidisestablishmentarianism"
    chunks = short.chunks(text)
    assert all(chunk[0] == START and chunk[-1] == END and len(chunk) <= 5 for chunk in chunks)
    assert [START, *(i for chunk in chunks for i in chunk[1:-1]), END] == short.encode(text)
    assert chunks[0] == [START, 320, 1929, 537, END]
    assert short.chunks("") == [[START, END]]


def test_texts_share_the_longest_width_unless_the_tower_needs_all(clip: ClipBpeTokenizer) -> None:
    pieces = [clip.encode("a dog"), clip.encode("a")]
    assert clip.pad(pieces).tolist() == [[START, 320, 1929, END], [START, 320, END, 0]]
    full = ClipBpeTokenizer(clip_vocabulary(), 16, pad_id=END, pad_to_context=True)
    assert full.pad(pieces).shape == (2, 16) and full.pad(pieces)[1, 3:].tolist() == [END] * 13
    assert full.pad([]).shape == (0, 16)


def test_texts_from_broken_file_names_have_ids_too(clip: ClipBpeTokenizer) -> None:
    assert clip.encode("a \udcff dog") == clip.encode("a \ufffd dog")
    plain = tokenizer(77, "text", cleaning="nfc")
    assert plain.encode("a \udcff dog") == plain.encode("a \ufffd dog")


def test_a_word_of_many_letters_takes_no_quadratic_time(clip: ClipBpeTokenizer) -> None:
    begin = time.perf_counter()
    assert len(clip.encode("abcdefgh" * 10_000)) > 10_000
    assert time.perf_counter() - begin < 10  # 0.4 s here; quadratic would be an hour


def test_the_cache_of_words_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twinlens.data.clip_bpe._CACHED_WORDS", 10)
    fresh = tokenizer(77, "text")
    for number in range(200):
        fresh.encode(f"word{'x' * number} a dog")
    assert len(fresh._ids_of_word) <= 10
    assert fresh.encode("a dog") == [START, 320, 1929, END]


def test_plain_text_is_not_changed_by_the_repair_that_it_skips() -> None:
    generator = random.Random(0)
    printable = [chr(code) for code in range(32, 127) if chr(code) != "&"]
    for _ in range(3000):
        text = "".join(generator.choices(printable, k=generator.randrange(40)))
        repaired = html.unescape(html.unescape(ftfy.fix_text(text)))
        assert clean(text, "whitespace") == " ".join(repaired.split()), ascii(text)


def test_each_cleaning_does_what_its_name_says() -> None:
    text = "  A_dog&amp;amp;a Cat\u2019s\ncafÃ©!  "
    assert clean(text, "none") == text
    assert clean(text, "whitespace") == "A_dog&a Cat's café!"
    assert clean(text, "clip") == "a_dog&a cat's café!"
    assert clean(text, "canonicalize") == "a doga cats café"
    assert clean("A_dog's  café!", "siglip") == "adogs café"
    assert clean("A  Dog ΟΔΟΣ", "lower") == "a  dog οδοσ"
    assert clean("e\u0301 \t A", "nfc") == "\u00e9 a"


# --- vocab.json and merges.txt: a vocabulary to check by eye ---

MERGES = ["#version: 0.2", "d o", "do g</w>", "c a", "ca t</w>"]
TOKENS = ["!", "d", "o", "g", "c", "a", "t", "a</w>", "g</w>", "t</w>"]
TOKENS += ["do", "dog</w>", "ca", "cat</w>", "<s>", "</s>"]


def toy(folder: Path, unknown: str | None = None) -> ClipBpeTokenizer:
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(TOKENS)}))
    (folder / "merges.txt").write_text("\n".join(MERGES) + "\n", encoding="utf-8")
    paths = folder / "vocab.json", folder / "merges.txt"
    return ClipBpeTokenizer(
        read_merges_vocabulary(*paths, "<s>", "</s>", unknown), 8, cleaning="nfc"
    )


def test_another_vocabulary_of_merges_is_read(tmp_path: Path) -> None:
    assert toy(tmp_path).encode("A dog, cat dot") == [14, 7, 11, 13, 10, 9, 15]


def test_bytes_that_a_vocabulary_lacks_become_unknown_but_never_the_end(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    assert toy(tmp_path, unknown="</s>").encode("a zebra dog") == [14, 7, 7, 11, 15]
    assert toy(tmp_path / "b", unknown="!").encode("a z dog") == [14, 7, 0, 11, 15]


def test_unusable_vocabularies_are_named(tmp_path: Path) -> None:
    (tmp_path / "cut.txt.gz").write_bytes(b"no gzip")
    with pytest.raises(ConfigError, match=r"cut\.txt\.gz: not a readable vocabulary"):
        read_clip_vocabulary(tmp_path / "cut.txt.gz")
    toy(tmp_path)
    vocab, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    with pytest.raises(ConfigError, match=r"lacks <\|startoftext\|>.*bos_token"):
        read_merges_vocabulary(vocab, merges, "<|startoftext|>", "</s>", None)
    merges.write_text("d o\no x\n")
    with pytest.raises(ConfigError, match=r"lacks 'x', which the merges need"):
        read_merges_vocabulary(vocab, merges, "<s>", "</s>", None)
    merges.write_text("d o g\n")
    with pytest.raises(ConfigError, match=r"'d o g' is not a merge of two tokens"):
        read_merges_vocabulary(vocab, merges, "<s>", "</s>", None)
    with pytest.raises(ConfigError, match=r"gone\.txt: not a readable list of merges"):
        read_merges_vocabulary(vocab, tmp_path / "gone.txt", "<s>", "</s>", None)
    vocab.write_text("[]")
    with pytest.raises(ConfigError, match="must be a JSON object"):
        read_merges_vocabulary(vocab, merges, "<s>", "</s>", None)


# --- against the stored ids of both references ---


@pytest.mark.parametrize(
    ("array", "context", "specials", "cleaning"),
    [
        ("ids_77", 77, "open_clip", "clip"),
        ("ids_32", 32, "open_clip", "clip"),
        ("ids_77_clean_canonicalize", 77, "open_clip", "canonicalize"),
        ("openai_ids_77", 77, "openai", "clip"),
    ],
)
def test_stored_texts_give_each_references_ids(
    texts: list[str],
    expected: dict[str, np.ndarray],
    array: str,
    context: int,
    specials: Specials,
    cleaning: Cleaning,
) -> None:
    ids = tokenizer(context, specials, cleaning)(texts)
    assert len(texts) >= 300
    np.testing.assert_array_equal(ids, expected[array])


def test_whole_encodings_are_the_references(
    texts: list[str], expected: dict[str, np.ndarray]
) -> None:
    inner = [tokenizer(77, "open_clip").encode(text)[1:-1] for text in texts]
    assert [len(ids) for ids in inner] == expected["full_lengths"].tolist()
    assert [number for ids in inner for number in ids] == expected["full_ids_flat"].tolist()


def test_without_special_names_the_default_gives_both_references_ids(
    clip: ClipBpeTokenizer, texts: list[str], expected: dict[str, np.ndarray]
) -> None:
    names = {"ids_77": NAMES[:2], "openai_ids_77": NAMES[2:]}
    for array, own in names.items():
        plain = [i for i, t in enumerate(texts) if not any(n in clean(t, "clip") for n in own)]
        assert len(plain) >= 250
        np.testing.assert_array_equal(clip(texts)[plain], expected[array][plain])


def test_the_default_has_start_only_first_and_end_only_last(
    clip: ClipBpeTokenizer, texts: list[str]
) -> None:
    for text in texts:
        ids = clip.encode(text)
        assert (ids[0], ids[-1]) == (START, END)
        assert max(ids[1:-1], default=0) < START, ascii(text)


def test_what_is_kept_of_stored_texts_has_the_first_ids(
    clip: ClipBpeTokenizer, texts: list[str]
) -> None:
    short = tokenizer(12, "text")
    unrepaired = 0
    for text in texts:
        kept = short.kept_text(text)
        inner = short.encode(kept)[1:-1]
        assert text.startswith(kept) and len(inner) <= 10, ascii(text)
        # ftfy looks at the whole text before it repairs a part, so a beginning may differ.
        if clean(text, "clip") == " ".join(text.split()).lower():
            unrepaired += 1
            assert inner == clip.encode(text)[1:-1][: len(inner)], ascii(text)
    assert unrepaired > 100
