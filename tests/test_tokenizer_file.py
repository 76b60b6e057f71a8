"""Hugging Face's and SentencePiece's files give the ids of transformers, and text stays text.

Every vocabulary here is trained by the test itself; `transformers` reads the same folder.
"""

import importlib
import io
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from twinlens.data import tokenizer_choice
from twinlens.data.framed import FramedTokenizer
from twinlens.data.tokenizer import Tokenizer, open_tokenizer
from twinlens.data.tokenizer_choice import Family, tokenizer_config_of
from twinlens.data.tokenizer_file import JsonTokenizer, read_definition
from twinlens.errors import ConfigError, MissingExtra

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra tokenizers")
sentencepiece = pytest.importorskip("sentencepiece", reason="needs the extra tokenizers")

CORPUS = [
    "a photo of a dog on the beach",
    "two cats sleep on the sofa, near the window",
    "the red car by the sea; it's a dog's life",
    "a man riding a horse: 1234567890 + 5% = $7 (blurry)",
    "naïve café, un été à la plage",
    "<b>bold</b> & under_score [text] the end, pad, mask",
    "A PHOTO OF THE Sunset WITH Capitals",
    "日本語のテキスト 一只猫",
] * 20
TEXTS = [
    *CORPUS[:8],
    "",
    "   ",
    " . hello",
    "  two\t spaces\n and lines ",
    "ΟΔΟΣ ΣΊΣΥΦΟΣ İstanbul straße '\u017f",
    "e\u0301 combining, Ⅷ ½ ① 🙂 👍🏽",
    "supercalifragilisticexpialidocious-and-more_of_it",
    "a dog " * 30,
    "▁a▁dog",
]
SPECIALS = ("<s>", "</s>", "<pad>", "<mask>", "<eos>", "<bos>", "[CLS]", "[SEP]", "[PAD]")
SPECIALS += ("<|startoftext|>", "<|endoftext|>", "<start_of_text>", "<end_of_text>")
CONTEXT = 20


@pytest.fixture(scope="module")
def transformers() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pytest.importorskip("transformers", reason="needs transformers to compare")


