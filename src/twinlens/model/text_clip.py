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
        x = self.hidden_states(token_ids)
        match self.config.pool:
            case "last":
                return x[:, -1]
            case "argmax":
                end = token_ids.argmax(dim=1)
            case "eos":
                assert self.config.eos_id is not None  # the config saw to it
                # argmax gives the first of several equal values: the first end token.
                end = torch.eq(token_ids, self.config.eos_id).int().argmax(dim=1)
        return x[torch.arange(x.shape[0], device=x.device), end]

    def hidden_states(
        self,
        token_ids: Int64[Tensor, "batch token"],
        *,
        layer: Literal["last", "penultimate"] = "last",
        final_norm: bool = True,
    ) -> Float[Tensor, "batch token channel"]:
        """Every token's feature after the last or the last but one block."""
        tokens = token_ids.shape[1]
        mask = None
        if self.config.causal:
            mask = torch.ones(tokens, tokens, dtype=torch.bool, device=token_ids.device).tril()
            mask = mask[None, None]
        x = self.token(token_ids) + self.position[:tokens]  # (batch, token, channel)
        for block in self.blocks if layer == "last" else self.blocks[:-1]:
            x = block(x, mask)
        return self.final_norm(x) if final_norm else x  # type: ignore[no-any-return]
