"""`twinlens models`, and what `twinlens pull` prints.

Run with: pytest tests/test_models_command.py
"""

import json

import pytest

import fake_hub
from fake_hub import FakeHub
from twinlens.hub import cache, connection, pull


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TWINLENS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def hub(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(connection, "FIRST_WAIT_SECONDS", 0.001)
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        repo = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
        hub.repos[repo] = {"open_clip_config.json": b"{}", "open_clip_model.safetensors": b"w" * 9}
        yield hub


def test_the_table_fits_100_columns_and_starts_with_what_is_here(run):
    result = run("models")
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[2] == "on this machine"
    assert lines[3].startswith("+ mini ") and lines[3].endswith(" built in")
    assert "OpenAI CLIP; licence: MIT; arXiv:2103.00020" in lines
    (row,) = (line.split() for line in lines if " openai/vit-b-32 " in line)
    assert row[1:] == ["151M", "512", "224", "77", "quick_gelu", "63.3", "30.4/50.1", "58.8/78.9"]
    assert "cannot run it yet" in result.err


def test_words_choose_by_name_family_or_alias(run):
    def names(*words):
        return {entry["name"] for entry in json.loads(run("models", *words, "--json").out)}

    assert names("dfn5b") == {"dfn5b/vit-h-14", "dfn5b/vit-h-14-378"}
    assert names("multilingual", "xlm") == {"xlm-roberta/vit-b-32", "xlm-roberta/vit-h-14"}
    assert names("google/siglip-so400m") == {"siglip/so400m-14-224", "siglip/so400m-14-384"}
    assert names("mini") == {"mini"}


def test_a_whole_name_shows_every_fact_its_source_and_what_to_type_next(run):
    card = run("models", "ViT-B-16-SigLIP-256/webli").out
    assert card.startswith("siglip/b-16-256\n")
    for fact in (
        *("203.2 million", "768", "256 px", "64 tokens", "gelu_tanh", "Apache-2.0", "76.5 %"),
        "48.3 % text to image, 66.1 % image to text, recall@1",
        "open_clip docs/openclip_results.csv",
        "hf:google/siglip-base-patch16-256",
    ):
        assert fact in card
    assert card.endswith("\nnext: twinlens pull siglip/b-16-256\n")


def test_a_model_that_cannot_run_says_why(run):
    card = run("models", "mobileclip2/s0").out
    assert "cannot run       it is published in Apple's own format" in card
    result = run("pull", "mobileclip2/s0")
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        "twinlens: mobileclip2/s0 is known, but twinlens cannot run it: it is published in "
        "Apple's own format, before re-parameterisation, which is not read. To have the files all "
        "the same: `twinlens pull hf:apple/MobileCLIP2-S0`.\n"
    )


def test_a_word_in_no_name_is_answered_with_a_suggestion(run):
    result = run("models", "siglop")
    assert (result.code, result.out) == (1, "")
    assert "has 'siglop' in it. See `twinlens models siglip`." in result.err


def test_json_holds_all_facts(run):
    (facts,) = json.loads(run("models", "openai/rn50", "--json").out)
    assert facts["supported"] and facts["folder"] is None
    assert (facts["dim"], facts["parameters"], facts["imagenet"]) == (1024, 102.0, 59.8)
    assert facts["coco"] == [28.5, 48.8]
    assert "github.com/mlfoundations/open_clip" in facts["figures_source"]


def test_a_pulled_model_moves_to_the_top_and_knows_its_next_step(run, hub, tmp_path):
    folder = tmp_path / "cache" / "models" / "laion2b--vit-b-32"
    pulled = run("pull", "ViT-B-32/laion2b_s34b_b79k")
    assert (pulled.code, pulled.out) == (0, f"{folder}\n")
    lines = pulled.err.splitlines()
    assert lines[0].startswith("pulled laion2b/vit-b-32: 2 files, 0 kB, in ")
    following = 'next: twinlens search photos/ "a red bicycle" --model laion2b/vit-b-32'
    assert lines[1:] == ["licence: MIT", following]
    table = run("models", "laion2b").out.splitlines()
    assert table[2] == "on this machine" and table[3].startswith("+ laion2b/vit-b-32 ")
    assert sum("laion2b/vit-b-32 " in line for line in table) == 1
    assert run("models", "laion2b/vit-b-32").out.endswith(f"\n{following}\n")
    again = run("pull", "laion2b/vit-b-32")
    assert again.err.startswith("pulled laion2b/vit-b-32: 2 files, 0 kB, it was here already\n")


def test_a_repository_that_is_no_known_model_is_listed_once_pulled(run, hub):
    hub.repos["maker/clip"] = {"config.json": b"{}", "model.safetensors": b"abc"}
    assert run("pull", "hf:maker/clip").code == 0
    assert "+ hf:maker/clip" in run("models").out
    assert "+ hf:maker/clip" in run("models", "maker").out
    assert cache.pulled_folder("hf:maker/clip") is not None


def test_a_missing_tokenizer_comes_from_the_repository_that_has_it(run, hub):
    name = "laion/CLIP-ViT-B-32-xlm-roberta-base-laion5B-s13B-b90k"
    hub.repos[name] = {"open_clip_config.json": b"{}", "open_clip_pytorch_model.bin": b"w"}
    hub.repos["FacebookAI/xlm-roberta-base"] = {
        "tokenizer.json": b"{}",
        "sentencepiece.bpe.model": b"s",
        "model.safetensors": b"another model's",
    }
    folder = pull.pull("xlm-roberta/vit-b-32")
    assert {path.name for path in folder.glob("*[!k]")} == {
        *("open_clip_config.json", "open_clip_pytorch_model.bin", "pulled.json"),
        *("tokenizer.json", "sentencepiece.bpe.model"),
    }


def test_ctrl_c_keeps_what_was_fetched(run, hub, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pull, "fetch", stop)
    result = run("pull", "laion2b/vit-b-32")
    assert (result.code, result.out) == (130, "")
    assert result.err == "stopped; what was fetched is kept; run the same command to continue\n"


def test_an_error_is_one_line(run, hub):
    hub.next["list"] = [fake_hub.status(404)]
    result = run("pull", "hf:nobody/nothing")
    assert (result.code, result.out) == (1, "")
    assert result.err.count("\n") == 1
    assert "has no nobody/nothing. Check the name." in result.err
