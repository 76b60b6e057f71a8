"""Pictures and texts become unit vectors in order, and what cannot is named and left out.

The model here is three numbers wide and small enough to reckon with: a picture's vector
is its mean colour, a text's the count of a, dog and ##s in it.
"""

import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from twinlens import SAMPLES, embed
from twinlens.data.image import ImageSource
from twinlens.data.preprocess import Preprocess
from twinlens.data.tokenizer import TokenizerConfig
from twinlens.embed import (
    BATCHES_AHEAD,
    EmbeddedBatch,
    Embedder,
    EmbedderLike,
    Skipped,
    SkippedItemsWarning,
    TruncatedTextWarning,
)
from twinlens.errors import ConfigError, ModelNotFound
from twinlens.runtime import session
from twinlens.runtime.folder import BUILT_IN, CONFIG_NAME, RuntimeConfig
from twinlens.runtime.plan import Plan
from twinlens.testing import FakeEmbedder

RED, BLUE = Image.new("RGB", (9, 7), (255, 0, 0)), Image.new("RGB", (9, 7), (0, 0, 255))
MINI = BUILT_IN / "mini" / CONFIG_NAME
TOY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "##s"]


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    onnx = pytest.importorskip("onnx", reason="needs the onnx package to build a toy model")
    folder = tmp_path_factory.mktemp("toy")

    def save(
        name: str, nodes: list[object], kind: int, shape: list[object], tables: object
    ) -> None:
        graph = onnx.helper.make_graph(
            nodes,
            name,
            [onnx.helper.make_tensor_value_info("x", kind, shape)],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 3])],
            [onnx.numpy_helper.from_array(table, key) for key, table in tables.items()],  # type: ignore[attr-defined]
        )
        opset = [onnx.helper.make_opsetid("", 17)]
        onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), folder / name)

    node = onnx.helper.make_node
    mean = [node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0)]
    save("image.onnx", mean, onnx.TensorProto.FLOAT, ["batch", 3, 4, 4], {})
    table = np.zeros((len(TOY), 3), dtype=np.float32)
    table[4:] = np.eye(3)
    count = [
        node("Gather", ["table", "x"], ["rows"]),
        node("ReduceSum", ["rows", "axes"], ["y"], keepdims=0),
    ]
    tables = {"table": table, "axes": np.array([1], dtype=np.int64)}
    save("text.onnx", count, onnx.TensorProto.INT64, ["batch", "token"], tables)
    (folder / "vocab.txt").write_text("\n".join(TOY) + "\n")
    RuntimeConfig(
        format_version=1,
        name="toy",
        version="1",
        dim=3,
        tokenizer=TokenizerConfig(kind="wordpiece", context=8, file="vocab.txt"),
        image_file="image.onnx",
        text_file="text.onnx",
        preprocess=Preprocess(
            image_size=4, resize="squash", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
        ),
        logit_scale=100.0,
        image_query_weight=0.25,
    ).write(folder / "model.json")
    return folder


@pytest.fixture
def toy(toy_folder: Path) -> Embedder:
    return Embedder(toy_folder, threads=2, batch_size=4)


def test_an_embedder_tells_what_an_index_must_remember(toy: Embedder) -> None:
    assert (toy.name, toy.dim, toy.context, toy.image_query_weight) == ("toy", 3, 8, 0.25)
    assert toy.model_id.startswith("toy-1:")


def test_an_unknown_model_is_refused_at_once() -> None:
    with pytest.raises(ModelNotFound, match="no-such-model"):
        Embedder("no-such-model")


def test_less_than_one_thread_or_picture_at_a_time_is_refused(toy_folder: Path) -> None:
    with pytest.raises(ConfigError, match="threads 0: must be at least 1"):
        Embedder(toy_folder, threads=0)
    with pytest.raises(ConfigError, match="batch_size -1: must be at least 1"):
        Embedder(toy_folder, batch_size=-1)


# --- texts ---


def test_texts_become_unit_vectors(toy: Embedder) -> None:
    vectors = toy.texts(["a dog", "Dogs!", "a a a dogs"])
    expected = [
        [1 / 2**0.5, 1 / 2**0.5, 0],
        [0, 1 / 2**0.5, 1 / 2**0.5],
        [3 / 11**0.5, 1 / 11**0.5, 1 / 11**0.5],
    ]
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert vectors.dtype == np.float32


