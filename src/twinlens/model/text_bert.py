"""A BERT-like text tower; its feature is the mean over real tokens, or the first token.

Padding is found by id inside the tower, so that a caller cannot forget the mask.
Source: Devlin et al. 2019, arXiv:1810.04805; mean pooling: Reimers and Gurevych 2019,
arXiv:1908.10084, section 3.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from twinlens.config import BertTextConfig
from twinlens.model.attention import Block


class BertTextTower(nn.Module):
    """Token ids to one feature vector per text."""

    def __init__(self, config: BertTextConfig) -> None:
        super().__init__()
        self.config = config
        # Token-type embeddings are folded into `position`: a caption is always type 0.
        self.token = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Parameter(torch.empty(config.context, config.width))
        self.embedding_norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.blocks = nn.ModuleList(Block(config, pre_norm=False) for _ in range(config.layers))
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, token_ids: Int64[Tensor, "batch token"]) -> Float[Tensor, "batch channel"]:
        """At most `config.context` tokens, padded with `config.pad_id`."""
        real = token_ids != self.config.pad_id  # (batch, token)
        x = self.embedding_norm(self.token(token_ids) + self.position[: token_ids.shape[1]])
        mask = real[:, None, None, :]  # every query sees the real tokens
        for block in self.blocks:
            x = block(x, mask)
        if self.config.pool == "first":
            return x[:, 0]  # type: ignore[no-any-return]
        weights = real.to(x.dtype).unsqueeze(-1)  # (batch, token, 1)
        return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1.0)  # type: ignore[no-any-return]
