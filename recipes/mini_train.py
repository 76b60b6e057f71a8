"""Step 2 of the `mini` recipe: cached feature maps and texts to a trained checkpoint.

Three stages, each selected on Flickr8k val:
  locked  both towers locked, only the projections learn (LiT; seconds a hundred steps)
  text    the text tower unlocks; pictures are still cached features
  joint   the image tower unlocks from block LOCKED_BLOCKS on as well

Every step adds three losses: captions against photos; label prompts against labelled
pictures (equal labels are not negatives); and the image tower's own ImageNet
classifier as a teacher for zero-shot labels, so that unlocking it does not make it
forget and the words for its 1,000 classes are learned from unlabelled photos.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mini_data import LOCKED_BLOCKS, PairTexts, load_teacher
from twinlens.config import BertTextConfig, ClipConfig, EfficientNetLiteConfig
from twinlens.data.wordpiece import WordPieceTokenizer
from twinlens.evaluate.retrieval import retrieval_scores
from twinlens.model.checkpoint import load_checkpoint, load_weights, save_checkpoint
from twinlens.model.clip import Clip
from twinlens.model.convert import bert_weights
from twinlens.model.image_conv import EfficientNetLiteTower
from twinlens.train.losses import classifier_distillation_loss, contrastive_loss
from twinlens.train.optim import clamp_log_scale, parameter_groups, warmup_cosine

CONFIG = ClipConfig(
    image=EfficientNetLiteConfig(),
    text=BertTextConfig(width=384, layers=6, heads=12, mlp_width=1536, context=128),
    dim=384,
    image_projection="linear_bias",
    text_projection="linear_bias",
)
TEMPLATES = (
    "{}",
    "a photo of a {}",
    "a {}",
    "a picture of a {}",
    "a small photo of a {}",
    "a blurry photo of a {}",
    "a close-up of a {}",
    "the {}",
    "one {}",
    "there is a {} in the picture",
    "a {} in the scene",
    "a low resolution photo of the {}",
)
CLOTHING_TEMPLATES = (
    "{}",
    "a photo of a {}",
    "a {} lying on the floor",
    "a {} on a bed",
    "a piece of clothing: {}",
    "clothes, a {}",
)
STOP_WORDS = frozenset(
    "a an the is are of in on at to and with his her their its as while some".split()
)


@dataclass(frozen=True)
class Stage:
    """One stage's length and learning rates; a rate of 0 locks that part."""

    name: str
    epochs: float  # passes over Flickr8k's training photos
    batch: int  # photos with captions per step
    label_batch: int  # labelled pictures per step
    projection_rate: float
    text_rate: float
    image_rate: float


STAGES = (
    Stage("locked", 8, 500, 160, 2e-3, 0.0, 0.0),
    Stage("text", 12, 400, 100, 5e-4, 6e-5, 0.0),
    Stage("joint", 7, 250, 80, 3e-4, 4e-5, 2e-4),
)
WEIGHT_DECAY = 0.05
TEXTS_PER_FORWARD = 128
DISTILL_LABELS = 128  # ImageNet classes looked at in a step
EMA_DECAY = 0.95


