"""Texts as vectors: an encoder, and how the vectors of a text's tokens become one."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float

from bert.checkpoint import load_pretrained, model_directory
from bert.model import Bert
from bert.packing import PackedBatch
from bert.sentence_layout import SentenceLayout
from bert.tokenization import Tokenizer
from bert.training.config import TrainingConfig
from bert.training.hardware import Hardware, choose_hardware
from finetune.batches import EVALUATION_TOKENS, TokenRows


class SentenceEncoder:
    """An encoder with its tokenizer. `full` counts texts that were as long as texts can be.

    Args:
        model: moved to the device, and put in evaluation mode.
        tokenizer: its report counts the odd things met in texts.
        layout: what becomes of the tokens' vectors.
        hardware: where to compute, and in which precision.
        batch_tokens: tokens that are computed at once.

    Raises:
        ValueError: the model has no room for the layout's `max_length`, or for the vocabulary.
    """

    def __init__(
        self,
        model: Bert,
        tokenizer: Tokenizer,
        layout: SentenceLayout,
        hardware: Hardware | None = None,
        batch_tokens: int = EVALUATION_TOKENS,
    ) -> None:
        room = model.config.max_position_embeddings
        if layout.max_length is not None and layout.max_length > room:
            raise ValueError(
                f"max_length: expected at most {room} (max_position_embeddings), "
                f"got {layout.max_length}"
            )
        if tokenizer.vocab_size > model.config.vocab_size:
            raise ValueError(
                f"tokenizer: expected at most the model's {model.config.vocab_size} tokens "
                f"(vocab_size), got {tokenizer.vocab_size}"
            )
        self.hardware = hardware or choose_hardware(TrainingConfig())
        self.model = model.to(self.hardware.device).eval()
        self.tokenizer, self.layout, self.batch_tokens = tokenizer, layout, batch_tokens
        self.max_length = layout.max_length or room
        self.full = 0

    @staticmethod
    def load(
        path: Path | str,
        layout: SentenceLayout | None = None,
        *,
        batch_tokens: int = EVALUATION_TOKENS,
        device: str = "auto",
        threads: int | None = None,
    ) -> "SentenceEncoder":
        """Read a directory of sentence-transformers, or any model's; its heads are left out.

        Args:
            path: the directory.
            layout: None: the directory's own.
            batch_tokens: see above.
            device: see TrainingConfig, for `threads` too.
            threads: see there.

        Raises:
            ValueError: there is no model, or something that isn't done here.
        """
        layout = layout or SentenceLayout.read(Path(path))
        hardware = choose_hardware(TrainingConfig(device=device, threads=threads))
        if threads is not None:
            torch.set_num_threads(threads)
        directory = model_directory(Path(path))
        model = load_pretrained(directory, Bert, kernels=hardware.kernels)
        return SentenceEncoder(model, Tokenizer.load(directory), layout, hardware, batch_tokens)

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Float[np.ndarray, "texts hidden"]:
        """Return a vector for each text, in their order, whatever order they are computed in.

        Texts of similar length share a batch, of at most `batch_tokens` tokens.

        Returns:
            float32, or float64 from a float64 model.
        """
        rows = TokenRows.from_encodings(
            self.tokenizer.encode_batch(texts, max_length=self.max_length)
        )
        self.full += int((rows.lengths == self.max_length).sum())
        weight = self.model.embeddings.word.weight
        dtype = np.float64 if weight.dtype == torch.float64 else np.float32
        vectors = np.empty((len(rows), self.model.config.hidden_size), dtype)
        with self.hardware.autocast():
            for chosen in rows.by_length(self.batch_tokens):
                batch = rows.batch(chosen).to(self.hardware.device)
                vectors[chosen] = self._pool(batch).cpu().numpy()
        return vectors

    def _pool(self, batch: PackedBatch) -> Float[torch.Tensor, "seqs hidden"]:
        hidden = self.model.encode(batch).last_hidden_state
        hidden = hidden if hidden.dtype == torch.float64 else hidden.float()
        if self.layout.pooling == "cls":
            pooled = hidden[batch.sequences.cu_seqlens[:-1].long()]
        else:
            parts = hidden.split(batch.sequences.lengths)
            pooled = torch.stack([part.mean(0) for part in parts])
        return F.normalize(pooled, dim=1) if self.layout.is_normalized else pooled
