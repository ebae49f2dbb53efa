"""Held-out text with each token masked once: windows, masks, losses and bands."""

import math

import pytest
import torch

from bert.config import BertConfig
from bert.pretraining import BertForPreTraining
from bert.tokenization import Tokenizer
from pretrain.film import losses
from pretrain.film.losses import (
    COPIES,
    Bands,
    labels_of,
    mask_each_once,
    read_windows,
    token_losses,
)

WORDS = "the cat sat on mat and dog ran to it".split()
TOKENIZER = Tokenizer(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
UNK, CLS, SEP, MASK, THE, CAT, SAT = 1, 2, 3, 4, 5, 6, 7
SHAPE = BertConfig(
    vocab_size=20, hidden_size=12, num_hidden_layers=2, num_attention_heads=2,
    intermediate_size=20, max_position_embeddings=12, initializer_range=0.5,
)  # fmt: skip


def text(tmp_path, content):
    path = tmp_path / "held_out.txt"
    path.write_text(content)
    return path


def test_windows_are_cut_from_documents_without_a_gap(tmp_path):
    path = text(tmp_path, "the cat\nsat on\nmat\n\nit it\n\n\n")
    assert read_windows(path, TOKENIZER, 5, 100) == [
        [CLS, THE, CAT, SAT, SEP], [CLS, 8, 9, SEP], [CLS, 14, 14, SEP],
    ]  # fmt: skip
    assert read_windows(path, TOKENIZER, 5, 4) == [[CLS, THE, CAT, SAT, SEP], [CLS, 8, SEP]]
    assert read_windows(path, TOKENIZER, 9, 6)[1] == [CLS, 14, SEP]


@pytest.mark.parametrize("size", [4096, 40])
def test_each_token_is_masked_once_and_special_ones_never(monkeypatch, size):
    monkeypatch.setattr(losses, "TOKENS_PER_BATCH", size)
    windows = [[CLS, *range(THE, 15), UNK, *range(THE, 15), SEP], [CLS, CAT, UNK, SEP]]
    batches = mask_each_once(windows, TOKENIZER)
    seen = []
    for batch in batches:
        offsets = batch.packed.sequences.offsets
        masked = set(batch.masked_positions.tolist())
        label_at = dict(
            zip(batch.masked_positions.tolist(), batch.masked_labels.tolist(), strict=True)
        )
        for begin, end in zip(offsets, offsets[1:], strict=False):
            window = windows[0] if end - begin == len(windows[0]) else windows[1]
            for place, id in enumerate(window):
                if begin + place in masked:
                    assert batch.packed.input_ids[begin + place] == MASK
                    assert label_at[begin + place] == id
                    seen.append((len(window), place))
                else:
                    assert batch.packed.input_ids[begin + place] == id
            of_window = sum(begin <= place < end for place in masked)
            assert 1 <= of_window <= math.ceil(20 / COPIES)
    wanted = [(23, place) for place in range(1, 22) if place != 11] + [(4, 1)]
    assert sorted(seen) == sorted(wanted)
    assert len(labels_of(batches)) == len(wanted)
    assert len(batches) == (1 if size == 4096 else 8)


def test_the_losses_are_those_of_the_model_through_its_door():
    torch.manual_seed(3)
    model = BertForPreTraining(SHAPE).eval()
    batches = mask_each_once([[CLS, THE, CAT, SAT, 9, 9, SEP], [CLS, CAT, SEP]], TOKENIZER)
    found, expected = token_losses(model, batches), []
    for batch in batches:
        rows = batch.packed.input_ids.split(list(batch.packed.sequences.lengths))
        logits = torch.cat([model(row[None]).prediction_logits[0] for row in rows])
        chosen = logits.log_softmax(-1)[batch.masked_positions]
        expected += (-chosen.gather(1, batch.masked_labels[:, None])).squeeze(1).tolist()
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_bands_by_the_share_of_the_training_text():
    counts = torch.zeros(20, dtype=torch.int64)
    counts[5:9] = torch.tensor([979_999, 10_000, 9_999, 2])  # of a million: 98, 1, 0.9999, 2e-6
    labels = torch.tensor([7, 5, 6, 6, 8, 9])  # 9 was never seen
    bands = Bands(counts, labels)
    assert [(band.name, band.tokens) for band in bands.bands] == [
        ("1 % and more", 3), ("0.1 to 1 %", 1), ("under 0.01 %", 2),
    ]  # fmt: skip
    total = 1_000_000 + 20
    assert [band.unigram_loss for band in bands.bands] == pytest.approx(
        [
            -(math.log(980_000 / total) + 2 * math.log(10_001 / total)) / 3,
            -math.log(10_000 / total),
            -(math.log(3 / total) + math.log(1 / total)) / 2,
        ]
    )
    losses = torch.tensor([1.0, 2, 3, 4, 5, 7], dtype=torch.float64)
    assert bands.means(losses) == pytest.approx([3, 1, 6])


@pytest.mark.errors
@pytest.mark.parametrize("content", ["", "\n\n", "xyz xyz"])
def test_a_text_without_a_known_token(tmp_path, content):
    path = text(tmp_path, content)
    with pytest.raises(ValueError, match="held_out.txt: expected text with a token of the vocab"):
        read_windows(path, TOKENIZER, 8, 100)
