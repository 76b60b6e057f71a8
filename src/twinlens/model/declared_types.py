"""Whether a published configuration's values are of the kind that their keys promise.

Only keys that are read here are looked at, wherever they stand: families add others freely.
"""

from pathlib import Path
from typing import Any

from twinlens.errors import ConfigError


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_section(value: Any) -> bool:
    return isinstance(value, dict)


def _is_size(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_is_count, value))
    return _is_count(value)


def _is_id(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_is_id, value))
    return type(value) is int


_KINDS = (
    (_is_count, "a number above 0", "width head_width heads num_attention_heads context_length"),
    (_is_number, "a number from 0 on", "eps layer_norm_eps"),
    (_is_text, "a text", "hidden_act model_type"),
    (_is_section, "a JSON object", "model_cfg vision_cfg text_cfg"),
    (_is_size, "a number of pixels", "image_size"),
    (_is_id, "a token id", "eos_id"),
)
# Written as null where there is none; old files give image towers null token ids.
_OPTIONAL = (
    (_is_id, "a token id", "eos_token_id pad_token_id"),
    (_is_text, "a text", "timm_model_name timm_pool hf_model_name hf_pooler_type"),
    (
        _is_section,
        "a JSON object",
        "vision_config text_config vision_config_dict text_config_dict norm_kwargs act_kwargs",
    ),
)


def check_types(values: dict[str, Any], path: Path) -> None:
    """Raises ConfigError naming the file, the key and the value that it cannot have."""
    for key, value in values.items():
        for kinds, may_be_null in ((_KINDS, False), (_OPTIONAL, True)):
            for is_right, what, keys in kinds:
                if key not in keys.split() or (may_be_null and value is None) or is_right(value):
                    continue
                shown = repr(value) if len(repr(value)) < 40 else f"{repr(value)[:37]}..."
                raise ConfigError(
                    f"{path}: {key} must be {what}, not {shown}. Get the file again, or correct it."
                )
        if isinstance(value, dict):
            check_types(value, path)
