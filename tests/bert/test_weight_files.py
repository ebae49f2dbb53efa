"""Files that are broken, hostile or not what they say: one line that names them, and no more."""

import json
import os
import pickle
import zipfile
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

import bert
from bert.checkpoint import load_pretrained
from bert.weight_files import MAX_HEADER, open_weights
from tests.bert.hugging_face import saved

pytestmark = pytest.mark.errors

NAME = "bert.encoder.layer.0.output.dense.weight"


@pytest.fixture
def directory(tmp_path):
    return saved(tmp_path)[0]


def refusal(path, **options):
    """The one line with which a directory is refused; it names the file."""
    with pytest.raises(ValueError) as caught:
        load_pretrained(path, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and str(path) in message and len(message) < 500
    return message.replace(str(path), "")


def set_header(path, change):
    """Let `change` edit the header of a directory's weights, or return the text of another."""
    file = path / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    changed = change(header)
    text = changed if isinstance(changed, bytes) else json.dumps(changed or header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def entry(**changes):
    return lambda header: header[NAME].update(changes)


HEADERS = {
    "not JSON": (lambda h: b"{{{{", "expected a safetensors header"),
    "not UTF-8": (lambda h: b"\xff\xfe{}", "expected a safetensors header"),
    "a list": (lambda h: [1], "expected a safetensors header, got list"),
    "nested": (lambda h: b"[" * 200_000, "expected a safetensors header"),
    "a huge number": (lambda h: b"1" * 10_000, "expected a safetensors header"),
    "a name twice": (
        lambda h: b'{"a":' + json.dumps(h[NAME]).encode() + b',"a":{}}', "a name is there twice",
    ),
    "entry of nothing": (lambda h: {**h, NAME: {}}, f"{NAME}: expected dtype, shape and data"),
    "entry of a number": (lambda h: {**h, NAME: 3}, f"{NAME}: expected dtype, shape and data"),
    "unknown dtype": (entry(dtype="F7"), f"{NAME}: expected a dtype of safetensors, got 'F7'"),
    "negative shape": (entry(shape=[-32, -48]), f"{NAME}: expected a shape"),
    "fractional shape": (entry(shape=[32.0, 48]), f"{NAME}: expected a shape"),
    "true as a size": (entry(shape=[True, 1536]), f"{NAME}: expected a shape"),
    "overflowing shape": (entry(shape=[2**47] * 8), f"{NAME}: expected [0-9]+ bytes for F32"),
    "another shape": (entry(shape=[32, 47]), f"{NAME}: expected 6016 bytes for F32"),
    "offsets past the end": (
        entry(data_offsets=[10**9, 10**9 + 6144]), "expected to begin at byte",
    ),
    "one offset": (entry(data_offsets=[0]), f"{NAME}: expected two data_offsets"),
    "an overlap": (entry(data_offsets=[4, 6148]), "expected to begin at byte"),
    "transposed": (
        entry(shape=[48, 32]), rf"{NAME}: expected shape \[32, 48\] from the conf.*got \[48, 32\]",
    ),
    "another dtype": (entry(dtype="I32"), f"{NAME}: expected dtype F64, F32, F16, BF16, got I32"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_a_broken_header_is_refused(directory, name):
    change, expected = HEADERS[name]
    set_header(directory, change)
    with pytest.raises(ValueError, match=expected):
        load_pretrained(directory)
    assert "/model.safetensors: " in refusal(directory)


@pytest.mark.parametrize("size", [0, 5, 8, 100, -1, -5000])
def test_a_truncated_file_is_refused(directory, size):
    file = directory / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:size])
    assert "expected" in refusal(directory)
    file.write_bytes(data + b"\0")
    assert "bytes (its header says)" in refusal(directory)


def test_a_header_larger_than_memory_is_not_read(directory):
    file = directory / "model.safetensors"
    file.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    assert "expected a safetensors header inside the file's 10 bytes" in refusal(directory)
    with file.open("wb") as sparse:
        sparse.write((MAX_HEADER + 1).to_bytes(8, "little"))
        sparse.truncate(2 * MAX_HEADER)
    assert f"header of at most {MAX_HEADER} bytes" in refusal(directory)


def test_a_file_cut_short_while_it_is_read(directory):
    """Mapped, this would be SIGBUS."""
    with open_weights(directory) as stored:
        os.truncate(directory / "model.safetensors", 9000)
        with pytest.raises(ValueError, match=r"safetensors: .*: expected \d+ bytes more"):
            for weight in stored.values():
                weight.read()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_are_refused_unless_allowed(directory, value):
    weights = load_file(directory / "model.safetensors")
    weights[NAME][3, 4] = value
    save_file(weights, directory / "model.safetensors")
    assert f"{NAME}: expected finite numbers, got NaN or infinity" in refusal(directory)
    ours = load_pretrained(directory, allow_nonfinite=True)
    assert not ours.bert.encoder.layers[0].feed_forward.down.weight.isfinite().all()


def test_large_weights_are_finite(directory):
    weights = load_file(directory / "model.safetensors")
    weights[NAME].fill_(3e38)
    save_file(weights, directory / "model.safetensors")
    load_pretrained(directory)
    # In 16 bits they would not be.
    assert "expected finite numbers" in refusal(directory, dtype=torch.float16)


def test_vocabulary_of_another_size(directory):
    message = refusal(directory, vocab_size=60)
    assert "word_embeddings.weight: expected shape [60, 32] from the configuration" in message


def test_sizes_that_nothing_can_hold(directory):
    for name, size in (("hidden_size", 2**31 - 1), ("vocab_size", 2**31 - 1)):
        message = refusal(directory, **{name: size, "num_attention_heads": 1})
        assert "expected a configuration of sizes" in message or "expected shape" in message


def test_what_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"expected a directory .*nothing is downloaded"):
        load_pretrained("bert-base-uncased")
    with pytest.raises(ValueError, match="expected a model .* in it, got none"):
        load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert "expected one of model.safetensors, model.safetensors.index.json" in refusal(tmp_path)
    os.mkfifo(tmp_path / "model.safetensors")
    pipe = os.open(tmp_path / "model.safetensors", os.O_RDWR)  # else a reader waits for ever
    os.write(pipe, b"not a header at all")
    assert "model.safetensors: expected a file, got something else" in refusal(tmp_path)
    os.close(pipe)


# Shards.


@pytest.fixture
def shards(tmp_path):
    """Two shards and their index, and a function that writes another index."""
    _, model = saved(tmp_path / "one")
    many = tmp_path / "many"
    model.save_pretrained(many, max_shard_size="60KB")
    index = many / "model.safetensors.index.json"
    return many, json.loads(index.read_text())["weight_map"], index


def test_an_index_that_leads_astray(shards):
    path, weight_map, index = shards
    name, shard = next(iter(weight_map.items()))

    def with_map(changed):
        index.write_text(json.dumps({"weight_map": changed}))
        return refusal(path)

    for outside in ("../one/model.safetensors", "/etc/passwd", "..", "", "a\\b", "a\0b"):
        assert "expected a file beside it, got" in with_map(weight_map | {name: outside})
    assert "expected the file absent.safetensors beside it" in with_map(
        weight_map | {name: "absent.safetensors"}
    )
    extra = with_map(weight_map | {"bert.extra": shard})
    assert f"{shard}: bert.extra: expected in index and shard, got it in the index only" in extra
    lacking = with_map({k: v for k, v in weight_map.items() if k != name})
    assert f"{name}: expected in index and shard, got it in the shard only" in lacking
    for wrong in ([], {}, {name: 3}, None):
        assert "index.json: expected weight_map" in with_map(wrong)
    index.write_text("[")
    assert "index.json: expected JSON" in refusal(path)


def test_a_shard_that_is_broken_is_named(shards):
    path, weight_map, _ = shards
    shard = sorted(weight_map.values())[-1]
    os.truncate(path / shard, 1000)
    assert shard in refusal(path)


# Pickles.


class Malicious:
    """Unpickled as it asks to be, this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


@pytest.mark.parametrize("form", ["zip", "legacy", "bare", "shard"])
def test_a_malicious_pickle_is_not_executed(tmp_path, form):
    path, _ = saved(tmp_path / "model")
    (path / "model.safetensors").unlink()
    victim = tmp_path / "executed"
    content = {"bert.embeddings.word_embeddings.weight": Malicious(victim)}
    file = path / ("pytorch_model.bin" if form != "shard" else "pytorch_model-1.bin")
    if form == "bare":
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=form != "legacy")
    if form == "shard":
        index = {"weight_map": dict.fromkeys(content, file.name)}
        (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    message = refusal(path)
    assert "expected a pickle of tensors and of nothing else" in message
    assert "system" in message and "weights_only" not in message
    assert not victim.exists()
    # The trap does work.
    if form == "bare":
        pickle.loads(file.read_bytes())
        assert victim.exists()


def test_pickles_that_are_no_weights(directory):
    (directory / "model.safetensors").unlink()
    file = directory / "pytorch_model.bin"
    torch.save([torch.zeros(2)], file)
    assert "expected a dict of tensors, got list" in refusal(directory)
    torch.save({"state_dict": {"a": torch.zeros(2)}}, file)
    assert "state_dict: expected a dense tensor, got dict" in refusal(directory)
    torch.save({NAME: torch.zeros(32, 48).to_sparse()}, file)
    assert f"{NAME}: expected a dense tensor" in refusal(directory)
    torch.save({NAME: torch.zeros(32, 48, device="meta")}, file)
    assert f"{NAME}: expected a dense tensor" in refusal(directory)
    file.write_bytes(b"")
    assert "expected a pickle of tensors" in refusal(directory)
    file.write_bytes(os.urandom(1000))
    assert "expected a pickle of tensors" in refusal(directory)


def test_a_pickle_that_unpacks_to_more_than_it_weighs(directory):
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    plain, file = directory / "plain.bin", directory / "pytorch_model.bin"
    torch.save(weights, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "expected torch's uncompressed archive" in refusal(directory)
    plain.replace(file)
    load_pretrained(directory)
    os.truncate(file, file.stat().st_size - 2000)
    assert "expected a pickle of tensors" in refusal(directory)


def test_a_pickle_of_integers_is_refused(directory):
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    torch.save(weights | {NAME: torch.zeros(32, 48).int()}, directory / "pytorch_model.bin")
    assert f"{NAME}: expected dtype F64, F32, F16, BF16, got int32" in refusal(directory)


# Fuzz: our own error or a model, whatever the bytes.


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The smallest directory there is, and its weights' bytes."""
    config = bert.BertConfig(
        vocab_size=3, hidden_size=1, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=1, max_position_embeddings=2, type_vocab_size=1,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("small")
    bert.save_pretrained(bert.Bert(config), path)
    return path, (path / "model.safetensors").read_bytes()


def load_or_refuse(path):
    try:
        assert isinstance(load_pretrained(path), bert.Bert)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1 and str(path) in str(error)


@settings(max_examples=100)
@given(st.data())
def test_flipped_and_cut_bytes(small, data):
    path, whole = small
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    del broken[data.draw(st.sampled_from([len(whole), len(whole), *range(0, len(whole), 97)])) :]
    (path / "model.safetensors").write_bytes(broken)
    load_or_refuse(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(max_examples=100)
@given(st.data())
def test_headers_of_any_json(small, data):
    path, whole = small
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    name = data.draw(st.sampled_from(sorted(header)))
    if data.draw(st.booleans()):
        header[name] = data.draw(json_values)
    else:
        header[name][data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = data.draw(
            json_values
        )
    text = json.dumps(header).encode()
    (path / "model.safetensors").write_bytes(
        len(text).to_bytes(8, "little") + text + whole[8 + length :]
    )
    load_or_refuse(path)


sizes = st.integers(-1, 4) | st.sampled_from([2**31 - 1, 2**31, 10**30]) | json_values


@settings(max_examples=60)
@given(st.dictionaries(st.sampled_from([f.name for f in fields(bert.BertConfig)]), sizes))
def test_configurations_of_any_json(small, changes):
    path, whole = small
    (path / "model.safetensors").write_bytes(whole)
    before = (path / "config.json").read_text()
    (path / "config.json").write_text(json.dumps(json.loads(before) | changes))
    try:
        load_or_refuse(path)
    finally:
        (path / "config.json").write_text(before)


@settings(max_examples=40)
@given(json_values)
def test_indexes_of_any_json(small, value):
    path, whole = small
    single = path / "model.safetensors"
    single.unlink(missing_ok=True)
    index = path / "model.safetensors.index.json"
    for content in (value, {"weight_map": value}):
        index.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"index\.json: expected"):
            load_pretrained(path)
    index.unlink()
    single.write_bytes(whole)


def test_our_reader_agrees_with_safetensors(small, tmp_path):
    """Every dtype that weights have, scalars and empty tensors too."""
    kinds = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    weights = {
        f"{kind} {shape}": torch.randn(shape).to(kind)
        for kind in kinds
        for shape in ((), (0,), (3, 0, 2), (5,), (2, 3, 4))
    }
    (tmp_path / "model.safetensors").write_bytes(save(weights))
    with open_weights(tmp_path) as stored:
        assert {name: weight.shape for name, weight in stored.items()} == {
            name: tuple(weight.shape) for name, weight in weights.items()
        }
        for name, weight in stored.items():
            assert torch.equal(weight.read(), weights[name]), name
