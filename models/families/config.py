"""A checkpoint's config.json as frozen values, old spellings understood. It knows no torch and no weights."""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from batchloom.models.errors import CheckpointError, UnsupportedModelError


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What every family has. Fields bear config.json's names where they mean the same."""

    model_type: str  # "bart", "blenderbot", "blenderbot-small" or "bloom"
    architectures: tuple[str, ...] = ()  # class names, the first is loaded unless another is asked for
    vocab_size: int  # rows of the embedding; a tokenizer can have more or fewer
    pad_token_id: int | None
    bos_token_id: int | None
    eos_token_id: int | None  # the first, where the file lists several
    eos_token_ids: tuple[int, ...] = ()  # all of them
    tie_word_embeddings: bool = True  # the output head is the embedding
    id2label: Mapping[int, str]  # classes by column of the logits
    problem_type: str | None = None  # "single_label_classification", "multi_label_classification", "regression"

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @property
    def label2id(self) -> dict[str, int]:
        return {label: column for column, label in self.id2label.items()}


@dataclass(frozen=True, kw_only=True)
class BartConfig(ModelConfig):
    """BART, Blenderbot and BlenderbotSmall: two stacks of layers and learned positions."""

    d_model: int  # width of hidden states
    encoder_layers: int
    decoder_layers: int
    encoder_attention_heads: int
    decoder_attention_heads: int
    encoder_ffn_dim: int  # width inside the feed-forward
    decoder_ffn_dim: int
    max_position_embeddings: int  # longest sequence, in tokens
    activation_function: str = "gelu"  # a name of layers/feedforward.py
    scale_embedding: bool = False  # multiply embeddings by sqrt(d_model)
    decoder_start_token_id: int | None  # the first token that the decoder reads

    @property
    def embedding_scale(self) -> float:
        return self.d_model**0.5 if self.scale_embedding else 1.0


@dataclass(frozen=True, kw_only=True)
class BloomConfig(ModelConfig):
    """BLOOM: one stack, ALiBi instead of positions."""

    hidden_size: int  # width of hidden states
    n_layer: int
    n_head: int
    layer_norm_epsilon: float = 1e-5
    apply_residual_connection_post_layernorm: bool = False  # residuals branch off after the norm, not before

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.n_head


# Other names that files use for a field; the field's own name wins.
SPELLINGS = {
    "d_model": ("hidden_size",),
    "encoder_layers": ("num_hidden_layers",),
    "encoder_attention_heads": ("num_attention_heads",),
    "hidden_size": ("n_embed", "n_embd"),
    "n_layer": ("num_hidden_layers", "num_layers"),
    "n_head": ("num_attention_heads",),
}

