"""`twinlens evaluate`, run in this process. Run with: pytest tests/test_cli_evaluate.py

Pictures are plain colours; the embedder sees a picture's mean colour, and in a text the
colour that it names, so that what must come out can be counted by hand.
"""

import colorsys
import csv
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from eval_embedder import GivenEmbedder
from twinlens import embed
from twinlens.cli.main import main
from twinlens.evaluate import composition
from twinlens.evaluate.result import read_results
from twinlens.runtime.relevance import read_relevance_rule

NAMED = {"red": (255, 30, 30), "green": (30, 255, 30), "blue": (30, 30, 255)}
EACH = 10  # pictures a class; one of those called blue is red


def text_vector(text):
    """The colour a text names, or the hue in `hue 0.35`; grey for others."""
    words = text.replace(".", " ", text.endswith(".")).split()
    if "hue" in words:
        return colorsys.hsv_to_rgb(float(words[words.index("hue") + 1]), 1.0, 1.0)
    return next((NAMED[word] for word in words if word in NAMED), (1, 1, 1))


@pytest.fixture(autouse=True)
def given_embedder(monkeypatch, tmp_path):
    """Knows colours. Vectors of one test are nothing to another's."""
    made = []

    def make(model="mini", *, runtime="onnxruntime", threads=None, max_megapixels=180.0):
        made.append(
            GivenEmbedder(
                lambda image: 0.01 + np.asarray(image, dtype=np.float64).mean(axis=(0, 1)),
                text_vector,
                dim=3,
            )
        )
        return made[-1]

    monkeypatch.setattr(embed, "Embedder", make)
    monkeypatch.setenv("TWINLENS_CACHE", str(tmp_path / "cache"))
    return made


@pytest.fixture
def classes(tmp_path, monkeypatch):
    """30 pictures in the folders red, green and blue; blue/9 is red."""
    monkeypatch.chdir(tmp_path)
    for name, colour in NAMED.items():
        (tmp_path / "colours" / name).mkdir(parents=True)
        for number in range(EACH):
            shown = (250, 40, 30) if (name, number) == ("blue", EACH - 1) else colour
            shade = tuple(max(0, channel - 3 * number) for channel in shown)
            Image.new("RGB", (32, 24), shade).save(tmp_path / "colours" / name / f"{number}.png")
    return tmp_path / "colours"


@pytest.fixture
def captions(tmp_path, monkeypatch):
    """20 hues with a caption each; the captions of the first and the eleventh are exchanged."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hues").mkdir()
    rows = []
    for number in range(20):
        hue = number / 20
        colour = tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 1.0, 1.0))
        Image.new("RGB", (32, 24), colour).save(tmp_path / "hues" / f"{number:02}.png")
        said = {0: 0.5, 10: 0.0}.get(number, hue)
        rows.append((f"{number:02}.png", f"a hue {said}", "warm" if number < 10 else "cold"))
    with (tmp_path / "hues" / "captions.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption", "feel"), *rows])
    return tmp_path / "hues"


@pytest.fixture
def run(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["evaluate", *map(str, arguments)])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=caught.value.code or 0, out=out, err=err)

    return run


def printed(result, name):
    """The words after a figure's name."""
    assert result.code == 0, result.err
    lines = [line for line in result.out.splitlines() if line.startswith(f"  {name} ")]
    assert len(lines) == 1, result.out
    return lines[0].removeprefix(f"  {name}").split()


def test_zero_shot_counts_the_one_wrong_picture(run, classes):
    result = run("zero-shot", "colours")
    assert result.out.splitlines()[0] == "zero-shot on colours with given: 30 pictures, 3 classes"
    value, low, high = printed(result, "accuracy@1")
    assert value == "0.967"  # 29 of 30
    assert float(low.strip("[,")) < 0.967 < float(high.strip("]"))
    assert "most often taken for another class: blue for red (1)" in result.out


def test_a_second_evaluation_embeds_nothing(run, classes, given_embedder):
    run("zero-shot", "colours")
    run("zero-shot", "colours")
    run("zero-shot", "colours", "--no-cache")
    assert [embedder.images_seen for embedder in given_embedder] == [30, 0, 30]


