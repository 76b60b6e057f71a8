"""Captions become the ids that BERT's own tokenizer gives, and long ones are cut knowingly."""

import json
import random
import tarfile
import unicodedata
from pathlib import Path

import pytest

from twinlens.data import tokenizer as tokenizer_module
from twinlens.data.wordpiece import WordPieceTokenizer
from twinlens.errors import ConfigError

VOCAB = Path(tokenizer_module.__file__).parent.parent / "models" / "mini" / "vocab.txt"
SHARED = Path(__file__).parent.parent.parent / "shared"
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# Ids are line numbers, so a reader can check the tests by eye.
TOY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "##s", "run", "##ning", ",", "[", "]", "sep"]


@pytest.fixture
def toy(tmp_path: Path) -> WordPieceTokenizer:
    return toy_tokenizer(tmp_path, context=8)


def toy_tokenizer(folder: Path, context: int) -> WordPieceTokenizer:
    (folder / "vocab.txt").write_text("\n".join(TOY) + "\n", encoding="utf-8")
    return WordPieceTokenizer(folder / "vocab.txt", context)


def test_words_are_split_into_the_longest_known_pieces(toy: WordPieceTokenizer) -> None:
    assert toy.encode("A dog, running DOGS") == [2, 4, 5, 9, 7, 8, 5, 6, 3]


def test_accents_case_and_odd_spaces_make_no_difference(toy: WordPieceTokenizer) -> None:
    assert toy.encode("Á\u00a0D\u00d6G\u200b\t\x00") == toy.encode("a dog")


def test_a_word_with_an_unknown_piece_is_unknown_as_a_whole(toy: WordPieceTokenizer) -> None:
    assert toy.encode("dogx dog") == [2, 1, 5, 3]


def test_words_over_a_hundred_characters_are_unknown(toy: WordPieceTokenizer) -> None:
    assert toy.encode("dog" + "s" * 97) == [2, 5, *[6] * 97, 3]
    assert toy.encode("dog" + "s" * 98) == [2, 1, 3]


def test_special_tokens_typed_by_a_user_are_ordinary_text(toy: WordPieceTokenizer) -> None:
    assert toy.encode("a [SEP] dog") == [2, 4, 10, 12, 11, 5, 3]


def test_no_text_at_all_still_has_its_frame(toy: WordPieceTokenizer) -> None:
    assert toy.encode("") == toy.encode(" \n\u200b") == [2, 3]
    assert toy([]).shape == (0, 8)


def test_a_batch_is_padded_to_its_longest_text_or_to_the_context(toy: WordPieceTokenizer) -> None:
    short, long = toy.encode("a"), toy.encode("a dog runs")
    assert toy.pad([short, long]).tolist() == [[2, 4, 3, 0, 0, 0], [2, 4, 5, 7, 6, 3]]
    batch = toy(["a", "a dog runs"])
    assert batch.tolist() == [[2, 4, 3, 0, 0, 0, 0, 0], [2, 4, 5, 7, 6, 3, 0, 0]]
    assert batch.dtype == "int64"


def test_a_long_text_is_cut_with_its_end_token_kept(toy: WordPieceTokenizer) -> None:
    assert toy(["a a a a dog dog dog"]).tolist() == [[2, 4, 4, 4, 4, 5, 5, 3]]


def test_exactly_the_context_is_not_cut(toy: WordPieceTokenizer) -> None:
    assert toy(["a a a a a dog"]).tolist() == [[2, 4, 4, 4, 4, 4, 5, 3]]
    assert toy.kept_text("a a a a a dog") == "a a a a a dog"


def test_kept_text_is_what_was_typed_up_to_the_last_whole_word(toy: WordPieceTokenizer) -> None:
    assert toy.kept_text("A  dóg, a Dog, dogs a") == "A  dóg, a Dog,"  # no room for both of dog ##s
    assert toy.kept_text("Dogs, Dogs,dogs") == "Dogs, Dogs,"
    assert toy.kept_text("x" * 101 + " a" * 9) == "x" * 101 + " a" * 5


def test_kept_text_of_one_endless_word_is_empty(tmp_path: Path) -> None:
    assert toy_tokenizer(tmp_path, context=4).kept_text("dogsss") == ""


def test_kept_text_finds_its_place_among_characters_that_vanish_or_grow(
    tmp_path: Path,
) -> None:
    tokenizer = toy_tokenizer(tmp_path, context=4)  # two words
    assert tokenizer.kept_text("\u200b日本語") == "\u200b日本"  # each a word without a space
    assert tokenizer.kept_text("ǆ\u0301 ﬁ a") == "ǆ\u0301 ﬁ"


def test_chunks_hold_everything_and_part_between_words(toy: WordPieceTokenizer) -> None:
    # Room for six: dog ##s would be the sixth and seventh, so it moves on whole.
    assert toy.chunks("a a a a a dogs a") == [[2, 4, 4, 4, 4, 4, 3], [2, 5, 6, 4, 3]]
    assert toy.chunks("a dog") == [[2, 4, 5, 3]]
    assert toy.chunks("") == [[2, 3]]