def test_texts_of_mixed_length_come_back_in_order(toy: Embedder) -> None:
    texts = [" ".join(["a"] * (n % 5) + ["dog"] * (n % 2)) for n in range(150)]
    together = toy.texts(texts)
    np.testing.assert_allclose(together[::29], [toy.texts([text])[0] for text in texts[::29]])


def test_no_texts_and_empty_texts_are_no_error(toy: Embedder) -> None:
    assert toy.texts([]).shape == (0, 3)
    assert toy.texts([], long="average").shape == (0, 3)
    assert np.isfinite(toy.texts([""])).all()
    assert np.isfinite(toy.texts([""], long="average")).all()


def test_a_long_text_is_cut_and_the_warning_says_where(toy: Embedder) -> None:
    with pytest.warns(TruncatedTextWarning) as caught:
        vectors = toy.texts(["a dog", "a A a a a a DOG dog"])
    np.testing.assert_allclose(vectors[1], [1, 0, 0])
    assert str(caught[0].message) == (
        "1 of 2 texts exceed the 8 tokens that toy reads. Text 1 has 10: kept up to"
        " 'a A a a a a', cut 'DOG dog'."
        ' Shorten it, or use long="average" to embed all of it.'
    )


def test_a_very_long_text_is_quoted_only_around_the_cut(toy: Embedder) -> None:
    with pytest.warns(TruncatedTextWarning) as caught:
        toy.texts(["Antidisestablishmentarianism " * 5 + "a dog " * 1000])
    assert "ishmentarianism a', cut 'dog a dog a" in str(caught[0].message)
    assert len(str(caught[0].message)) < 300


def test_a_long_text_can_be_averaged_over_its_parts_instead(toy: Embedder) -> None:
    # Six a's fill the first part, one dog the second: (6, 1, 0) has length sqrt(37).
    (vector,) = toy.texts(["a a a a a a dog"], long="average")
    np.testing.assert_allclose(vector, np.array([6, 1, 0]) / 37**0.5, atol=1e-6)


def test_averaging_leaves_short_texts_as_they_are(toy: Embedder) -> None:
    texts = ["a dog", "a a a a a a a a dogs", "dogs"]
    averaged = toy.texts(texts, long="average")
    np.testing.assert_allclose(averaged[[0, 2]], toy.texts([texts[0], texts[2]]), atol=1e-6)


def test_one_string_is_not_a_list_of_letters(toy: Embedder) -> None:
    for embedder in (toy, FakeEmbedder()):
        with pytest.raises(TypeError, match=r"texts\(\['a dog'\]\)"):
            embedder.texts("a dog")
        for one in ("a.jpg", np.zeros((4, 4, 3), dtype=np.uint8)):
            with pytest.raises(TypeError, match=r"images\(\) takes a list of pictures"):
                embedder.images(one)


# --- images ---


def test_every_kind_of_source_gives_a_unit_vector(toy: Embedder, tmp_path: Path) -> None:
    path = tmp_path / "blue.png"
    BLUE.save(path)
    purple = np.full((6, 6, 3), (128, 0, 128), dtype=np.uint8)
    vectors = toy.images([RED, path, str(path), path.read_bytes(), purple])
    np.testing.assert_allclose(vectors[:4], [[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]])
    np.testing.assert_allclose(vectors[4], [1 / 2**0.5, 0, 1 / 2**0.5], atol=1e-6)
    assert vectors.dtype == np.float32


def test_an_array_of_pictures_is_a_list_of_pictures(toy: Embedder) -> None:
    assert toy.images(np.zeros((5, 8, 8, 3), dtype=np.uint8)).shape == (5, 3)


def test_a_bad_picture_is_warned_about_and_leaves_an_empty_row(toy: Embedder) -> None:
    with pytest.warns(SkippedItemsWarning) as caught:
        vectors = toy.images([RED, b"not a photo", BLUE, b"", b"", b""])
    np.testing.assert_allclose(vectors[[0, 2]], [[1, 0, 0], [0, 0, 1]])
    assert np.isnan(vectors[[1, 3, 4, 5]]).all()
    message = str(caught[0].message)
    assert len(caught) == 1
    assert message.startswith("skipped 4 of 6 pictures, their rows are NaN: <bytes>: not a picture")
    assert message.endswith("<bytes>: the file is empty; <bytes>: the file is empty; and 1 more")


def test_bad_pictures_go_into_the_list_when_one_is_given(toy: Embedder, tmp_path: Path) -> None:
    skipped: list[Skipped] = []
    missing = tmp_path / "gone.jpg"
    toy.images([RED, missing], skipped=skipped)
    assert skipped == [Skipped(1, str(missing), "no such file or directory")]