def test_the_three_files_hold_the_same_figures(run, classes):
    result = run("zero-shot", "colours", "--json", "a.json", "--html", "a.html", "--markdown")
    assert "| zero-shot | colours | accuracy@1 | 0.967 [" in result.out
    (written,) = read_results(classes.parent / "a.json")
    assert written.figures["accuracy@1"].value == pytest.approx(29 / 30)
    assert written.per_item["accuracy@1"].ids[0] == "blue/0.png"
    assert written.details["surest errors"][0]["id"] == "blue/9.png"
    page = (classes.parent / "a.html").read_text()
    assert "<b>0.967</b>" in page and "blue, taken for red" in page and "data:image/jpeg" in page
    assert "JSON: a.json\npage: a.html\n" in result.err


def test_names_and_templates_from_files(run, classes):
    (classes.parent / "names.txt").write_text("blue\tazure, blue\ngreen\tgreen\nred\tred\n")
    (classes.parent / "mine.txt").write_text("the colour {}\n")
    run(
        *("zero-shot", "colours", "--classes", "names.txt", "--templates", "mine.txt"),
        *("--json", "a.json"),
    )
    (written,) = read_results(classes.parent / "a.json")
    assert written.details["classes"] == ["azure", "green", "red"]
    assert written.details["templates"] == ["the colour {}"]


def test_retrieval_counts_the_two_exchanged_captions(run, captions):
    result = run("retrieval", "hues", "--html", "a.html")
    assert printed(result, "text to image recall@1")[0] == "0.900"  # 18 of 20
    assert printed(result, "text to image median rank")[0] == "1"
    assert printed(result, "image to text mAP")
    assert "Captions whose image came last" in (captions.parent / "a.html").read_text()
    brief = run("retrieval", "hues", "--recall-only")
    assert "image to text recall@10" in brief.out and "image to text mAP" not in brief.out


@pytest.mark.parametrize("name", ["probe", "knn"])
def test_learned_classes(run, classes, name):
    result = run(name, "colours", "--html", "a.html")
    assert printed(result, "accuracy@1")
    assert "6 pictures, 3 classes" in result.out  # a fifth of 30
    assert "chosen on val" in (classes.parent / "a.html").read_text()


def test_a_probe_is_measured_on_the_part_or_data_asked_for(run, classes):
    for name in NAMED:
        (classes.parent / "split" / "test" / name).mkdir(parents=True)
        picture = classes / name / "0.png"
        (classes.parent / "split" / "test" / name / "0.png").write_bytes(picture.read_bytes())
    (classes.parent / "split" / "train").symlink_to(classes)
    by_split = run("probe", "split", "--split", "train", "--test-split", "test")
    assert printed(by_split, "accuracy@1")[0] == "1.000"
    assert by_split.out.startswith("probe on split/test with given: 3 pictures, 3 classes")
    by_place = run("probe", "colours", "--test", "split/test")
    assert printed(by_place, "accuracy@1") == printed(by_split, "accuracy@1")


def test_few_shot_with_the_shots_asked_for(run, classes):
    result = run("few-shot", "colours", "--shots", 1, "--shots", 2, "--draws", 2)
    assert printed(result, "prototypes, 1 shot")
    assert printed(result, "Tip-Adapter, 2 shots")
    assert "4 shots" not in result.out


def test_calibration_says_which_scale_is_honest(run, classes):
    result = run("calibration", "colours", "--html", "a.html")
    assert printed(result, "ECE after temperature")
    assert "for honest probabilities multiply cosines by" in result.out
    assert "After temperature" in (classes.parent / "a.html").read_text()


def test_unknown_against_held_out_classes_and_against_a_folder(run, classes, captions):
    held_out = run("unknown", "colours", "--rate", 0.2)
    assert printed(held_out, "coverage, cosine")
    assert "answer where the cosine is above" in held_out.out
    # 20 hues: 10 set the threshold, of which a rate of 0.1 allows floor(0.1 * 11) = 1.
    against = run("unknown", "colours", "--other", "hues", "--rate", 0.1)
    assert printed(against, "AUROC, margin")
    assert "Set on 10 unknown pictures" in against.out


def test_cut_off_writes_the_rule_that_search_reads(run, captions):
    result = run("cut-off", "hues", "--rule", "relevance.json", "--html", "a.html")
    assert printed(result, "precision")
    rule = read_relevance_rule(captions.parent / "relevance.json")
    assert rule.model_id == "given-1:3"
    assert f"rule: {rule.kind} of at least" in result.out
    assert "rule: relevance.json" in result.err
    assert "--rule FILE keeps the rule" in run("cut-off", "hues").err