class Pictures:
    """One cached set: maps or features by view, texts by picture."""

    def __init__(self, work: Path, name: str) -> None:
        self.cache = work / f"{name}.features.npy"
        self.maps = np.load(work / f"{name}.maps.npy", mmap_mode="r")
        self.teacher = np.load(work / f"{name}.teacher.npy", mmap_mode="r")
        self.words = PairTexts(**json.loads((work / f"{name}.json").read_text()))
        self.views, self.count = self.maps.shape[:2]
        self.features: Tensor | None = None  # (view, picture, channel) while the image is locked

    def cache_features(self, tower: EfficientNetLiteTower) -> None:
        """Run the rest of the still locked image tower once for all views."""
        if not self.cache.exists():
            batches = [
                (view, np.arange(start, min(start + 128, self.count)))
                for view in range(self.views)
                for start in range(0, self.count, 128)
            ]
            features = np.empty((self.views, self.count, tower.config.width), np.float32)
            with torch.inference_mode():
                for view, rows in track(batches, description=f"features {self.cache.stem}"):
                    locked = self._maps(view, rows)
                    features[view, rows] = tower.from_block(locked, LOCKED_BLOCKS).numpy()
            np.save(self.cache, features)
        self.features = torch.from_numpy(np.load(self.cache))

    def _maps(self, view: int, rows: np.ndarray) -> Tensor:
        maps = torch.from_numpy(self.maps[view, rows].astype(np.float32))
        return maps.contiguous(memory_format=torch.channels_last)

    def image_features(
        self, tower: EfficientNetLiteTower, rows: np.ndarray, view: int
    ) -> tuple[Tensor, Tensor]:
        """Tower features of one view of some pictures, and the teacher's logits for it."""
        teacher = torch.from_numpy(self.teacher[view, rows].astype(np.float32))
        if self.features is not None:
            return self.features[view, torch.from_numpy(rows)], teacher
        return tower.from_block(self._maps(view, rows), LOCKED_BLOCKS), teacher


def imagenet_texts() -> list[tuple[list[str], str]]:
    """(synonyms, definition) of the classifier's 1,000 classes, from WordNet 3.0."""
    lines = (Path(__file__).parent / "imagenet_classes.tsv").read_text().splitlines()[1:]
    rows = [line.lower().split("\t") for line in lines]
    return [(names.split(", "), definition) for _, names, definition in rows]