# What each family means by a key that its file leaves out (the reference's defaults).
_SMALL_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
FAMILY_DEFAULTS: dict[str, dict[str, Any]] = {
    "bart": {
        "vocab_size": 50265,
        "d_model": 1024,
        "encoder_layers": 12,
        "decoder_layers": 12,
        "encoder_attention_heads": 16,
        "decoder_attention_heads": 16,
        "encoder_ffn_dim": 4096,
        "decoder_ffn_dim": 4096,
        "max_position_embeddings": 1024,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "decoder_start_token_id": 2,
        "num_labels": 3,
    },
    "blenderbot": {
        "vocab_size": 8008,
        "d_model": 2560,
        "encoder_layers": 2,
        "decoder_layers": 24,
        "encoder_attention_heads": 32,
        "decoder_attention_heads": 32,
        "encoder_ffn_dim": 10240,
        "decoder_ffn_dim": 10240,
        "max_position_embeddings": 128,
        **_SMALL_IDS,
    },
    "blenderbot-small": {
        "vocab_size": 50265,
        "d_model": 512,
        "encoder_layers": 8,
        "decoder_layers": 8,
        "encoder_attention_heads": 16,
        "decoder_attention_heads": 16,
        "encoder_ffn_dim": 2048,
        "decoder_ffn_dim": 2048,
        "max_position_embeddings": 512,
        **_SMALL_IDS,
    },
    "bloom": {
        "vocab_size": 250880,
        "hidden_size": 64,
        "n_layer": 2,
        "n_head": 8,
        "pad_token_id": None,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
_ARCHITECTURE_PREFIXES = {
    "BlenderbotSmall": "blenderbot-small",
    "Blenderbot": "blenderbot",
    "Bart": "bart",
    "Bloom": "bloom",
}


def read_config(raw: Mapping[str, Any], where: str) -> BartConfig | BloomConfig:
    """The configuration that a parsed config.json holds; `where` names the file in errors.

    Raises UnsupportedModelError for other families, CheckpointError with all bad values of the file at once.
    """
    model_type = _family(raw, where)
    defaults = FAMILY_DEFAULTS[model_type]
    config_class: type[BartConfig | BloomConfig] = BloomConfig if model_type == "bloom" else BartConfig
    eos_token_ids = _as_tuple(_lookup(raw, "eos_token_id", defaults))
    values: dict[str, Any] = {
        "model_type": model_type,
        "architectures": tuple(raw.get("architectures") or ()),
        "eos_token_id": eos_token_ids[0] if eos_token_ids else None,
        "eos_token_ids": eos_token_ids,
        "id2label": _labels(raw, defaults),
    }
    for field in fields(config_class):
        if field.name in values:
            continue
        value = _lookup(raw, field.name, defaults)
        if value is not None or field.default is MISSING:
            values[field.name] = value
    config = config_class(**values)
    _check(config, raw, where)
    return config


def _family(raw: Mapping[str, Any], where: str) -> str:
    model_type = raw.get("model_type")
    if model_type is None:  # files from before the key existed
        names = [str(name) for name in raw.get("architectures") or ()]
        for prefix, family in _ARCHITECTURE_PREFIXES.items():
            if any(name.startswith(prefix) for name in names):
                return family
        raise CheckpointError(f'{where} has neither model_type nor architectures; add model_type, e.g. "bart".')
    if model_type not in FAMILY_DEFAULTS:
        raise UnsupportedModelError(
            f"{where}: model_type = {model_type!r} is not one we have. Known: {', '.join(FAMILY_DEFAULTS)}."
        )
    return str(model_type)


def _lookup(raw: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> Any:
    """The value of a field: its own key, else an old spelling, else the family's default; null counts as absent."""
    for key in (name, *SPELLINGS.get(name, ())):
        if raw.get(key) is not None:
            return raw[key]
    return defaults.get(name)


def _labels(raw: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[int, str]:
    """Classes by column: id2label, else label2id turned round, else LABEL_0 .. LABEL_n as the reference names them.

    Also as there, num_labels counts where it disagrees with the names.
    """
    names = raw.get("id2label") or {column: label for label, column in (raw.get("label2id") or {}).items()}
    if names and raw.get("num_labels") in (None, len(names)):
        return dict(sorted((int(column), str(label)) for column, label in names.items()))
    num_labels = raw.get("num_labels") or raw.get("_num_labels") or defaults.get("num_labels", 2)
    return {column: f"LABEL_{column}" for column in range(num_labels)}


def _as_tuple(ids: int | list[int] | None) -> tuple[int, ...]:
    if ids is None:
        return ()
    return tuple(ids) if isinstance(ids, list) else (ids,)


_COUNTS: tuple[str, ...] = ("vocab_size", "d_model", "hidden_size", "n_layer", "n_head", "max_position_embeddings")
_COUNTS += tuple(
    f"{side}_{what}" for side in ("encoder", "decoder") for what in ("layers", "attention_heads", "ffn_dim")
)


def _check(config: BartConfig | BloomConfig, raw: Mapping[str, Any], where: str) -> None:
    problems = []
    for name in _COUNTS:
        value = getattr(config, name, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            problems.append(f"{name} = {value!r} must be a whole number above 0")
    if not problems:
        if isinstance(config, BartConfig):
            heads = {
                f"{side}_attention_heads": getattr(config, f"{side}_attention_heads") for side in ("encoder", "decoder")
            }
            width = config.d_model
        else:
            heads, width = {"n_head": config.n_head}, config.hidden_size
        problems += [
            f"{name} = {count} does not divide the width {width}" for name, count in heads.items() if width % count
        ]
    if raw.get("static_position_embeddings"):
        problems.append("static_position_embeddings = true (sinusoidal positions) is not supported")
    if sorted(config.id2label) != list(range(config.num_labels)):
        problems.append(
            f"id2label must number its labels 0 to {config.num_labels - 1}; found {sorted(config.id2label)}"
        )
    if problems:
        raise CheckpointError(f"{where} cannot be used:\n" + "\n".join(f"  - {problem}" for problem in problems))