def test_robustness_of_the_damage_asked_for(run, classes):
    result = run(
        *("robustness", "colours", "--limit", 3, "--severity", 1, "--severity", 5),
        *("--damage", "grey", "--html", "a.html"),
    )
    assert printed(result, "accuracy@1 clean")[0] == "1.000"  # blue/0, green/0 and red/0
    assert "accuracy@1 grey" in result.out and "accuracy@1 blur" not in result.out
    assert "3 of 30 pictures were taken, at even distances." in result.err
    assert "What damage costs: grey" in (classes.parent / "a.html").read_text()


def test_robustness_by_captions_or_by_labels(run, captions):
    result = run("robustness", "hues", "--damage", "grey", "--severity", 1)
    assert printed(result, "image to text recall@1 clean")[0] == "0.900"
    refused = run("robustness", "hues", "--as", "labels", "--damage", "grey")
    assert refused.code == 1 and "captions but no labels" in refused.err


def test_typographic(run, classes):
    result = run("typographic", "colours", "--html", "a.html")
    assert printed(result, "accuracy@1 clean")[0] == "0.967"


def test_composition_needs_no_data_and_asks_of_data_what_it_has(
    run, classes, captions, monkeypatch
):
    monkeypatch.setattr(composition, "PAIRS_PER_KIND", 3)
    monkeypatch.setattr(composition, "PICTURES_PER_COUNT", 3)
    drawn = run("composition")
    assert "composition on drawn scenes" in drawn.out and "counting on drawn scenes" in drawn.out
    assert "negation on colours" in run("composition", "colours").out
    refused = run("composition", "hues")
    assert refused.code == 1 and "has words that can be exchanged" in refused.err


def test_geometry(run, classes):
    result = run("geometry", "colours", "--html", "a.html")
    assert printed(result, "modality gap")
    assert "Found most often" in (classes.parent / "a.html").read_text()


def test_groups(run, captions):
    result = run("groups", "hues", "--smallest", 5, "--html", "a.html")
    assert printed(result, "text_to_image_recall@1, warm".replace("_", " "))[0] == "0.900"
    assert "warm: no difference shown" in result.out
    refused = run("groups", "hues", "--by", "country")
    assert refused.code == 1
    assert "has no column 'country'; there are: feel." in refused.err


def test_all_measures_what_fits_and_names_the_rest(run, classes):
    result = run(
        *("all", "colours", "--skip", "robustness", "--skip", "composition"),
        *("--json", "a.json", "--html", "a.html"),
    )
    assert result.code == 0, result.err
    tasks = [one.task for one in read_results(classes.parent / "a.json")]
    assert tasks[:3] == ["zero-shot", "probe", "knn"] and "geometry" in tasks
    assert "robustness" not in tasks and "composition" not in tasks
    # 5 pictures of a class cannot promise that 5 % are accepted.
    assert "unknown left out: a false-accept rate of 0.05 cannot be promised" in result.err
    assert "unknown left out" in (classes.parent / "a.html").read_text()


def test_all_of_captions(run, captions):
    result = run("all", "hues", "--skip", "robustness", "--skip", "composition", "--json", "a.json")
    assert result.code == 0, result.err
    tasks = [one.task for one in read_results(captions.parent / "a.json")]
    assert tasks == ["retrieval", "cut-off", "geometry", "groups"]


def test_all_refuses_to_skip_what_is_no_task(run, classes):
    result = run("all", "colours", "--skip", "zeroshot")
    assert result.code == 1 and "--skip zeroshot: there is no such task" in result.err


def test_broken_pictures_are_named_and_counted_once(run, classes):
    (classes / "red" / "broken.png").write_bytes(b"not a photo")
    result = run("zero-shot", "colours", "--html", "a.html")
    assert printed(result, "accuracy@1")[0] == "0.967"
    assert result.err.count("skipped red/broken.png: not a picture in a known format") == 1
    assert "1 picture left out\n" in result.err
    assert "red/broken.png" in (classes.parent / "a.html").read_text()


def table(folder, *rows):
    with (folder.parent / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), *rows])


def missing_class_file(folder):
    return ["colours", "--classes", "names.txt"], "The class file names.txt is not there."


