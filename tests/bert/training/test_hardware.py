import pytest
import torch

from bert.training.config import TrainingConfig
from bert.training.hardware import choose_hardware


@pytest.mark.parametrize(
    ("avx512", "amx", "precision"),
    [
        (False, False, "float32"),
        (True, False, "bfloat16"),
        (False, True, "bfloat16"),
    ],
)
def test_auto_takes_bfloat16_only_where_the_cpu_multiplies_it(monkeypatch, avx512, amx, precision):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    hardware = choose_hardware(TrainingConfig(device="cpu"))
    assert hardware.precision == precision
    assert "AVX512-BF16 or AMX" in hardware.reason


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_what_is_asked_for_is_what_computes(precision):
    hardware = choose_hardware(TrainingConfig(device="cpu", precision=precision))
    with hardware.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == getattr(torch, precision)


@pytest.mark.errors
@pytest.mark.parametrize("device", ["gpu0", "tpu", "mps", "", "cpu:1", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(ValueError, match="^device: expected") as error:
        choose_hardware(TrainingConfig(device=device))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("device", "local_rank"), [("auto", 3), ("cuda", 3), ("cuda:2", None)])
def test_each_process_of_a_machine_has_its_own_gpu(monkeypatch, device, local_rank):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr("bert.training.hardware._has_native_bfloat16", lambda device: (True, ""))
    chosen = choose_hardware(TrainingConfig(device=device), local_rank)
    assert chosen.device == torch.device("cuda", 2 if local_rank is None else 3)
    with pytest.raises(ValueError, match="^device: expected one of the 4 GPUs"):
        choose_hardware(TrainingConfig(device="cuda"), 4)


def test_a_process_on_a_cpu_has_no_number():
    assert choose_hardware(TrainingConfig(device="cpu"), 3).device == torch.device("cpu")