def test_a_word_longer_than_a_chunk_is_split(tmp_path: Path) -> None:
    tokenizer = toy_tokenizer(tmp_path, context=4)
    assert tokenizer.chunks("a dogsss a") == [[2, 4, 3], [2, 5, 6, 3], [2, 6, 6, 3], [2, 4, 3]]
    assert tokenizer.chunks("dogs") == [[2, 5, 6, 3]]


def test_chunks_lose_nothing_and_never_exceed_the_context(toy: WordPieceTokenizer) -> None:
    generator = random.Random(0)
    for _ in range(200):
        words = generator.choices(
            ["a", "dogs", "running,", "dogsssssss", "x"], k=generator.randrange(30)
        )
        text = " ".join(words)
        chunks = toy.chunks(text)
        assert all(2 < len(chunk) <= 8 for chunk in chunks) or text == ""
        assert [2, *(i for chunk in chunks for i in chunk[1:-1]), 3] == toy.encode(text)


def test_the_cache_of_words_does_not_grow_without_end(
    toy: WordPieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twinlens.data.wordpiece._CACHED_WORDS", 10)
    for number in range(1000):
        toy.encode(f"word{number}")
    assert len(toy._pieces_of_word) <= 10
    assert toy.encode("dogs") == [2, 5, 6, 3]


def test_unusable_vocabularies_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.txt: not a readable vocabulary"):
        WordPieceTokenizer(tmp_path / "gone.txt", 8)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\ndog\n")
    with pytest.raises(ConfigError, match=r"lacks \[CLS\], \[SEP\]"):
        WordPieceTokenizer(tmp_path / "vocab.txt", 8)
    with pytest.raises(ConfigError, match="need at least 3"):
        toy_tokenizer(tmp_path, context=2)


# --- against Hugging Face's tokenizers ---


def assert_same_ids(texts: list[str]) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs the tokenizers package to compare")
    theirs = tokenizers.BertWordPieceTokenizer(str(VOCAB), lowercase=True)
    ours = WordPieceTokenizer(VOCAB, 64)
    plain = [text for text in texts if not any(special in text for special in SPECIALS)]
    assert len(plain) > len(texts) * 0.9
    for text, encoding in zip(plain, theirs.encode_batch(plain), strict=True):
        assert ours.encode(text) == encoding.ids, ascii(text)


def is_settled(character: str) -> bool:
    """Known to Unicode 3.2 and not reclassified since, so that table versions do not matter."""
    category = unicodedata.category(character)
    return category not in ("Cn", "Cs") and category == unicodedata.ucd_3_2_0.category(character)


def test_every_settled_character_gives_the_reference_ids() -> None:
    characters = [chr(codepoint) for codepoint in range(1, 0x30000)]
    texts = [f"a{character}b" for character in characters if is_settled(character)]
    assert len(texts) > 90_000
    assert_same_ids(texts)


def test_random_unicode_gives_the_reference_ids() -> None:
    generator = random.Random(0)
    ranges = [(32, 127), (32, 0x250), (0x250, 0x700), (0x900, 0x2000), (0x2000, 0x3400)]
    texts = []
    for _ in range(3000):
        drawn = (chr(generator.randrange(*generator.choice(ranges))) for _ in range(20))
        texts.append("".join(filter(is_settled, drawn)))
    assert_same_ids(texts)


def test_awkward_hand_picked_texts_give_the_reference_ids() -> None:
    assert_same_ids(
        [
            "",
            "  a   photo\tof\r\na DOG  ",
            "don't stop-believing... (live) $5 + 10% = `x` ~ ^_^ |a|",
            "naïve café Ångström ŒUVRE straße İstanbul ΣΊΣΥΦΟΣ",
            "日本語のテキスト 한국어 텍스트 中文abc混合",
            "مرحبا بالعالم नमस्ते ภาษาไทย Tiếng Việt",
            "👍🏽 🏳️‍🌈 1️⃣ flags 🇫🇷",
            "zero\u200bwidth soft\xadhyphen nul\x00 bad\ufffd private\ue000",
            "x" * 100 + " " + "x" * 101,
            "antidisestablishmentarianism floccinaucinihilipilification",
            "e\u0301 \u0323\u0301 Zalgo\u0336\u0322",
        ]
    )


def test_awkward_stored_texts_give_the_reference_ids() -> None:
    path = SHARED / "golden" / "tokenizer" / "texts.json"
    if not path.is_file():
        pytest.skip("needs the shared golden files")
    assert_same_ids(json.loads(path.read_text(encoding="utf-8")))


def test_captions_give_the_reference_ids() -> None:
    path = SHARED / "data" / "flickr8k" / "test-0000.tar"
    if not path.is_file():
        pytest.skip("needs the shared Flickr8k captions")
    captions: list[str] = []
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(".json") else None
            if file is not None:
                captions += json.load(file)["captions"]
    assert len(captions) == 5000
    assert_same_ids(captions)