class Words:
    """Draws training texts; one random generator, so that a run can be repeated."""

    def __init__(self, tokenizer: WordPieceTokenizer, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.tokenizer = tokenizer

    def pick(self, options: list[str] | tuple[str, ...]) -> str:
        return options[int(self.random.integers(len(options)))]

    def caption(self, captions: list[str]) -> str:
        """One caption, now and then as keywords, for that is how people search."""
        caption = self.pick(captions)
        if self.random.random() < 0.15:
            words = [w for w in caption.lower().split() if w not in STOP_WORDS]
            caption = " ".join(words) or caption
        return caption

    def tokens(self, texts: list[str]) -> Tensor:
        ids = [self.tokenizer.truncate(self.tokenizer.encode(text)) for text in texts]
        return torch.from_numpy(self.tokenizer.pad(ids))


def shuffled(random: np.random.Generator, count: int, batch: int) -> Iterator[np.ndarray]:
    """Row numbers for ever, every picture once per pass, in batches of equal size."""
    left = np.empty(0, np.int64)
    while True:
        while len(left) < batch:
            left = np.concatenate([left, random.permutation(count)])
        yield np.sort(left[:batch])
        left = left[batch:]


def _sum_of_recalls(scores: dict[str, float]) -> float:
    return sum(scores.values())


class Trainer:
    """Holds the model, its average and the cached data through the three stages."""

    def __init__(self, work: Path, efficientnet: Path, minilm: Path, seed: int):
        torch.manual_seed(seed)
        self.work = work
        self.random = np.random.default_rng(seed)
        self.words = Words(WordPieceTokenizer(minilm / "vocab.txt", CONFIG.text.context), seed)
        self.model = Clip(CONFIG)
        tower, _, _ = load_teacher(efficientnet)
        self.model.image_tower.load_state_dict(tower.state_dict())
        weights = load_file(minilm / "model.safetensors")
        load_weights(
            self.model.text_tower,
            bert_weights(weights, context=CONFIG.text.context),
            source=str(minilm),
        )
        self.model.eval()  # batch norm keeps ImageNet's statistics; there is no dropout
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.distill_log_scale = nn.Parameter(torch.tensor(np.log(30.0), dtype=torch.float32))
        self.photos = Pictures(work, "flickr_train")
        self.labelled = [Pictures(work, "tiny_train"), Pictures(work, "clothing_train")]
        self.val = Pictures(work, "flickr_val")
        self.imagenet = imagenet_texts()

    @property
    def tower(self) -> EfficientNetLiteTower:
        assert isinstance(self.model.image_tower, EfficientNetLiteTower)
        return self.model.image_tower

    def image(self, pictures: Pictures, rows: np.ndarray, view: int) -> tuple[Tensor, Tensor]:
        features, teacher = pictures.image_features(self.tower, rows, view)
        return normalize(self.model.image_projection(features), dim=-1), teacher

    def text(self, texts: list[str]) -> Tensor:
        """Texts of like length share a forward: padding all to the longest triples the work."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        features = []
        for start in range(0, len(order), TEXTS_PER_FORWARD):
            tokens = self.words.tokens([texts[i] for i in order[start : start + TEXTS_PER_FORWARD]])
            # bf16 halves the text tower's time on AVX-512; the loss stays float32.
            with torch.autocast("cpu", dtype=torch.bfloat16):
                features.append(self.model.text_tower(tokens))
        together = torch.cat(features)[torch.tensor(order).argsort()].float()
        return normalize(self.model.text_projection(together), dim=-1)

    def label_text(self, pictures: Pictures, row: int) -> str:
        clothing = pictures is self.labelled[1]
        template = self.words.pick(CLOTHING_TEMPLATES if clothing else TEMPLATES)
        return template.format(self.words.pick(pictures.words.texts[row]))

    def imagenet_text(self, label: int) -> str:
        synonyms, definition = self.imagenet[label]
        text = self.words.pick(TEMPLATES).format(self.words.pick(synonyms))
        return f"{text}, {definition}" if self.random.random() < 0.25 else text

    def loss(self, rows: np.ndarray, label_rows: list[np.ndarray]) -> Tensor:
        """All three losses of one step."""
        captions = [self.words.caption(self.photos.words.texts[row]) for row in rows]
        label_texts = [
            self.label_text(pictures, row)
            for pictures, chosen in zip(self.labelled, label_rows, strict=True)
            for row in chosen
        ]
        views = [int(self.random.integers(p.views)) for p in (self.photos, *self.labelled)]
        image, teacher = self.image(self.photos, rows, views[0])
        labelled = [
            self.image(pictures, chosen, view)
            for pictures, chosen, view in zip(self.labelled, label_rows, views[1:], strict=True)
        ]
        all_teacher = torch.cat([teacher, *(t for _, t in labelled)])
        classes = self.sample_classes(all_teacher)
        text = self.text(captions + label_texts + [self.imagenet_text(int(c)) for c in classes])
        caption_text, label_text, class_text = torch.split(
            text, [len(captions), len(label_texts), len(classes)]
        )
        groups = torch.cat(
            [
                torch.tensor([1000 * number + pictures.words.labels[row] for row in chosen])
                for number, (pictures, chosen) in enumerate(
                    zip(self.labelled, label_rows, strict=True)
                )
            ]
        )
        label_image = torch.cat([i for i, _ in labelled])
        log_scale = self.model.log_scale
        return (
            contrastive_loss(image, caption_text, log_scale)
            + 0.3
            * contrastive_loss(label_image, label_text, log_scale, groups[:, None] == groups[None])
            + 0.5
            * classifier_distillation_loss(
                torch.cat([image, label_image]),
                class_text,
                self.distill_log_scale,
                all_teacher[:, classes],
            )
        )

    def sample_classes(self, teacher: Tensor) -> Tensor:
        """ImageNet classes for one step: mostly those the teacher sees in this batch."""
        seen = np.unique(teacher.topk(5, dim=1).indices.numpy())
        seen = self.random.permutation(seen)[: DISTILL_LABELS * 3 // 4]
        anywhere = self.random.integers(1000, size=DISTILL_LABELS // 4)
        return torch.from_numpy(np.unique(np.concatenate([seen, anywhere])))

    def run(self, stage: Stage) -> None:
        """Train one stage, unless it is done, and keep the better of live and averaged weights."""
        print(f"stage {stage.name}", flush=True)
        if (self.work / stage.name).exists():
            self.model.load_state_dict(load_checkpoint(self.work / stage.name).state_dict())
            return
        unlocked = stage.image_rate > 0
        for module, rate in (
            (self.model.text_tower, stage.text_rate),
            (self.model.image_tower, stage.image_rate),
        ):
            module.requires_grad_(rate > 0)
        for part in (self.tower.stem, *self.tower.blocks[:LOCKED_BLOCKS]):
            part.requires_grad_(False)
        for pictures in (self.photos, *self.labelled, self.val):
            pictures.features = None
            if not unlocked:
                pictures.cache_features(self.tower)
        groups = parameter_groups(
            {
                self.model.image_projection: stage.projection_rate,
                self.model.text_projection: stage.projection_rate,
                self.model.text_tower: stage.text_rate,
                self.model.image_tower: stage.image_rate,
            },
            weight_decay=WEIGHT_DECAY,
        )
        scales = [self.model.log_scale, self.distill_log_scale]
        groups.append({"params": scales, "lr": stage.projection_rate, "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6)
        steps_per_epoch = self.photos.count // stage.batch
        total = int(stage.epochs * steps_per_epoch)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda s: warmup_cosine(s, warmup_steps=total // 10, total_steps=total)
        )
        average = AveragedModel(
            self.model,
            multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY),  # type: ignore[no-untyped-call]
        )
        rows = shuffled(self.random, self.photos.count, stage.batch)
        label_rows = [
            shuffled(self.random, self.labelled[0].count, stage.label_batch * 3 // 4),
            shuffled(self.random, self.labelled[1].count, stage.label_batch // 4),
        ]
        started, losses = time.monotonic(), []
        for step in range(total):
            loss = self.loss(next(rows), [next(r) for r in label_rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], 1.0)  # type: ignore[attr-defined]
            optimizer.step()
            schedule.step()
            clamp_log_scale(self.model.log_scale)
            clamp_log_scale(self.distill_log_scale)
            average.update_parameters(self.model)
            losses.append(loss.item())
            if (step + 1) % (steps_per_epoch * 2) == 0 or step + 1 == total:
                live, averaged = self.validate(self.model), self.validate(average.module)
                print(
                    f"{stage.name} step {step + 1}/{total} loss {np.mean(losses):.4f} "
                    f"scale {self.model.logit_scale:.1f} "
                    f"val t2i@10 {live['text_to_image_recall@10']:.4f} "
                    f"i2t@10 {live['image_to_text_recall@10']:.4f} | averaged "
                    f"t2i@1 {averaged['text_to_image_recall@1']:.4f} "
                    f"t2i@10 {averaged['text_to_image_recall@10']:.4f} "
                    f"i2t@10 {averaged['image_to_text_recall@10']:.4f} "
                    f"{time.monotonic() - started:.0f} s",
                    flush=True,
                )
                losses = []
        if _sum_of_recalls(averaged) > _sum_of_recalls(live):
            self.model.load_state_dict(average.module.state_dict())
        save_checkpoint(self.model, self.work / stage.name)

    @torch.inference_mode()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Recall on Flickr8k val with the weights of `model`."""
        assert isinstance(model, Clip)
        kept, self.model = self.model, model
        rows = np.arange(self.val.count)
        image = torch.cat([self.image(self.val, r, 0)[0] for r in np.array_split(rows, 9)])
        captions = [c for texts in self.val.words.texts for c in texts]
        owner = np.repeat(rows, [len(texts) for texts in self.val.words.texts])
        text = self.text(captions)
        self.model = kept
        return retrieval_scores((image @ text.T).numpy(), owner)
