"""Step 2 of the `mini` recipe: cached feature maps and texts to a trained checkpoint.

Five stages:
  locked    both towers locked, only the projections learn (LiT; pictures are cached features)
  joint     the text tower's layers and the image tower from block LOCKED_BLOCKS on unlock
  words     the image tower is locked, as it is then, and many classes are in every step: the
            names of what is in no picture here came out weak
  together  both unlocked again, at lower rates
  last      the same, with the photos of val as well, at still lower rates: val has settled by
            then what it was needed for, and is a sixth of all captioned photos

Every step adds five losses:
  captions   two captions of a photo against the batch's (contrastive)
  labels     prompts against labelled pictures and drawings; equal labels are no negatives
  classifier the image tower's own ImageNet classifier as teacher of zero-shot labels: on the
             batch's pictures, and on features made up by pushing real ones towards a class,
             for most of its 1,000 classes are in no picture here
  kept       the classifier, unchanged, on the moving tower's features, so that it forgets less
  clip       what OpenAI's ViT-B/32 makes of some of the photos, over 1,700 objects' names
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mini_data import IMAGE, LOCKED_BLOCKS, PairTexts, Teacher
from mini_words import CLOTHING_TEMPLATES, DRAWING_TEMPLATES, TEMPLATES, ClipNames, Words
from twinlens.config import BertTextConfig, ClipConfig
from twinlens.data.wordpiece import WordPieceTokenizer
from twinlens.evaluate.retrieval import retrieval_scores
from twinlens.model.checkpoint import load_checkpoint, load_weights, save_checkpoint
from twinlens.model.clip import Clip
from twinlens.model.convert import bert_weights
from twinlens.model.image_conv import EfficientNetLiteTower, InvertedResidual
from twinlens.train.losses import classifier_distillation_loss, contrastive_loss
from twinlens.train.optim import clamp_log_scale, parameter_groups, warmup_cosine

CONFIG = ClipConfig(
    image=IMAGE,
    text=BertTextConfig(width=384, layers=6, heads=12, mlp_width=1536, context=128),
    dim=384,
    image_projection="linear_bias",
    text_projection="linear_bias",
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
    scale_rate: float  # of the three temperatures
    classes: int = 128  # of ImageNet's, whose texts are computed anew in a step
    made_up: int = 192  # features made up in a step
    class_weight: float = 1.0  # on top of WEIGHTS, of both losses over ImageNet's classes
    moved: bool = False  # the locked image tower is not as it came: take its features now
    with_val: bool = False  # learn from Flickr8k val too; its recall then says nothing


STAGES = (
    Stage("locked", 6, 500, 96, 2e-3, 0.0, 0.0, 1e-2),
    Stage("joint", 14, 256, 48, 5e-4, 5e-5, 2e-4, 2.5e-3),
    Stage("words", 3.75, 150, 64, 5e-4, 1.5e-4, 0.0, 5e-3, 400, 512, 3.0, moved=True),
    Stage("together", 10, 256, 48, 4e-4, 1e-4, 1.5e-4, 2.5e-3, 256, 384, 2.5),
    Stage("last", 4, 256, 48, 3e-4, 6e-5, 1e-4, 2e-3, 192, 256, 1.5, with_val=True),
)
MOVED_VIEWS = 2  # of each picture, of a tower that has moved
FIRST_SCALE = 25.0  # of the classifier's and of CLIP's softmax, at each stage's start
CAPTIONS_PER_PHOTO = 2  # a picture costs twice what a caption does
WEIGHT_DECAY = 0.05
FEATURE_DROPOUT = 0.2  # 6,000 photos are soon known by heart
TEXTS_PER_FORWARD = 128
NAMES_PER_STEP = 64  # of CLIP's objects
EMA_DECAY = 0.98
WEIGHTS = {
    "captions": 1.0,
    "labels": 0.3,
    "classifier": 0.5,
    "made up": 0.5,
    "kept": 0.3,
    "clip": 0.3,
}


class Pictures:
    """Cached sets of equally many views: maps, the tower's features by view, texts by picture."""

    def __init__(self, work: Path, *names: str) -> None:
        self.moved_cache = work / f"{'+'.join(names)}.moved.npy"
        self.maps = [np.load(work / f"{name}.maps.npy", mmap_mode="r") for name in names]
        # Of the tower as it came, and as it is while it is locked.
        features = [torch.from_numpy(np.load(work / f"{name}.features.npy")) for name in names]
        self.before = torch.cat(features, dim=1)
        self.features = self.before
        self.words = PairTexts()
        for name in names:
            words = PairTexts(**json.loads((work / f"{name}.json").read_text()))
            self.words.texts += words.texts
            self.words.labels += words.labels
            self.words.files += words.files
        self.count = self.before.shape[1]

    def of_tower(self, tower: EfficientNetLiteTower | None, rows: np.ndarray, view: int) -> Tensor:
        """Features of one view of some pictures, in order: the cached ones without a tower."""
        if tower is None:
            return self.features[view, torch.from_numpy(rows)]
        ends = np.cumsum([cached.shape[1] for cached in self.maps])
        parts = np.split(rows, np.searchsorted(rows, ends[:-1]))
        starts = [0, *ends[:-1]]
        chosen = [
            cached[view, part - start]
            for cached, part, start in zip(self.maps, parts, starts, strict=True)
        ]
        maps = torch.from_numpy(np.concatenate(chosen).astype(np.float32))
        # bf16 takes half the time on AVX-512; embeddings and losses stay float32.
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = tower.from_block(
                maps.contiguous(memory_format=torch.channels_last), LOCKED_BLOCKS
            )
        return features.float()

    @torch.inference_mode()
    def follow(self, tower: EfficientNetLiteTower) -> None:
        """Take the features of `tower`, which has moved, in fewer views."""
        if not self.moved_cache.exists():
            views = min(len(self.before), MOVED_VIEWS)
            features = torch.empty(views, self.count, tower.config.width)
            for view in range(views):
                for rows in np.array_split(np.arange(self.count), 1 + self.count // 128):
                    features[view, torch.from_numpy(rows)] = self.of_tower(tower, rows, view)
            np.save(self.moved_cache, features.numpy())
        self.features = torch.from_numpy(np.load(self.moved_cache))

    def views_with(self, tower: EfficientNetLiteTower | None) -> int:
        """How many views `of_tower` has."""
        return len(self.features) if tower is None else len(self.before)


class Bank:
    """Embeddings of a fixed list of texts, some of them computed anew in each step.

    A softmax over all 1,000 classes wants all their texts; computing them costs as much as
    the rest of the step. Those of earlier steps are a little old and get no gradient.
    """

    def __init__(self, count: int, dim: int) -> None:
        self.vectors = torch.zeros(count, dim)

    def with_fresh(self, chosen: Tensor, fresh: Tensor) -> Tensor:
        """All embeddings, those of `chosen` with their gradient; they are kept for later."""
        self.vectors[chosen] = fresh.detach()
        return self.vectors.index_copy(0, chosen, fresh)


def shuffled(random: np.random.Generator, count: int, batch: int) -> Iterator[np.ndarray]:
    """Row numbers for ever, every picture once per pass, in batches of equal size."""
    left = np.empty(0, np.int64)
    while True:
        while len(left) < batch:
            left = np.concatenate([left, random.permutation(count)])
        yield np.sort(left[:batch])
        left = left[batch:]


class Trainer:
    """Holds the model, its average and the cached data through the stages."""

    def __init__(self, work: Path, shared: Path, teacher: Teacher, minilm: Path, seed: int) -> None:
        torch.manual_seed(seed)
        self.work = work
        self.random = np.random.default_rng(seed)
        self.words = Words(WordPieceTokenizer(minilm / "vocab.txt", CONFIG.text.context), seed)
        self.model = Clip(CONFIG)
        self.model.image_tower.load_state_dict(teacher.tower.state_dict())
        weights = load_file(minilm / "model.safetensors")
        load_weights(
            self.model.text_tower,
            bert_weights(weights, context=CONFIG.text.context),
            source=str(minilm),
        )
        self.model.eval()  # batch norm keeps ImageNet's statistics; there is no dropout
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.teacher = teacher
        self.photos = Pictures(work, "flickr_train")
        # Each with its templates and its share of a step's labelled pictures.
        self.labelled = [
            (Pictures(work, "tiny_train"), TEMPLATES, 0.4),
            (Pictures(work, "clothing_train"), CLOTHING_TEMPLATES, 0.15),
            (Pictures(work, "drawings"), DRAWING_TEMPLATES, 0.45),
        ]
        self.val = Pictures(work, "flickr_val")
        self.clip_vectors = shared / "data" / "clip_embeddings"
        self.clip = ClipNames.read(self.clip_vectors, self.photos.words.files)
        self.class_bank = Bank(len(teacher.weight), CONFIG.dim)
        self.name_bank = Bank(len(self.clip.names), CONFIG.dim)
        # ln(temperature) of the classifier's and of CLIP's softmax over our cosines.
        self.scales = nn.ParameterList([torch.tensor(0.0), torch.tensor(0.0)])
        self.stage = STAGES[0]

    @property
    def tower(self) -> EfficientNetLiteTower:
        assert isinstance(self.model.image_tower, EfficientNetLiteTower)
        return self.model.image_tower

    def image(self, features: Tensor, dropout: float = 0.0) -> Tensor:
        """Unit embeddings of tower features."""
        kept = nn.functional.dropout(features, dropout)
        return normalize(self.model.image_projection(kept), dim=-1)

    def text(self, texts: list[str]) -> Tensor:
        """Texts of like length share a forward: padding all to the longest triples the work."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        features = []
        for start in range(0, len(order), TEXTS_PER_FORWARD):
            tokens = self.words.tokens([texts[i] for i in order[start : start + TEXTS_PER_FORWARD]])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                features.append(self.model.text_tower(tokens))
        together = torch.cat(features)[torch.tensor(order).argsort()].float()
        return normalize(self.model.text_projection(together), dim=-1)

    @torch.no_grad()
    def fill_banks(self) -> None:
        """Every class and name once; from then on some of them in each step."""
        classes = [self.words.imagenet_text(label) for label in range(len(self.teacher.weight))]
        self.class_bank.vectors[:] = self.text(classes)
        self.name_bank.vectors[:] = self.text(self.clip.names)

    def made_up(self, classes: Tensor) -> Tensor:
        """Features of pictures that we do not have: real ones pushed towards one of `classes`.

        The classifier is linear, so its opinion of them is exact, whatever they show.
        """
        pictures = self.photos if self.random.random() < 0.5 else self.labelled[0][0]
        count = self.stage.made_up
        rows = torch.from_numpy(self.random.integers(pictures.count, size=count))
        wanted = classes[torch.from_numpy(self.random.integers(len(classes), size=count))]
        weight = self.teacher.weight[wanted]
        push = torch.from_numpy(self.random.uniform(4, 14, size=(count, 1))).float()
        share = torch.from_numpy(self.random.uniform(0.3, 1, size=(count, 1))).float()
        away = push * weight / weight.square().sum(dim=1, keepdim=True)
        return (share * pictures.features[0, rows] + away).clamp(min=0)  # ReLU's mean is above 0

    def loss(self, rows: np.ndarray, label_rows: list[np.ndarray]) -> dict[str, Tensor]:
        """All losses of one step, not weighted."""
        tower = self.tower if self.stage.image_rate else None
        captions = [
            caption
            for row in rows
            for caption in self.words.captions(self.photos.words.texts[row], CAPTIONS_PER_PHOTO)
        ]
        view = int(self.random.integers(self.photos.views_with(tower)))
        features = [self.photos.of_tower(tower, rows, view)]
        before = [self.photos.before[view, torch.from_numpy(rows)]]
        label_texts, groups = [], []
        for number, ((pictures, templates, _), chosen) in enumerate(
            zip(self.labelled, label_rows, strict=True)
        ):
            view = int(self.random.integers(pictures.views_with(tower)))
            features.append(pictures.of_tower(tower, chosen, view))
            before.append(pictures.before[view, torch.from_numpy(chosen)])
            for row in chosen:
                name = self.words.pick(pictures.words.texts[row])
                label_texts.append(self.words.pick(templates).format(name))
                groups.append(100_000 * number + pictures.words.labels[row])
        together = torch.cat(features)
        teacher = self.classify(torch.cat(before))
        classes = self.sample(teacher, self.stage.classes)
        known = [
            (place, self.clip.of_row[row])
            for place, row in enumerate(rows.tolist())
            if row in self.clip.of_row
        ]
        clip_logits = self.clip.logits[[row for _, row in known]]
        names = self.sample(clip_logits, NAMES_PER_STEP)
        text = self.text(
            captions
            + label_texts
            + [self.words.imagenet_text(int(c)) for c in classes]
            + [self.words.pick(TEMPLATES).format(self.clip.names[int(n)]) for n in names]
        )
        caption_text, label_text, class_text, name_text = torch.split(
            text, [len(captions), len(label_texts), len(classes), len(names)]
        )
        every_class = self.class_bank.with_fresh(classes, class_text)
        every_name = self.name_bank.with_fresh(names, name_text)
        image = self.image(together, FEATURE_DROPOUT)
        photos = image[: len(rows)].repeat_interleave(CAPTIONS_PER_PHOTO, 0)
        invented = self.made_up(classes)
        log_scale = self.model.log_scale
        class_scale, name_scale = self.scales
        return {
            "captions": contrastive_loss(
                photos,
                caption_text,
                log_scale,
                torch.from_numpy(rows).repeat_interleave(CAPTIONS_PER_PHOTO),
            ),
            "labels": contrastive_loss(
                image[len(rows) :], label_text, log_scale, torch.tensor(groups)
            ),
            "classifier": classifier_distillation_loss(image, every_class, class_scale, teacher),
            "made up": classifier_distillation_loss(
                self.image(invented), every_class, class_scale, self.classify(invented)
            ),
            "kept": nn.functional.kl_div(
                self.classify(together).log_softmax(dim=1),
                teacher.log_softmax(dim=1),
                reduction="batchmean",
                log_target=True,
            ),
            "clip": classifier_distillation_loss(
                image[[place for place, _ in known]], every_name, name_scale, clip_logits
            ),
        }

    def classify(self, features: Tensor) -> Tensor:
        """The unchanged ImageNet classifier's logits."""
        return features @ self.teacher.weight.T + self.teacher.bias

    def sample(self, logits: Tensor, count: int) -> Tensor:
        """Columns for one step: mostly those that a teacher sees in this batch."""
        seen = np.unique(logits.topk(5, dim=1).indices.numpy())
        seen = self.random.permutation(seen)[: count // 2]
        anywhere = self.random.integers(logits.shape[1], size=count - len(seen))
        return torch.from_numpy(np.unique(np.concatenate([seen, anywhere])))

    def unlock(self, stage: Stage) -> None:
        """Say which weights learn in this stage."""
        self.model.text_tower.requires_grad_(stage.text_rate > 0)
        # Words that no caption here has must stay where their neighbours expect them.
        self.model.text_tower.token.requires_grad_(False)
        self.model.image_tower.requires_grad_(stage.image_rate > 0)
        for part in (self.tower.stem, *self.tower.blocks[:LOCKED_BLOCKS]):
            part.requires_grad_(False)
        for block in self.tower.blocks:
            assert isinstance(block, InvertedResidual)
            # 3% of the weights; their gradient is half of PyTorch's time on a CPU.
            block.depthwise.conv.requires_grad_(False)

    def run(self, stage: Stage) -> None:
        """Train one stage, unless it is done, and keep the average of its weights."""
        print(f"stage {stage.name}", flush=True)
        if (self.work / stage.name).exists():
            self.model.load_state_dict(load_checkpoint(self.work / stage.name).state_dict())
            return
        self.unlock(stage)
        self.stage = stage
        for pictures in (self.photos, self.val, *(p for p, _, _ in self.labelled)):
            if stage.moved:
                pictures.follow(self.tower)
            else:  # as in a run that was stopped after the stage that moved
                pictures.features = pictures.before
        if stage.with_val:
            self.photos = Pictures(self.work, "flickr_train", "flickr_more")
            self.clip = ClipNames.read(self.clip_vectors, self.photos.words.files)
        self.fill_banks()
        with torch.no_grad():
            for scale in self.scales:
                scale.fill_(np.log(FIRST_SCALE))
        weights = dict(WEIGHTS)
        for name in ("classifier", "made up"):
            weights[name] *= stage.class_weight
        groups = parameter_groups(
            {
                self.model.image_projection: stage.projection_rate,
                self.model.text_projection: stage.projection_rate,
                self.model.text_tower: stage.text_rate,
                self.model.image_tower: stage.image_rate,
            },
            weight_decay=WEIGHT_DECAY,
        )
        scales = [self.model.log_scale, *self.scales]
        groups.append({"params": scales, "lr": stage.scale_rate, "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), eps=1e-6, fused=True)
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
            shuffled(self.random, pictures.count, round(stage.label_batch * share * 2))
            for pictures, _, share in self.labelled
        ]
        started = time.monotonic()
        seen: list[dict[str, float]] = []
        for step in range(total):
            losses = self.loss(next(rows), [next(r) for r in label_rows])
            loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], 1.0)  # type: ignore[attr-defined]
            optimizer.step()
            schedule.step()
            for scale in scales:
                clamp_log_scale(scale)
            average.update_parameters(self.model)
            seen.append({name: value.item() for name, value in losses.items()})
            if (step + 1) % (steps_per_epoch * 3) == 0 or step + 1 == total:
                means = {name: np.mean([row[name] for row in seen]) for name in losses}
                print(
                    f"{stage.name} step {step + 1}/{total} {time.monotonic() - started:.0f} s, "
                    + ", ".join(f"{name} {value:.3f}" for name, value in means.items())
                    + f", scale {self.model.logit_scale:.1f}",
                    flush=True,
                )
                seen = []
                if not stage.with_val:
                    figures = self.validate(average.module)
                    print("val", {name: round(value, 4) for name, value in figures.items()})
        self.model.load_state_dict(average.module.state_dict())
        save_checkpoint(self.model, self.work / stage.name)

    @torch.inference_mode()
    def validate(self, model: nn.Module) -> dict[str, float]:
        """Recall on Flickr8k val with the weights of `model`."""
        assert isinstance(model, Clip)
        kept, self.model = self.model, model
        tower = self.tower if self.stage.image_rate else None
        rows = np.arange(self.val.count)
        image = torch.cat(
            [self.image(self.val.of_tower(tower, r, 0)) for r in np.array_split(rows, 9)]
        )
        captions = [c for texts in self.val.words.texts for c in texts]
        owner = np.repeat(rows, [len(texts) for texts in self.val.words.texts])
        text = self.text(captions)
        self.model = kept
        return retrieval_scores((image @ text.T).numpy(), owner)