def test_the_limit_on_megapixels_is_the_embedders(toy_folder: Path) -> None:
    skipped: list[Skipped] = []
    Embedder(toy_folder, max_megapixels=1e-5).images([RED], skipped=skipped)
    assert "megapixels, limit 1e-05" in skipped[0].reason


def test_no_pictures_or_only_bad_ones_are_no_error(toy: Embedder) -> None:
    skipped: list[Skipped] = []
    assert toy.images([]).shape == (0, 3)
    assert np.isnan(toy.images([b""] * 9, skipped=skipped)).all()
    assert [item.position for item in skipped] == list(range(9))


def test_a_stream_keeps_the_order_and_names_every_position(toy: Embedder) -> None:
    sources: list[ImageSource] = [b"" if n % 5 == 3 else (RED, BLUE)[n % 2] for n in range(50)]
    seen: list[int] = []
    for batch in toy.stream_images(iter(sources)):
        bad = [item.position for item in batch.skipped]
        assert len(batch.positions) + len(bad) <= 4
        assert all(position % 5 == 3 for position in bad)
        for position, vector in zip(batch.positions, batch.vectors, strict=True):
            np.testing.assert_allclose(vector, [1, 0, 0] if position % 2 == 0 else [0, 0, 1])
        seen += sorted([*batch.positions, *bad])
    assert seen == list(range(50))


def test_a_stream_reads_its_sources_only_a_few_batches_ahead(toy: Embedder) -> None:
    taken = 0

    def endless() -> Iterator[ImageSource]:
        nonlocal taken
        while True:
            taken += 1
            yield RED

    stream = toy.stream_images(endless(), batch_size=2)
    for batches in range(1, 6):
        next(stream)
        assert taken <= 2 * (batches + BATCHES_AHEAD)
    stream.close()  # returns, though the sources have no end
    assert not [t for t in threading.enumerate() if t.name.startswith("twinlens-decode")]


def test_an_error_in_the_sources_ends_the_stream_and_its_threads(toy: Embedder) -> None:
    def failing() -> Iterator[ImageSource]:
        yield RED
        raise ConnectionError("the disk went away")

    with pytest.raises(ConnectionError, match="went away"):
        list(toy.stream_images(failing()))
    assert not [t for t in threading.enumerate() if t.name.startswith("twinlens-decode")]


