"""Known published models, pulled ones, and what a repository's files make.

Run with: pytest tests/test_hub.py
"""

import json
import re

import pytest

from twinlens.errors import ConfigError, ModelNotFound
from twinlens.hub import cache, registry
from twinlens.hub.download import RemoteFile
from twinlens.hub.registry import find_published, get_published, published_models
from twinlens.hub.repository import Repository, choose_files, parse_repo


def test_every_model_has_a_family_a_preprocessing_and_sources_for_its_figures():
    for model in published_models():
        assert model.family in registry.families(), model.name
        assert model.preprocess in registry.preprocessing(), model.name
        figures = (model.imagenet, model.coco, model.flickr30k)
        assert (model.figures_source in registry.sources()) == any(figures), model.name
        counted = model.parameters is not None
        assert (model.parameters_source in registry.sources()) == counted, model.name
        assert all(0 < number < 100 for pair in figures[1:] if pair for number in pair)
        assert model.coco is None or model.coco[0] < model.coco[1], model.name
        if model.supported:
            assert model.dim and model.image_size and model.parameters, model.name


def test_names_are_stable_slugs_and_no_two_names_mean_different_weights():
    meanings = {}
    for model in published_models():
        assert re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", model.name)
        for name in (model.name, *model.aliases):
            assert meanings.setdefault(name, model.name) == model.name
            assert find_published(name) is model
    assert len(meanings) > len(published_models()) > 60


