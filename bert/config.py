"""What a BERT is made of, as numbers: `BertConfig`, Google's sizes, Hugging Face's config.json.

The field names are Hugging Face's. A setting of theirs that BERT has but this encoder hasn't is
refused by name; one that changes nothing here is kept aside or passed over, as listed below.
"""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeGuard

GELU_FORMS: dict[str, Literal["erf", "tanh"]] = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_pytorch_tanh": "tanh",
}

# Each gets a name, so that a wrong number in a file must not fill the memory with names.
MAX_LABELS = 100_000

# Settings that must have one of these values, since another would need another encoder.
_ONLY: dict[str, tuple[Any, ...]] = {
    "model_type": ("bert",),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}
# Settings that say how a program runs or a file was made, and nothing about the mathematics:
# splitting the feed-forward for memory, versions, where it came from; and how a decoder writes
# text, which early files say of every model.
_NO_EFFECT = {
    "_name_or_path", "_attn_implementation", "_attn_implementation_autoset", "architectures",
    "attn_implementation", "bos_token_id", "chunk_size_feed_forward", "directionality", "dtype",
    "eos_token_id", "gradient_checkpointing", "model_name", "output_attentions",
    "output_hidden_states", "pooler_fc_size", "pooler_num_attention_heads",
    "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type", "return_dict", "sep_token_id",
    "torch_dtype", "torchscript", "transformers_version", "use_cache",
    "bad_words_ids", "decoder_start_token_id", "diversity_penalty", "do_sample", "early_stopping",
    "encoder_no_repeat_ngram_size", "eos_token_ids", "forced_bos_token_id",
    "forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size",
    "num_beam_groups", "num_beams", "num_return_sequences", "output_past", "output_scores",
    "prefix", "remove_invalid_values", "repetition_penalty", "return_dict_in_generate",
    "temperature", "tf_legacy_loss", "tokenizer_class", "top_k", "top_p", "typical_p",
    "use_bfloat16", "xla_device",
}  # fmt: skip


@dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT; the defaults are BERT-base's (Devlin et al. 2018, section 3)."""

    vocab_size: int = 30522
    """Tokens in the vocabulary."""
    hidden_size: int = 768
    """Width of a token's vector."""
    num_hidden_layers: int = 12
    """Encoder layers."""
    num_attention_heads: int = 12
    """Attention heads in a layer; they share hidden_size."""
    intermediate_size: int = 3072
    """Width inside the feed-forward half of a layer."""
    hidden_act: str = "gelu"
    """gelu (erf form), or gelu_new (tanh form)."""
    hidden_dropout_prob: float = 0.1
    """Dropout on the embeddings and on both halves of a layer."""
    attention_probs_dropout_prob: float = 0.1
    """Dropout on the attention probabilities."""
    max_position_embeddings: int = 512
    """The longest sequence, in tokens."""
    type_vocab_size: int = 2
    """Segment types."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    layer_norm_eps: float = 1e-12
    """Added to the variance in LayerNorm."""
    pad_token_id: int | None = 0
    """The padding token, whose embedding gets no gradient through the input."""
    classifier_dropout: float | None = None
    """Dropout before a fine-tuning head; hidden_dropout_prob where it is None."""
    tie_word_embeddings: bool = True
    """Whether the masked-word head's output matrix is the word embedding."""
    id2label: dict[int, str] = field(default_factory=lambda: {0: "LABEL_0", 1: "LABEL_1"})
    """The names of a fine-tuning head's classes."""
    problem_type: str | None = None
    """regression, single_label_classification or multi_label_classification."""
    finetuning_task: str | None = None
    """The name of the task that the head was trained for, for whoever predicts with it."""
    task_specific_params: dict[str, Any] | None = None
    """What that task was told, by its name."""

    def __post_init__(self) -> None:
        """Refuse what can't be a BERT, naming the field."""
        sizes = (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
            "intermediate_size", "max_position_embeddings", "type_vocab_size",
        )  # fmt: skip
        for name in sizes:
            value: Any = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
                raise ValueError(f"{name}: expected a positive integer, got {value!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads: expected a divisor of hidden_size {self.hidden_size}, "
                f"got {self.num_attention_heads}"
            )
        if self.hidden_act not in list(GELU_FORMS):  # a list: what JSON holds may not hash
            raise ValueError(
                f"hidden_act: expected one of {', '.join(GELU_FORMS)}, got {self.hidden_act!r}"
            )
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            value: Any = getattr(self, name)
            absent = value is None and name == "classifier_dropout"
            if not absent and not (_is_number(value) and 0 <= value <= 0.99):
                raise ValueError(f"{name}: expected a number from 0 to 0.99, got {value!r}")
        for name in ("initializer_range", "layer_norm_eps"):
            value: Any = getattr(self, name)
            if not _is_number(value) or not 0 < value < float("inf"):
                raise ValueError(f"{name}: expected a positive number, got {value!r}")
        pad = self.pad_token_id
        if pad is not None and (not isinstance(pad, int) or not 0 <= pad < self.vocab_size):
            raise ValueError(
                f"pad_token_id: expected a token below vocab_size {self.vocab_size}, got {pad!r}"
            )
        if not isinstance(self.tie_word_embeddings, bool):
            raise ValueError(
                f"tie_word_embeddings: expected true or false, got {self.tie_word_embeddings!r}"
            )
        problems = (
            None, "regression", "single_label_classification", "multi_label_classification",
        )  # fmt: skip
        if self.problem_type not in problems:
            raise ValueError(
                f"problem_type: expected one of {problems[1:]}, got {self.problem_type!r}"
            )
        for name, kind in (("finetuning_task", str), ("task_specific_params", dict)):
            value: Any = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise ValueError(f"{name}: expected a {kind.__name__} or null, got {value!r:.80}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def gelu_form(self) -> Literal["erf", "tanh"]:
        """Which of the two GELUs `hidden_act` names."""
        return GELU_FORMS[self.hidden_act]

    @property
    def num_labels(self) -> int:
        """The number of outputs of a fine-tuning head."""
        return len(self.id2label)

    @property
    def head_dropout_prob(self) -> float:
        """Dropout before a fine-tuning head."""
        given = self.classifier_dropout
        return self.hidden_dropout_prob if given is None else given

    def with_labels(self, labels: list[str], problem_type: str | None = None) -> "BertConfig":
        """Name the classes of a fine-tuning head."""
        return replace(self, id2label=dict(enumerate(labels)), problem_type=problem_type)

    @staticmethod
    def preset(name: str, **changes: Any) -> "BertConfig":
        """Take one of Google's sizes (Turc et al. 2019, table 1): tiny, mini … large."""
        if name not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
        return replace(PRESETS[name], **changes)

    @staticmethod
    def from_dict(values: dict[str, Any], source: str = "config") -> "BertConfig":
        """Read Hugging Face's config.json, already parsed.

        Raises:
            ValueError: a setting that isn't supported, or isn't known; `source` names the file.
        """
        if not isinstance(values, dict):
            raise ValueError(f"{source}: expected a JSON object, got {type(values).__name__}")
        ours = {f.name for f in fields(BertConfig)}
        taken: dict[str, Any] = {}
        for name, value in values.items():
            if name in _ONLY:
                if value not in _ONLY[name]:
                    expected = " or ".join(repr(v) for v in _ONLY[name])
                    raise ValueError(f"{source}: {name}: expected {expected}, got {value!r}")
            elif name == "id2label":
                taken[name] = _labels(value, source)
            elif name in ours:
                taken[name] = value
            elif name not in _NO_EFFECT | {"label2id", "num_labels"}:
                near = get_close_matches(name, ours | set(_ONLY), n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise ValueError(f"{source}: {name}: not a setting of BERT{hint}")
        if "id2label" not in taken and (count := values.get("num_labels")) is not None:
            if type(count) is not int or not 0 < count <= MAX_LABELS:
                raise ValueError(
                    f"{source}: num_labels: expected an integer from 1 to {MAX_LABELS}, "
                    f"got {count!r}"
                )
            taken["id2label"] = {i: f"LABEL_{i}" for i in range(count)}
        try:
            return BertConfig(**taken)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None

    @staticmethod
    def load(path: Path | str) -> "BertConfig":
        """Read config.json, or the one in a directory.

        Raises:
            ValueError: the file isn't there, isn't JSON, or says what BERT can't be.
        """
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        return BertConfig.from_dict(read_json(path), str(path))

    def to_dict(self, architecture: str | None = None) -> dict[str, Any]:
        """Write what Hugging Face's config.json has, for a model of this class of theirs."""
        values = asdict(self)
        values["id2label"] = {str(i): label for i, label in self.id2label.items()}
        values["label2id"] = {label: i for i, label in self.id2label.items()}
        for name in ("problem_type", "finetuning_task", "task_specific_params"):
            if values[name] is None:
                del values[name]
        head = {"architectures": [architecture]} if architecture else {}
        return {**head, "model_type": "bert", **values}

    def parameter_count(self, heads: bool = True) -> int:
        """Count the parameters, with or without the pretraining heads.

        Closed form, so that a dry run needs no tensors; a test holds it against the model.
        """
        h, f, v = self.hidden_size, self.intermediate_size, self.vocab_size
        norm = 2 * h
        embeddings = (v + self.max_position_embeddings + self.type_vocab_size) * h + norm
        layer = 4 * (h * h + h) + (h * f + f) + (f * h + h) + 2 * norm
        pooler = h * h + h
        mlm = (h * h + h) + norm + v + (0 if self.tie_word_embeddings else v * h)
        nsp = 2 * h + 2
        return embeddings + self.num_hidden_layers * layer + pooler + (mlm + nsp) * heads


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _labels(value: Any, source: str) -> dict[int, str]:
    """Read id2label, whose keys JSON made strings."""
    try:
        labels = {int(i): str(label) for i, label in value.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"{source}: id2label: expected {{id: label}}, got {value!r}") from None
    if sorted(labels) != list(range(len(labels))) or not labels:
        raise ValueError(f"{source}: id2label: expected ids 0, 1, …, got {sorted(labels)}")
    return dict(sorted(labels.items()))


def read_json(path: Path) -> Any:
    """Parse a JSON file, turning each way that fails into one line that names the file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, RecursionError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: expected JSON: {error}") from None


PRESETS: dict[str, BertConfig] = {
    name: BertConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
    )
    for name, layers, hidden in (
        ("tiny", 2, 128),
        ("mini", 4, 256),
        ("small", 4, 512),
        ("medium", 8, 512),
        ("base", 12, 768),
        ("large", 24, 1024),
    )
}