def test_whatever_a_decoder_raises_costs_one_picture_only(
    toy: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a plugin's fault")

    monkeypatch.setattr("twinlens.embed.read_image", explode)
    skipped: list[Skipped] = []
    toy.images([RED], skipped=skipped)
    assert skipped[0].reason == "a plugin's fault"


def test_an_interruption_in_a_decoder_is_passed_on(
    toy: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("twinlens.embed.read_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        toy.images([RED] * 100)


def test_decoding_and_the_session_overlap(
    toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the session runs one batch, pictures of later batches are being decoded."""
    decoded: list[float] = []
    during_session: list[int] = []
    toy = Embedder(toy_folder, threads=1, batch_size=2)
    prepare, run = toy._prepare, toy._embedded

    def slow_prepare(source: ImageSource) -> object:
        time.sleep(0.005)
        decoded.append(time.perf_counter())
        return prepare(source)

    def slow_run(batch: list[tuple[int, object]], session: object) -> EmbeddedBatch:
        before = len(decoded)
        time.sleep(0.02)
        during_session.append(len(decoded) - before)
        return run(batch, session)

    monkeypatch.setattr(toy, "_prepare", slow_prepare)
    monkeypatch.setattr(toy, "_embedded", slow_run)
    assert toy.images([RED] * 40).shape == (40, 3)
    assert sum(during_session) > 0


@pytest.mark.parametrize("workers", [1, 3])
def test_a_long_stream_gives_the_same_rows_however_it_is_shared_out(
    toy_folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    asked: list[int] = []

    def chosen(*_: object, **__: object) -> Plan:
        asked.append(1)
        return Plan(workers=workers, threads=1, batch_size=7, images_per_second=1.0)

    monkeypatch.setattr(embed, "best_plan", chosen)
    toy = Embedder(toy_folder, threads=2)
    sources: list[ImageSource] = [(RED, BLUE)[n % 2] for n in range(embed.LONG_STREAM + 50)]
    sources[100] = b"no picture"
    batches = list(toy.stream_images(iter(sources)))
    assert asked == [1] and max(len(b.positions) for b in batches) == 7
    places = [p for b in batches for p in (*b.positions, *(s.position for s in b.skipped))]
    assert sorted(places) == list(range(len(sources)))
    assert [s.position for b in batches for s in b.skipped] == [100]
    rows = np.concatenate([b.vectors for b in batches])
    positions = np.concatenate([b.positions for b in batches]).astype(int)
    few = toy.images([RED, BLUE])
    np.testing.assert_allclose(rows, few[positions % 2], atol=1e-6)
    asked.clear()
    list(toy.stream_images(sources[: embed.LONG_STREAM - 1]))
    assert asked == []  # a short stream is not worth measuring for


def test_leaving_a_long_stream_early_reads_no_further(
    toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(workers=2, threads=1, batch_size=4, images_per_second=1.0)
    monkeypatch.setattr(embed, "best_plan", lambda *_, **__: plan)
    read: list[int] = []

    def endless() -> Iterator[ImageSource]:
        while True:
            read.append(1)
            yield RED

    stream = Embedder(toy_folder, threads=2).stream_images(endless())
    next(stream)
    stream.close()
    assert len(read) <= embed.LONG_STREAM + 40


# --- sessions ---


def test_each_tower_is_opened_at_its_first_use_and_once(
    toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = session.open_session

    def recording(path: Path, **options) -> session.Session:
        opened.append(path.name)
        time.sleep(0.01)
        return real(path, **options)

    monkeypatch.setattr(embed, "open_session", recording)
    toy = Embedder(toy_folder)
    assert toy.model_id and opened == []
    workers = [threading.Thread(target=toy.texts, args=(["a dog"],)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert opened == ["text.onnx"]
    toy.images([RED])
    toy.images([BLUE])
    assert opened == ["text.onnx", "image.onnx"]


# --- the model that ships ---


@pytest.mark.skipif(not MINI.is_file(), reason="mini is not built yet")
def test_mini_tells_a_dog_from_sushi() -> None:
    mini = Embedder("mini")
    photos = mini.images([SAMPLES / "plasma_dog.jpg", SAMPLES / "plasma_sushi.jpg"])
    words = mini.texts(["a dog", "a plate of sushi"])
    assert photos.shape == words.shape == (2, mini.dim)
    np.testing.assert_allclose(np.linalg.norm([*photos, *words], axis=1), 1, atol=1e-5)
    scores = photos @ words.T
    assert scores[0, 0] > scores[0, 1] and scores[1, 1] > scores[1, 0]


@pytest.mark.skipif(not MINI.is_file(), reason="mini is not built yet")
def test_draft_scaling_hardly_moves_minis_vector() -> None:
    mini = Embedder("mini")
    with Image.open(SAMPLES / "plasma_dog.jpg") as sample:
        photo = sample.convert("RGB").resize((4000, 3000), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=90)
    draft, whole = mini.images([buffer.getvalue(), Image.open(buffer)])
    assert float(draft @ whole) > 0.99


# --- the stand-in ---


def test_the_fake_has_the_surface_of_the_real_one(toy: Embedder) -> None:
    assert isinstance(toy, EmbedderLike)
    assert isinstance(FakeEmbedder(), EmbedderLike)


def test_the_fake_gives_equal_content_equal_unit_vectors(tmp_path: Path) -> None:
    fake = FakeEmbedder(dim=8)
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"the same photo")
    a, b, other = fake.images([tmp_path / "a.jpg", tmp_path / "b.jpg", b"another photo"])
    np.testing.assert_array_equal(a, b)
    assert abs(float(a @ other)) < 0.99
    np.testing.assert_allclose(np.linalg.norm([a, other], axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(fake.texts(["snow"]), FakeEmbedder(dim=8).texts(["snow"]))
    assert fake.images_seen == 3


def test_the_fake_skips_what_is_marked_unreadable(tmp_path: Path) -> None:
    fake = FakeEmbedder(batch_size=2)
    sources: list[ImageSource] = [b"photo", b"not a photo", b"", str(tmp_path / "gone.jpg"), b"x"]
    batches = list(fake.stream_images(sources))
    assert [position for batch in batches for position in batch.positions] == [0, 4]
    assert [item.position for batch in batches for item in batch.skipped] == [1, 2, 3]
    assert batches[1].vectors.shape == (0, 32)
    assert batches[1].skipped[1].reason == "no such file or directory"
    with pytest.warns(SkippedItemsWarning, match="skipped 3 of 5"):
        fake.images(sources)
