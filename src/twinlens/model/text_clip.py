"""The text transformer of CLIP and SigLIP: pre-norm blocks and one position's feature.

Which position, and whether a token sees what follows it, belongs to the weights: the
wrong choice gives plausible nonsense (TRAPS, "Text pooling"). Projection: clip.py.
Sources: Radford et al. 2021, arXiv:2103.00020, section 2.4; Zhai et al. 2023,
arXiv:2303.15343 (no mask, last position).
"""

from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from twinlens.config import ClipTextConfig
from twinlens.model.attention import Block, init_transformer


class ClipTextTower(nn.Module):
    """Token ids to one feature vector per text."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Parameter(torch.empty(config.context, config.width))
        self.blocks = nn.ModuleList(Block(config, pre_norm=True) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        # Tokens start at std 0.02 and positions at 0.01, as in OpenAI's reference code.
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.position, std=0.01)
        init_transformer(self.blocks, config)

    def forward(self, token_ids: Int64[Tensor, "batch token"]) -> Float[Tensor, "batch channel"]:
        """At most `config.context` tokens, each row with its end token inside."""
        if self.training and len(self.blocks) > 0:
            return self._pooled_alone(token_ids)
        x = self.hidden_states(token_ids)
        if self.config.pool == "last":
            return x[:, -1]
        return x[torch.arange(x.shape[0], device=x.device), self._end(token_ids)]

    def _end(self, token_ids: Tensor) -> Tensor:
        """The position of each row that is the text's feature."""
        if self.config.pool == "last":
            return torch.full_like(token_ids[:, 0], token_ids.shape[1] - 1)
        if self.config.pool == "argmax":
            return token_ids.argmax(dim=1)
        assert self.config.eos_id is not None  # the config saw to it
        # argmax gives the first of several equal values: the first end token.
        return torch.eq(token_ids, self.config.eos_id).int().argmax(dim=1)

    def _pooled_alone(self, token_ids: Tensor) -> Tensor:
        """The same features, the last block computed where they are and nowhere else."""
        x, mask = self._embed(token_ids)
        for block in self.blocks[:-1]:
            x = block(x, mask)
        pooled: Tensor = self.final_norm(self.blocks[-1](x, mask, at=self._end(token_ids)))
        return pooled[:, 0]

    def hidden_states(
        self,
        token_ids: Int64[Tensor, "batch token"],
        *,
        layer: Literal["last", "penultimate"] = "last",
        final_norm: bool = True,
    ) -> Float[Tensor, "batch token channel"]:
        """Every token's feature after the last or the last but one block."""
        x, mask = self._embed(token_ids)
        for block in self.blocks if layer == "last" else self.blocks[:-1]:
            x = block(x, mask)
        return self.final_norm(x) if final_norm else x

    def _embed(self, token_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the first block takes, and who may look at whom."""
        tokens = token_ids.shape[1]
        mask = None
        if self.config.causal:
            mask = torch.ones(tokens, tokens, dtype=torch.bool, device=token_ids.device).tril()
            mask = mask[None, None]
        return self.token(token_ids) + self.position[:tokens], mask  # (batch, token, channel)