@pytest.mark.parametrize(
    "name",
    [
        "laion2b/vit-b-32",
        "LAION2B/ViT-B-32",
        "ViT-B-32/laion2b_s34b_b79k",
        "ViT-B-32:laion2b-s34b-b79k",
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        "hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    ],
)
def test_a_model_is_found_by_what_others_call_it(name):
    assert get_published(name).name == "laion2b/vit-b-32"


def test_the_quickgelu_spelling_means_the_same_weights():
    assert get_published("ViT-H-14-378-quickgelu/dfn5b").name == "dfn5b/vit-h-14-378"
    assert get_published("ViT-B-32-quickgelu/openai").activation == "quick_gelu"


def test_a_name_nobody_knows_is_answered_with_the_nearest():
    with pytest.raises(ModelNotFound, match=r"Did you mean openai/vit-b-32 or .* hf:openai/vitb32"):
        get_published("openai/vitb32")
    with pytest.raises(ModelNotFound, match=r"See `twinlens models siglip`\.$"):
        get_published("sigclip")


def test_another_revision_is_not_the_known_model():
    assert find_published("hf:laion/CLIP-ViT-B-32-laion2B-s34B-b79K@v2") is None


# PEERS.md: model there, ours. Its columns: ImageNet | COCO T2I/I2T | Flickr30k T2I/I2T.
PEERS = {
    "OpenAI B/32": "openai/vit-b-32",
    "OpenAI L/14@336": "openai/vit-l-14-336",
    "LAION-2B B/32": "laion2b/vit-b-32",
    "DataComp B/32-256": "datacomp/vit-b-32-256",
    "LAION-2B H/14": "laion2b/vit-h-14",
    "LAION-2B bigG/14": "laion2b/vit-bigg-14",
    "DataComp L/14": "datacomp/vit-l-14",
    "DFN5B H/14-378": "dfn5b/vit-h-14-378",
    "SigLIP so400m-384": "siglip/so400m-14-384",
}


def test_figures_agree_with_the_table_of_peers(shared_folder):
    text = (shared_folder / "docs" / "PEERS.md").read_text()
    for peer, name in PEERS.items():
        (row,) = re.findall(rf"^\|{re.escape(peer)}\|([^|]+)\|([^|]+)\|([^|]+)\|", text, re.M)
        model = get_published(name)
        imagenet, coco, flickr30k = (
            tuple(float(number) for number in cell.split("/")) for cell in row
        )
        assert (model.imagenet, model.coco, model.flickr30k) == (imagenet[0], coco, flickr30k)


def test_openais_urls_hold_the_checksum():
    for model in published_models():
        if model.url is not None:
            assert model.sha256 == model.url.split("/")[-2]
            assert re.fullmatch(r"[0-9a-f]{64}", model.sha256)


def test_vit_parameter_counts_follow_from_the_sizes():
    """OpenAI's ViTs by hand, from Radford et al. 2021, tables 19 and 20."""

    def block(width):
        return 12 * width**2 + 13 * width  # attention 4w² + 4w, MLP 8w² + 5w, two norms 4w

    def count(image_size, patch, width, layers, text_width, dim):
        tokens = (image_size // patch) ** 2 + 1
        image = 3 * patch**2 * width + width + tokens * width + 4 * width + layers * block(width)
        text = 49408 * text_width + 77 * text_width + 12 * block(text_width) + 2 * text_width
        return image + width * dim + text + text_width * dim + 1

    for name, sizes in {
        "openai/vit-b-32": (224, 32, 768, 12, 512, 512),
        "openai/vit-b-16": (224, 16, 768, 12, 512, 512),
        "openai/vit-l-14": (224, 14, 1024, 24, 768, 768),
        "openai/vit-l-14-336": (336, 14, 1024, 24, 768, 768),
    }.items():
        model = get_published(name)
        assert model.parameters == round(count(*sizes) / 1e6, 1)
        assert (model.image_size, model.dim) == (sizes[0], sizes[-1])


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.delenv("TWINLENS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "twinlens"
    monkeypatch.setenv("TWINLENS_CACHE", str(tmp_path / "own"))
    assert cache.cache_folder() == tmp_path / "own"
    models = tmp_path / "own" / "models"
    assert cache.model_folder("ViT-B-32/openai") == models / "openai--vit-b-32"
    assert cache.model_folder("hf:a/b@refs/pr/1") == models / "hf--a--b@refs--pr--1"
    assert cache.model_folder("hf:../..").parent == models
    assert cache.pulled_names() == []
    assert cache.pulled_folder("openai/vit-b-32") is None


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"files": {"a": 1}}', '{"files": []}'])
def test_a_folder_with_a_broken_manifest_is_not_pulled(tmp_path, manifest):
    (tmp_path / cache.MANIFEST_NAME).write_text(manifest)
    assert cache.read_manifest(tmp_path) is None


def test_a_folder_that_lost_a_file_is_not_pulled(tmp_path):
    files = {"model.pt": {"size_bytes": 3}}
    manifest = {"name": "a", "source": "hf:b/c", "files": files}
    (tmp_path / cache.MANIFEST_NAME).write_text(json.dumps(manifest))
    assert cache.read_manifest(tmp_path) is None
    (tmp_path / "model.pt").write_bytes(b"abc")
    assert cache.read_manifest(tmp_path) == manifest


def chosen(*names, format_name=None):
    files = tuple(RemoteFile(name=name, url=f"https://h/{name}", size_bytes=9) for name in names)
    repository = Repository(repo="a/b", revision="main", files=files)
    found, files = choose_files(repository, format_name)
    return found, {file.name for file in files}


BOTH = ("open_clip_config.json", "config.json", "tokenizer.json", "README.md", "LICENSE")
WEIGHTS = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
    *("model.safetensors", "pytorch_model.bin", "flax_model.msgpack"),
)


def test_of_two_formats_in_one_repository_the_wanted_one_is_taken_without_the_other():
    assert chosen(*BOTH, *WEIGHTS) == (
        "open_clip",
        {"open_clip_config.json", "tokenizer.json", "open_clip_model.safetensors", "LICENSE"},
    )
    assert chosen(*BOTH, *WEIGHTS, format_name="transformers") == (
        "transformers",
        {"config.json", "tokenizer.json", "model.safetensors", "LICENSE"},
    )


def test_pickled_weights_are_taken_only_where_there_are_no_others():
    names = ("open_clip_config.json", "open_clip_pytorch_model.bin")
    assert chosen(*names) == ("open_clip", set(names))
    names = ("config.json", "pytorch_model.bin")
    assert chosen(*names) == ("transformers", set(names))


def test_weights_in_several_files_come_whole_or_not_at_all():
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    names = ["config.json", "model.safetensors.index.json", *shards]
    assert chosen(*names) == ("transformers", set(names))
    with pytest.raises(ModelNotFound):
        chosen(*names[:-1])


def test_a_lone_weights_file_is_a_model_and_two_are_a_question():
    assert chosen("siglip2_b16.npz", "README.md") == ("big_vision", {"siglip2_b16.npz"})
    assert chosen("mobileclip_s0.pt") == ("openai_pt", {"mobileclip_s0.pt"})
    with pytest.raises(ModelNotFound, match=r"holds no model .*; it holds a\.npz, b\.npz\."):
        chosen("a.npz", "b.npz")
    with pytest.raises(ModelNotFound, match=r"holds no model in the format open_clip that"):
        chosen("config.json", "model.safetensors", format_name="open_clip")


@pytest.mark.parametrize("text", ["clip", "a/b/c", "../b", "a/..", "a b/c", "a/b?x=1", "", "@main"])
def test_what_is_no_repository_is_said_to_be_none(text):
    with pytest.raises(ConfigError, match=r"is no repository\. Write hf:owner/name"):
        parse_repo(text)


def test_a_repository_may_name_a_revision():
    assert parse_repo("a/b") == ("a/b", "main")
    assert parse_repo("a/b@refs/pr/3") == ("a/b", "refs/pr/3")
