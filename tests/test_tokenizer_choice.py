"""Which tokenizer a folder's files mean: each family's rule, and nothing guessed in silence."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinlens.data.clip_bpe import CLIP_VOCABULARY
from twinlens.data.tokenizer import Tokenizer, TokenizerConfig, open_tokenizer, tokenizer_files
from twinlens.data.tokenizer_choice import Family, tokenizer_config_of
from twinlens.errors import ConfigError

START, END = 49406, 49407


def choose(folder: Path, family: Family, **values: Any) -> tuple[TokenizerConfig, list[str]]:
    values = {"context": 77, "vocab_size": 49408, "causal": True, **values}
    return tokenizer_config_of(folder, family=family, **values)


def write_json(folder: Path, name: str, values: Any) -> None:
    (folder / name).write_text(json.dumps(values), encoding="utf-8")


def word_level(folder: Path, *, end: str = "</s>", processor: dict[str, Any] | None = None) -> None:
    """A tokenizer.json of whole words: <pad> 0, the end token 1, <unk> 2, a 3, dog 4."""
    template = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": end}}],
        "special_tokens": {end: {"id": end, "ids": [1], "tokens": [end]}},
    }
    added = [
        {"id": number, "content": name, "special": True}
        for number, name in enumerate(("<pad>", end, "<unk>"))
    ]
    values = {
        "added_tokens": added,
        "post_processor": template if processor is None else processor,
        "model": {"type": "WordLevel", "vocab": {"<pad>": 0, end: 1, "<unk>": 2, "a": 3, "dog": 4}},
    }
    write_json(folder, "tokenizer.json", values)


@pytest.mark.parametrize("family", ["openai", "open_clip", "clip"])
def test_without_files_clips_own_vocabulary_is_used_and_said(
    tmp_path: Path, family: Family
) -> None:
    config, said = choose(tmp_path, family)
    assert (config.kind, config.file, config.pad_id, config.cleaning) == (
        "clip_bpe",
        None,
        0,
        "clip",
    )
    assert tokenizer_files(config) == [] and not config.pad_to_context
    assert said == [
        f"{tmp_path} brings no tokenizer: CLIP's own vocabulary of 49,408 is used, padded with 0."
    ]
    rows = open_tokenizer(config, tmp_path)(["A dog"])
    assert rows[0, :5].tolist() == [START, 320, 1929, END, 0] and rows.shape == (1, 77)


@pytest.mark.parametrize("family", ["openai", "open_clip", "clip"])
def test_a_cut_vocabulary_without_files_is_an_error(tmp_path: Path, family: Family) -> None:
    with pytest.raises(ConfigError, match=r"knows 600 tokens, not the 49,408.*merges\.txt"):
        choose(tmp_path, family, vocab_size=600)


def test_siglip_without_files_names_the_file_to_put_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"SigLIP's vocabularies do not ship.*spiece\.model"):
        choose(tmp_path, "siglip", vocab_size=32000)
    with pytest.raises(ConfigError, match=r"Put the tokenizer\.json of the published model"):
        choose(tmp_path, "xlm_roberta", vocab_size=250002)


def test_a_folder_with_the_vocabulary_file_alone_is_enough(tmp_path: Path) -> None:
    shutil.copy(CLIP_VOCABULARY, tmp_path)
    config, said = choose(tmp_path, "open_clip")
    assert tokenizer_files(config) == ["bpe_simple_vocab_16e6.txt.gz"] and said == []
    assert open_tokenizer(config, tmp_path).encode("a dog") == [START, 320, 1929, END]


def test_the_folder_of_stored_ids_is_such_a_one(shared_folder: Path) -> None:
    folder = shared_folder / "golden" / "tokenizer"
    config, said = choose(folder, "open_clip")
    assert said == []
    texts = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
    plain = [place for place, text in enumerate(texts) if "text" not in text.lower()]
    with np.load(folder / "expected.npz") as expected:
        ids = expected["ids_77"]
    np.testing.assert_array_equal(open_tokenizer(config, folder)(texts)[plain], ids[plain])


def test_open_clip_reads_other_files_only_when_its_configuration_names_them(
    tmp_path: Path,
) -> None:
    word_level(tmp_path)
    config, _ = choose(tmp_path, "open_clip", text_cfg={"context_length": 77})
    assert config.kind == "clip_bpe" and config.file is None
    named = {"hf_tokenizer_name": "timm/ViT-B-16-SigLIP"}
    config, _ = choose(tmp_path, "open_clip", vocab_size=5, text_cfg=named)
    assert (config.kind, config.cleaning, config.end_id) == ("tokenizer_json", "whitespace", 1)
    canonical = {**named, "tokenizer_kwargs": {"clean": "canonicalize"}}
    config, _ = choose(tmp_path, "siglip", vocab_size=5, text_cfg=canonical, causal=False)
    assert (config.cleaning, config.pad_to_context) == ("canonicalize", True)
    without_end = {**named, "tokenizer_kwargs": {"strip_sep_token": True}}
    config, _ = choose(tmp_path, "open_clip", vocab_size=5, text_cfg=without_end)
    assert config.end_id == 0
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"names timm/ViT-B-16-SigLIP\. Put the tokenizer\.json"):
        choose(tmp_path, "open_clip", vocab_size=5, text_cfg=named)


def test_open_clips_cleaning_holds_for_clips_own_vocabulary_too(tmp_path: Path) -> None:
    text_cfg = {"tokenizer_kwargs": {"clean": "canonicalize"}}
    config, _ = choose(tmp_path, "open_clip", text_cfg=text_cfg)
    assert config.cleaning == "canonicalize"
    assert open_tokenizer(config, tmp_path).encode("A_dog!") == [START, 320, 1929, END]
    for unknown in ({"tokenizer_kwargs": {"clean": "novel"}}, {"tokenizer_mode": "clips"}):
        with pytest.raises(ConfigError, match="does not know open_clip's tokenizer options"):
            choose(tmp_path, "open_clip", text_cfg=unknown)


def test_the_end_that_open_clip_takes_out_is_written_as_zero(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\ndog\n")
    text_cfg = {
        "hf_tokenizer_name": "bert-base-uncased",
        "tokenizer_kwargs": {"strip_sep_token": True},
    }
    config, said = choose(
        tmp_path, "open_clip", context=5, vocab_size=6, causal=False, text_cfg=text_cfg
    )
    ours = open_tokenizer(config, tmp_path)
    assert ours(["a dog", "a a a a a a"]).tolist() == [[2, 4, 5, 0, 0], [2, 4, 4, 4, 0]]
    assert ours.pad([[2, 4]]).shape == (1, 5)
    assert said == [
        f"{tmp_path / 'vocab.txt'} is read as BERT's uncased WordPiece: nothing there says more."
    ]


def test_a_cased_vocab_txt_needs_its_tokenizer_json(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\na\ndog\n")
    write_json(tmp_path, "tokenizer_config.json", {"do_lower_case": False})
    with pytest.raises(ConfigError, match=r"do_lower_case false.*Put the model's tokenizer\.json"):
        choose(tmp_path, "bert", vocab_size=6)


def test_a_tokenizer_larger_than_the_text_tower_is_an_error(tmp_path: Path) -> None:
    word_level(tmp_path)
    with pytest.raises(ConfigError, match=r"ids up to 4, but the text tower knows 4 tokens only"):
        choose(tmp_path, "siglip", vocab_size=4)
    assert choose(tmp_path, "siglip", vocab_size=5)[0].file == "tokenizer.json"


def test_pad_and_frame_come_from_the_files_or_the_family(tmp_path: Path) -> None:
    word_level(tmp_path)
    config, said = choose(tmp_path, "siglip", vocab_size=5, causal=False)
    assert (config.start_id, config.end_id, config.pad_id) == (None, 1, 1)
    assert (config.cleaning, config.pad_to_context) == ("siglip", True)
    assert said == [
        f"{tmp_path} names no pad token: </s> (id 1) is used, as the family's own tokenizer does."
    ]
    write_json(tmp_path, "special_tokens_map.json", {"pad_token": {"content": "<pad>"}})
    config, said = choose(tmp_path, "siglip", vocab_size=5)
    assert (config.pad_id, said) == (0, [])
    settings = {"add_bos_token": True, "add_eos_token": False, "bos_token": "a"}
    write_json(tmp_path, "tokenizer_config.json", settings)
    config, _ = choose(tmp_path, "siglip", vocab_size=5)
    assert (config.start_id, config.end_id) == (3, None)
    write_json(tmp_path, "tokenizer_config.json", {"pad_token": "[PAD]", "padding_side": "left"})
    with pytest.raises(ConfigError, match=r"lacks the pad token '\[PAD\]'"):
        choose(tmp_path, "siglip", vocab_size=5)


def test_siglip_2_is_known_by_its_tokenizer(tmp_path: Path) -> None:
    word_level(tmp_path, end="<eos>")
    write_json(tmp_path, "tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer"})
    config, _ = choose(tmp_path, "siglip", vocab_size=5, causal=False)
    assert (config.cleaning, config.end_id, config.pad_id) == ("lower", 1, 0)


def test_every_kind_of_post_processor_is_understood(tmp_path: Path) -> None:
    bert = {"type": "BertProcessing", "cls": ["a", 3], "sep": ["</s>", 1]}
    bytes_only = {"type": "ByteLevel", "trim_offsets": True}
    for processor in (bert, {"type": "Sequence", "processors": [bytes_only, bert]}):
        word_level(tmp_path, processor=processor)
        config, _ = choose(tmp_path, "xlm_roberta", vocab_size=5, causal=False)
        assert (config.start_id, config.end_id) == (3, 1)
        assert not config.pad_to_context  # this tower masks what is padded
    twice = {"type": "Sequence", "processors": [bert, bert]}
    word_level(tmp_path, processor=twice)
    with pytest.raises(ConfigError, match="puts 2 tokens before and 2 after each text"):
        choose(tmp_path, "xlm_roberta", vocab_size=5)


def test_broken_settings_are_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer_config\.json is not a readable JSON file"):
        choose(tmp_path, "clip")
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ConfigError, match="must hold a JSON object, not list"):
        choose(tmp_path, "clip")


def test_towers_that_see_everything_get_every_text_at_full_length(tmp_path: Path) -> None:
    config, _ = choose(tmp_path, "open_clip", causal=False)
    ours = open_tokenizer(config, tmp_path)
    assert ours.pad([ours.encode("a dog")]).shape == (1, 77)


def test_a_configuration_survives_json_and_checks_itself(tmp_path: Path) -> None:
    config, _ = choose(tmp_path, "open_clip", causal=False)
    config.write(tmp_path / "tokenizer.json")
    assert TokenizerConfig.read(tmp_path / "tokenizer.json") == config
    old = TokenizerConfig.from_dict({"kind": "wordpiece", "context": 8, "file": "v.txt"})
    assert old.cleaning is None and old.pad_id == 0 and tokenizer_files(old) == ["v.txt"]
    with pytest.raises(ConfigError, match="kind 'sentencepiece' needs the name of its file"):
        TokenizerConfig(kind="sentencepiece", context=8)
    with pytest.raises(ConfigError, match="known for kind 'clip_bpe' only"):
        TokenizerConfig(kind="wordpiece", context=8, file="v.txt", specials="openai")


def test_a_configuration_by_hand_cleans_as_clip_does(tmp_path: Path) -> None:
    ours = open_tokenizer(TokenizerConfig(kind="clip_bpe", context=77), tmp_path)
    assert isinstance(ours, Tokenizer)
    assert ours.encode("A &amp; DOG") == ours.encode("a & dog")
    reference = TokenizerConfig(kind="clip_bpe", context=77, specials="open_clip")
    assert open_tokenizer(reference, tmp_path).encode("<end_of_text>") == [START, END, END]