@pytest.fixture(scope="module")
def unigram(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spiece.model like SigLIP's."""
    path = tmp_path_factory.mktemp("unigram") / "spiece.model"
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=100,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
    return path


def opened(folder: Path, family: Family, *, size: int = 5000, causal: bool = False) -> Tokenizer:
    config, _ = tokenizer_config_of(
        folder, family=family, context=CONTEXT, vocab_size=size, causal=causal
    )
    return open_tokenizer(config, folder)


def assert_same_ids(ours: Tokenizer, theirs: Callable[..., Any]) -> None:
    for text in TEXTS:
        expected = theirs(text, padding="max_length", max_length=CONTEXT, truncation=True)
        assert ours([text])[0].tolist() == expected["input_ids"], ascii(text)


def assert_specials_are_text(ours: Tokenizer) -> None:
    """Each name adds ids between start and end, none of them start or end."""
    frame = ours.encode("")
    assert ours.encode("a dog")[-1:] == frame[-1:]
    for name in SPECIALS:
        for text in (name, f"a {name} dog", f"a{name}dog", f"{name}{name}"):
            ids = ours.encode(text)
            inner = ids[len(frame) - 1 : -1]
            assert inner and ids == [*frame[:-1], *inner, frame[-1]], text
            assert not set(inner) & set(frame), text


def assert_parts_fit_together(ours: Tokenizer) -> None:
    assert isinstance(ours, FramedTokenizer)
    frame = ours.encode("")
    for text in TEXTS:
        ids, kept = ours.encode(text), ours.kept_text(text)
        assert text.startswith(kept) and len(ours.encode(kept)) <= CONTEXT
        assert (kept == text) == (len(ids) <= CONTEXT)
        chunks = ours.chunks(text)
        inner = [number for chunk in chunks for number in chunk[len(frame) - 1 : -1]]
        assert [*frame[:-1], *inner, frame[-1]] == ids
        assert all(len(chunk) <= CONTEXT and chunk[-1] == frame[-1] for chunk in chunks)


def check(ours: Tokenizer, theirs: Callable[..., Any]) -> None:
    assert_same_ids(ours, theirs)
    assert_specials_are_text(ours)
    assert_parts_fit_together(ours)


def clip_folder(folder: Path) -> int:
    """vocab.json and merges.txt with CLIP's rules; how many tokens they have."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE(end_of_word_suffix="</w>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Whitespace(),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900,
        initial_alphabet=sorted(alphabet),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    model.train_from_iterator([text.lower() for text in CORPUS], trainer)
    values = json.loads(model.to_str())["model"]
    ids = dict(values["vocab"])
    for token in [f"{symbol}</w>" for symbol in sorted(alphabet)] + [*SPECIALS[-4:-2]]:
        ids.setdefault(token, len(ids))
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in values["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "pad_token": "!"}), encoding="utf-8"
    )
    return len(ids)


def test_clips_vocab_json_and_tokenizer_json_give_transformers_ids(
    transformers: Any, tmp_path: Path
) -> None:
    size = clip_folder(tmp_path / "plain")
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "plain")
    check(opened(tmp_path / "plain", "clip", size=size, causal=True), theirs)
    theirs.save_pretrained(tmp_path / "json")
    assert (tmp_path / "json" / "tokenizer.json").is_file()
    ours = opened(tmp_path / "json", "clip", size=size, causal=True)
    assert isinstance(ours, JsonTokenizer)
    check(ours, theirs)
    # The pad token is "!", which transformers then takes for padding wherever it is typed.
    assert ours.encode("dog!")[2] != ours.pad_id


def test_berts_tokenizer_json_gives_transformers_ids(transformers: Any, tmp_path: Path) -> None:
    model = tokenizers.BertWordPieceTokenizer()
    model.train_from_iterator(CORPUS, vocab_size=200, show_progress=False)
    model.save_model(str(tmp_path))
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "json")
    check(opened(tmp_path / "json", "bert"), theirs)
    check(opened(tmp_path, "bert"), theirs)  # vocab.txt


def test_xlm_rs_tokenizer_json_gives_transformers_ids(
    transformers: Any, tmp_path: Path, unigram: Path
) -> None:
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(unigram))
    vocabulary = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    for number in range(3, pieces.get_piece_size()):
        vocabulary.append((pieces.id_to_piece(number), pieces.get_score(number)))
    vocabulary.append(("<mask>", 0.0))
    theirs = transformers.XLMRobertaTokenizer(vocab=vocabulary)
    theirs.save_pretrained(tmp_path)
    ours = opened(tmp_path, "xlm_roberta", size=len(vocabulary))
    assert ours.pad_id == 1 and ours.pad([[0, 2]]).shape == (1, 2)  # its tower masks padding
    check(ours, theirs)
    # A unigram model knows "</s>" as a piece of score 0, the best: the trap this is about.
    assert theirs("a</s>", split_special_tokens=True)["input_ids"].count(2) == 2


def test_siglips_spiece_model_gives_transformers_ids(
    transformers: Any, tmp_path: Path, unigram: Path
) -> None:
    pytest.importorskip("google.protobuf", reason="transformers needs it to read the file")
    (tmp_path / "spiece.model").write_bytes(unigram.read_bytes())
    theirs = transformers.SiglipTokenizer(str(unigram))
    ours = opened(tmp_path, "siglip")
    assert ours.pad_id == 1 and ours.pad([[5, 1]]).shape == (1, CONTEXT)
    check(ours, theirs)


def gemma_folder(transformers: Any, folder: Path) -> Any:
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    byte_tokens = [f"<0x{number:02X}>" for number in range(256)]
    model = tokenizers.Tokenizer(
        tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    model.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500, show_progress=False, special_tokens=specials + byte_tokens
    )
    model.train_from_iterator(CORPUS, trainer)
    values = json.loads(model.to_str())["model"]
    theirs = transformers.Siglip2Tokenizer(
        vocab=values["vocab"],
        merges=[tuple(pair) for pair in values["merges"]],
        padding_side="right",
        add_bos_token=False,
        add_eos_token=True,
    )
    theirs.save_pretrained(folder)
    return theirs


def test_siglip_2s_tokenizer_json_gives_transformers_ids(transformers: Any, tmp_path: Path) -> None:
    theirs = gemma_folder(transformers, tmp_path)
    # The published ones of fixed resolution declare model_type siglip.
    ours = opened(tmp_path, "siglip")
    assert ours.pad_id == 0 and ours.pad([[5, 1]]).shape == (1, CONTEXT)
    check(ours, theirs)
    assert ours.encode("A, DOG!") == ours.encode("a, dog!") != ours.encode("a dog")


def test_words_of_scripts_without_spaces_are_kept_piece_by_piece(
    transformers: Any, tmp_path: Path
) -> None:
    gemma_folder(transformers, tmp_path)
    ours = opened(tmp_path, "siglip2")
    text = "日本語のテキスト" * 10
    assert 5 < len(ours.kept_text(text)) < len(text)
    assert ours.kept_text("two cats sleep near the window " * 5).endswith(
        ("two", "cats", "sleep", "near", "the", "window")
    )


def test_a_model_that_looks_whole_words_up_does_not_find_special_ones(tmp_path: Path) -> None:
    ids = {"<pad>": 0, "<eos>": 1, "<unk>": 2, "a": 3, "dog": 4, "o": 5, "d": 6, "g": 7}
    ids |= {letter: 8 + place for place, letter in enumerate("<>esp/")}
    model = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=ids, merges=[], unk_token="<unk>", ignore_merges=True, fuse_unk=True
        )
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    model.save(str(tmp_path / "tokenizer.json"))
    assert model.encode("a <eos> dog").ids == [3, 1, 4, 1]
    ours = opened(tmp_path, "siglip2")
    assert ours.encode("a dog") == [3, 4, 1]
    assert ours.encode("a <eos> dog") == [3, 8, 10, 5, 11, 9, 4, 1]


def test_stored_settings_of_length_do_not_matter(transformers: Any, tmp_path: Path) -> None:
    gemma_folder(transformers, tmp_path)
    expected = opened(tmp_path, "siglip")(TEXTS)
    path = tmp_path / "tokenizer.json"
    model = tokenizers.Tokenizer.from_file(str(path))
    model.enable_truncation(4)
    model.enable_padding(length=64, pad_id=0, pad_token="<pad>")
    model.save(str(path))
    assert (opened(tmp_path, "siglip")(TEXTS) == expected).all()
    assert read_definition(path).pad_id == 0


def test_unusable_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for content in ("", "[]", "{}", '{"model": {}}', '{"model": {"vocab": 5}}'):
        path.write_text(content)
        with pytest.raises(ConfigError, match=r"tokenizer\.json: not a tokenizer of the package"):
            opened(tmp_path, "clip")
    path.write_text('{"model": {"type": "Novel", "vocab": {"a": 0, "</s>": 1}}}')
    with pytest.raises(ConfigError, match="tokenizers cannot use it"):
        JsonTokenizer(path, 8, pad_id=0, start_id=None, end_id=None)
    path.unlink()
    (tmp_path / "spiece.model").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match=r"spiece\.model: not a readable SentencePiece model"):
        opened(tmp_path, "siglip")


@pytest.mark.parametrize(
    ("name", "package"), [("tokenizer.json", "tokenizers"), ("spiece.model", "sentencepiece")]
)
def test_a_missing_package_is_named_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    (tmp_path / name).write_bytes(b"{}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda found: None)
    with pytest.raises(MissingExtra, match=rf"{package}.*pip install 'twinlens\[tokenizers\]'"):
        opened(tmp_path, "siglip")


def test_without_the_package_clips_other_files_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = clip_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda found: None)
    config, said = tokenizer_choice.tokenizer_config_of(
        tmp_path, family="clip", context=CONTEXT, vocab_size=size, causal=True
    )
    assert (config.kind, config.file, config.merges_file) == (
        "clip_bpe",
        "vocab.json",
        "merges.txt",
    )
    assert len(said) == 1 and "'tokenizers'" in said[0] and "vocab.json is used" in said[0]