def wrong_label(folder):
    table(folder, ("colours/red/0.png", "red"), ("colours/blue/0.png", "bleu"))
    (folder.parent / "names.txt").write_text("red\nblue\n")
    return (
        ["labels.csv", "--classes", "names.txt"],
        "picture colours/blue/0.png has the label 'bleu', which is not among the 2 classes",
    )


def wrong_number(folder):
    table(folder, ("colours/red/0.png", 0), ("colours/blue/0.png", 2))
    (folder.parent / "names.txt").write_text("red\nblue\n")
    return (
        ["labels.csv", "--classes", "names.txt"],
        "picture colours/blue/0.png has the label 2, which is not among the 2 classes",
    )


def numbers_without_names(folder):
    table(folder, ("colours/red/0.png", 0))
    return ["labels.csv"], "are numbers without names: give a class file with --classes FILE"


def class_without_a_name(folder):
    (folder.parent / "names.txt").write_text("blue\tblue\ngreen\t\nred\tred\n")
    return ["colours", "--classes", "names.txt"], "Class 2 of names.txt has no name"


def unequal_counts(folder):
    (folder.parent / "names.txt").write_text("one\ntwo\n")
    return (
        ["colours", "--classes", "names.txt"],
        "The class file names.txt has 2 names, but there are 3 class folders.",
    )


def only_broken_pictures(folder):
    for path in folder.glob("*/*.png"):
        path.write_bytes(b"not a photo")
    return ["colours"], "None of the 30 pictures of colours can be read."


def no_data(folder):
    return ["nowhere"], "nowhere is not there, and is no built-in name either"


def benchmark_without_root(folder):
    return ["cifar10"], "with --root"


def no_templates(folder):
    return ["colours", "--templates", "nice"], "nice is neither a file of templates nor one of"


def no_folder_for_the_page(folder):
    return ["colours", "--html", "not/there/a.html"], "not/there is not a folder"


@pytest.mark.parametrize(
    "mistake",
    [
        missing_class_file,
        wrong_label,
        wrong_number,
        numbers_without_names,
        class_without_a_name,
        unequal_counts,
        only_broken_pictures,
        no_data,
        benchmark_without_root,
        no_templates,
        no_folder_for_the_page,
    ],
)
def test_a_mistake_is_one_clear_sentence(run, classes, mistake):
    arguments, sentence = mistake(classes)
    result = run("zero-shot", *arguments)
    assert (result.code, result.out) == (1, "")
    (line,) = result.err.splitlines()
    assert line.startswith("twinlens: ") and sentence in line


def test_an_empty_class_is_named_and_stays_a_possible_answer(run, classes):
    (classes.parent / "names.txt").write_text("blue\ngreen\nred\nyellow\n")
    result = run("zero-shot", "colours", "--classes", "names.txt")
    assert "colours: 'yellow' of 4 classes has no picture; a possible answer" in result.err
    assert "30 pictures, 4 classes" in result.out


def test_help_and_a_missing_package_without_the_extra(run, classes, monkeypatch):
    for name in ("sklearn", "scipy", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run("probe", "--help").code == 0
    result = run("probe", "colours")
    assert result.code == 1
    assert result.err == (
        "twinlens: this evaluation needs the package 'scikit-learn', which is not installed. "
        "Install it with: pip install 'twinlens[evaluate]'\n"
    )
    page = run("zero-shot", "colours", "--html", "a.html")
    assert page.code == 1 and "--html needs the package 'matplotlib'" in page.err
    assert printed(run("zero-shot", "colours"), "accuracy@1")[0] == "0.967"


def test_help_loads_neither_numpy_nor_a_runtime():
    code = (
        "import sys; from twinlens.cli.main import app; print(sorted({'numpy', 'onnxruntime', "
        "'scipy', 'sklearn', 'matplotlib', 'PIL'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "[]\n"


def test_compare_reads_what_evaluate_wrote(run, classes, capsys):
    run("zero-shot", "colours", "--json", "a.json")
    run("zero-shot", "colours", "--templates", "plain", "--json", "b.json")
    with pytest.raises(SystemExit) as caught:
        main(["compare", "a.json", "b.json", "--json", "c.json"])
    assert not caught.value.code
    assert "accuracy@1" in capsys.readouterr().out
    assert json.loads((classes.parent / "c.json").read_text())
