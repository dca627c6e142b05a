"""Checkpoints and training states: what they hold, and files that were made to do harm."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import json
import math
import os
import re
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mnist_mamba.config import ModelConfig, TrainConfig
from mnist_mamba.model import MambaClassifier, build_classifier
from mnist_mamba.training import resume
from mnist_mamba.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
    weight_bytes,
)
from mnist_mamba.training.epoch import TrainingState
from mnist_mamba.training.loop import train
from mnist_mamba.training.resume import (
    ResumeError,
    SavedTraining,
    parse_training,
    save_training,
)
from mnist_mamba.training.torch_file import TorchFileError, load_plain
from mnist_mamba.training.trainer import Trainer
from tests.library.test_training import (
    ENSEMBLE,
    MODEL,
    RESUMED,
    bars,
    curve_point,
    saved_states,
)
from tests.models import ARCHITECTURES, make_images, make_model


def test_a_saved_training_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "state"
    state = TrainingState(2, 3, 1.5, 7, torch.Generator().get_state(), {"a": torch.ones(2)})
    for best in (b"", bytes(range(256))):
        saved = SavedTraining("key", state, [curve_point(1)], best)
        save_training(path, saved)
        again = parse_training(path.read_bytes(), path)
        assert (again.key, again.points, again.best_checkpoint) == ("key", saved.points, best)
        assert (again.state.epoch, again.state.steps, again.state.loss_sum) == (2, 3, 1.5)
        assert torch.equal(again.state.trainer["a"], torch.ones(2))
        assert [file.name for file in tmp_path.iterdir()] == ["state"]


def test_a_damaged_training_state_is_refused(tmp_path: Path) -> None:
    good = saved_states(dataclasses.replace(RESUMED, epochs=1), tmp_path / "state")[0][0]
    flipped = bytearray(good)
    flipped[-5000] ^= 1
    for data, message in (
        (b"", "begins with b''"),
        (b"hello", "begins with b'hello'"),
        (good[:20], "begins with"),
        (good[:40], "is damaged"),
        (good[:-1], "is damaged"),
        (good + b"x", "is damaged"),
        (bytes(flipped), "is damaged"),
    ):
        with pytest.raises(ResumeError, match=rf"folder/file {message}.*delete it, or omit --res"):
            parse_training(data, Path("folder/file"))


def test_a_training_state_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "state"
    state = TrainingState(1, 0, 0.0, 0, torch.zeros(1), {"evil": Evil()})
    save_training(path, SavedTraining("key", state, [], b""))
    with pytest.raises(ResumeError, match="does not hold a training's state"):
        parse_training(path.read_bytes(), path)
    assert not Path("pwned").exists()


def saved(value: Any) -> bytes:
    """Return what torch.save writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def loaded(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the keys that lead to each value of nested dictionaries and lists."""
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*path, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy with another value at a place; `...` removes it."""
    if not path:
        return new
    changed = value.copy()
    if len(path) == 1 and new is ...:
        del changed[path[0]]
    else:
        changed[path[0]] = replaced(value[path[0]], path[1:], new)
    return changed


WRONG = [
    *(..., None, True, "text", b"bytes", [], {}, (1, 2), [{}], {"a": 1}),
    *(0, -1, 2**600, -1.5, math.nan),
    *(torch.zeros(()), torch.zeros(2, 3), torch.zeros(1).bool()),
]
"""Values that fit few places of a file."""


def refusal(content: Any, dims: ModelConfig, config: TrainConfig) -> str | None:
    """Return the error of resuming from a file of this content with a correct digest, or None."""
    data = saved(content)
    data = resume.MAGIC + hashlib.sha256(data).digest() + data
    model = build_classifier(dims, scan="reference")
    try:
        state = parse_training(data, Path("file")).state
        next(train(model, bars(96, 1), None, config, progress=False, state=state))
    except ResumeError as error:
        return str(error)
    return None


def state_content(config: TrainConfig, dims: ModelConfig, folder: Path) -> Any:
    """Return the content of a state file after step 3 of epoch 2."""
    files = saved_states(config, folder / "state", dims)[0]
    return loaded(files[3][len(resume.MAGIC) + 32 :])


def test_a_state_with_a_wrong_value_is_refused(tmp_path: Path) -> None:
    """Each value of a state is replaced by every fourth of WRONG; another number may do."""
    config = dataclasses.replace(RESUMED, optimizer="muon")
    tiny = dataclasses.replace(MODEL, d_model=4, n_layers=1, d_state=1)
    content = state_content(config, tiny, tmp_path)
    number = (
        r"key|best_checkpoint|state\.(loss_sum|correct)|points\.0\.\w+|.*\.optimizers\..*\.step"
    )
    for i, path in enumerate(places(content)):
        for wrong in WRONG[i % 4 :: 4]:
            error = refusal(replaced(content, path, wrong), tiny, config)
            where = ".".join(map(str, path)), wrong
            if error is None:
                assert re.fullmatch(number, where[0]), where
            else:
                assert "; delete it, or omit --resume" in error, where
                assert len(error) < 600, where
                assert "\n" not in error, where


def generator_at(left: int, place: int) -> torch.Tensor:
    """Return the state of a generator that would read numbers after its own."""
    state = torch.Generator().get_state()
    state[8:12].view(torch.int32).fill_(left)
    state[16:24].view(torch.int64).fill_(place)
    return state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 0}, r"epoch = 0: expected a whole number in 1\.\."),
        ({"epoch": 3}, "points of curves in epoch 3"),
        ({"steps": 5}, r"steps = 5: expected a whole number in 0\.\.4"),
        ({"steps": 3}, "its average has 7 steps, expected 8"),
        ({"correct": 41}, r"correct = 41: expected a whole number in 0\.\.40"),
        ({"generator": torch.zeros(5056, dtype=torch.uint8)}, "does not fit this training"),
        ({"generator": generator_at(624, 624)}, "has 624 of its 624 numbers left at place 624"),
        (
            {"generator": generator_at(1, 2**32)},
            "has 1 of its 624 numbers left at place 4294967296",
        ),
    ],
)
def test_a_state_of_another_place_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    content = state_content(RESUMED, MODEL, tmp_path)
    assert refusal(content, MODEL, RESUMED) is None
    changed = {**content, "state": {**content["state"], **changes}}
    assert re.search(message, refusal(changed, MODEL, RESUMED) or "")


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    content = state_content(RESUMED, MODEL, tmp_path)
    for dims in (dataclasses.replace(MODEL, d_state=5), ENSEMBLE):
        error = refusal(content, dims, RESUMED) or ""
        assert re.search(r"trainer\.model.* expected|trainer\.model: lacks", error)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_checkpoint_round_trip(name: str, tmp_path: Path) -> None:
    model = make_model(name)
    saved = save_checkpoint(tmp_path / "a.pth", Checkpoint(model, 3, 0.5))
    loaded = load_checkpoint(tmp_path / "a.pth", scan="reference")
    assert (loaded.epoch, loaded.val_accuracy) == (3, 0.5)
    pixels = make_images(model.config, 2).float() / 255
    assert torch.equal(loaded.model(pixels), model(pixels))
    assert loaded.model.config == model.config
    again = save_checkpoint(tmp_path / "a.pth", Checkpoint(loaded.model, 3, 0.5))
    assert again == saved
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]


def test_a_checkpoint_in_training_is_that_of_the_same_weights_elsewhere(tmp_path: Path) -> None:
    """A trainer's weights are views of larger vectors, which are not written."""
    model = make_model("conv_local_cross")
    other = copy.deepcopy(model)
    alone = save_checkpoint(tmp_path / "alone.pth", Checkpoint(other, 1, None))
    Trainer(model, TrainConfig())
    model.eval()
    assert save_checkpoint(tmp_path / "training.pth", Checkpoint(model, 1, None)) == alone
    assert load_checkpoint(tmp_path / "alone.pth").val_accuracy is None


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    good = tmp_path / "good.pth"
    save_checkpoint(good, Checkpoint(make_model("patch_forward_mean"), 1, 0.1))
    with pytest.raises(CheckpointError, match=r"not found: run `python -m pipeline\.train` first"):
        load_checkpoint(tmp_path / "missing.pth")
    bad = tmp_path / "bad.pth"
    for data in (b"", b"hello", good.read_bytes()[:5000]):
        bad.write_bytes(data)
        with pytest.raises(CheckpointError, match="is not a checkpoint, or damaged"):
            load_checkpoint(bad)
    torch.save({"format": 2}, bad)
    with pytest.raises(CheckpointError, match="not a checkpoint of this project"):
        load_checkpoint(bad)
    content = torch.load(good, weights_only=True)
    del content["model"]["head.bias"]
    torch.save(content, bad)
    with pytest.raises(CheckpointError, match=r"head\.bias"):
        load_checkpoint(bad)


def test_a_checkpoint_s_file_does_not_choose_how_its_weights_are_kept(tmp_path: Path) -> None:
    """`_metadata` of a state dict can tell torch to assign the file's tensors themselves."""
    path = tmp_path / "file.pth"
    model = make_model("patch_forward_mean")
    content = loaded(save_checkpoint(path, Checkpoint(model, 1, 0.1)))
    weights: Any = OrderedDict(content["model"])
    weights._metadata = {"": {"version": 1, "assign_to_params_buffers": True}}
    for name, weight in weights.items():
        turned = weight.T.contiguous().T if weight.dim() == 2 else weight
        weights[name] = torch.zeros_like(turned) if name == "head.bias" else turned
    zeros = torch.zeros(1).expand(10)
    weights["head.bias"] = zeros  # ten numbers in the memory of one
    path.write_bytes(saved({**content, "model": weights}))
    kept = load_checkpoint(path, scan="reference").model
    for name, parameter in kept.named_parameters():
        assert parameter.is_contiguous(), name
        assert parameter.dtype == torch.float32, name
        assert parameter.untyped_storage().nbytes() == parameter.nbytes, name
    pointers = {p.untyped_storage().data_ptr() for p in kept.parameters()}
    assert len(pointers) == len(list(kept.parameters()))
    for other in (torch.zeros(10, dtype=torch.float64), torch.zeros(10, dtype=torch.int64)):
        path.write_bytes(saved({**content, "model": {**weights, "head.bias": other}}))
        with pytest.raises(CheckpointError, match=r"head\.bias is a tensor|DoubleStorage"):
            load_checkpoint(path)


def zipped(pickle: bytes, entries: dict[str, bytes] | None = None, compression: int = 0) -> bytes:
    """Return a file of torch.save's form with any pickle and entries."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in {
            "data.pkl": pickle,
            "byteorder": b"little",
            **(entries or {}),
        }.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def in_dict(value: bytes) -> bytes:
    """Return a pickle of {"format": value}, of the opcodes of a value."""
    return b"\x80\x02}X\6\0\0\0format" + value + b"s."


def doubled(kind: Callable[[list[Any]], Any]) -> Any:
    """Return a value of 2^60 parts that is small in a file."""
    value: Any = 1
    for _ in range(60):
        value = kind([value, value])
    return value


STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0" + b"0X\3\0\0\0cpuK\1tQ"
"""Opcodes of the storage of one number."""


def tensor(size: bytes, stride: bytes, storage: bytes = STORAGE) -> bytes:
    """Return the opcodes of a tensor."""
    hooks = b"ccollections\nOrderedDict\n)R"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return rebuild + storage + b"K\0" + size + stride + b"\x89" + hooks + b"tR"


MANY = tensor(b"J\0\0\0\x40\x85", b"K\0\x85")
"""Opcodes of a view of 2^30 numbers of a storage of one."""


def hostile(content: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Yield files of several kinds that ask for much memory or time, each with its name."""
    itself: list[Any] = []
    itself.append(itself)
    text, spaced = "x" * 2**20, "a " * 2**20
    yield "text that widens", saved("a" * 80 * 2**20 + "\xe9\u0101\U0001f600")
    config = content["config"]
    narrow = {"d_model": 1, "d_state": 1, "d_conv": 1, "expand": 1, "stem": "patch"}
    values = {
        "a view": torch.zeros(1).expand(10**12),
        "a list in itself": itself,
        "nested lists": doubled(list),
        "nested tuples": doubled(tuple),
        "one text many times": [text] * 10**4,
        "spaces": spaced,
        "a few bytes per character": spaced + "\U0001f600",
        "a large number": 10**100_000,
    }
    for name, value in values.items():
        yield f"{name}, format", saved({**content, "format": value})
        yield f"{name}, model", saved({**content, "model": {"head.bias": value}})
        yield f"{name}, config", saved({**content, "config": value})
        for key in ("d_model", "patch", "dt_rank"):
            yield f"{name}, {key}", saved({**content, "config": {**config, key: value}})
    yield "unknown settings", saved({**content, "config": dict.fromkeys(spaced.split("  "))})
    yield "a long name", saved({**content, "config": {spaced: 1}})
    yield "many names", saved({**content, "config": {f"a {i}": 1 for i in range(2**17)}})
    large = {"d_model": 2048, "n_layers": 64, "members": 64, "expand": 4}
    some = {**narrow, "members": 64, "n_layers": 10}
    for name, change in {
        "less narrow": some,
        "large": large,
        "narrow": {**narrow, "members": 64, "n_layers": 64},
    }.items():
        yield f"a {name} model", saved({**content, "config": {**config, **change}})
    yield "compressed", zipped(in_dict(b"N"), {"data/0": bytes(2**26)}, zipfile.ZIP_DEFLATED)
    yield "compressed well", zipped(in_dict(b"N"), {"data/0": bytes(2**26)}, zipfile.ZIP_LZMA)
    one = {"data/0": bytes(4)}
    yield "a call", zipped(b"\x80\x02cbuiltins\nbytearray\nJ\0\0\0\x40\x85R.")
    yield (
        "a dictionary of a view",
        zipped(in_dict(b"ccollections\nOrderedDict\n" + MANY + b"\x85R"), one),
    )
    yield "arguments in a view", zipped(in_dict(b"ccollections\nOrderedDict\n" + MANY + b"R"), one)
    yield "a storage in a view", zipped(in_dict(MANY + b"Q"), one)
    pairs = (
        b"N"
        + b"q\0h\0\x86"
        + b"".join(bytes([ord("q"), i, ord("h"), i, 0x86]) for i in range(1, 60))
    )
    yield "a key of tuples", zipped(in_dict(b"}" + pairs + b"Ns"))
    yield (
        "a storage named by tuples",
        zipped(in_dict(STORAGE.replace(b"X\1\0\0\0" + b"0", pairs)), one),
    )
    yield (
        "a storage longer than its entry",
        zipped(
            in_dict(tensor(b"K\1\x85", b"K\1\x85", STORAGE.replace(b"K\1tQ", b"J\0\0\0\x10tQ"))),
            one,
        ),
    )
    n = 2**19
    for name, opcodes in {
        "dictionaries": b"}" * n,
        "lists": b"]" * n,
        "marks": b"(" * n,
        "nones": b"N" * 8 * n,
        "tuples": b"N\x85" * (n // 2),
        "memos": b"".join(b"r" + struct.pack("<I", i) for i in range(n)),
        "numbers": b"M\0\1" * n,
        "floats": b"G\0\0\0\0\0\0\0\0" * n,
        "dimensions": tensor(b"(" + b"K\1" * n + b"t", b"(" + b"K\1" * n + b"t"),
        "tensors": tensor(b"K\1\x85", b"K\1\x85") * (n // 16),
        "storages": STORAGE[:-1] + b"q\0Q" + b"h\0Q" * (n // 2),
    }.items():
        yield f"many {name}", zipped(in_dict(b"N" + opcodes), one)
    same_hash = b"".join(
        b"\x8a\x0b" + (i * sys.hash_info.modulus).to_bytes(11, "little") + b"N"
        for i in range(n >> 3)
    )
    yield "keys of one hash", zipped(in_dict(b"}(" + same_hash + b"u"))
    yield "deep lists", zipped(in_dict(b"]" * 2**18 + b"a" * (2**18 - 1)))
    yield "far memo", zipped(in_dict(b"Nr\xff\xff\xff\x7f"))
    yield "enough entries", zipped(in_dict(b"N"), {str(i): b"" for i in range(16_000)})
    yield "many entries", zipped(in_dict(b"N"), {str(i): b"" for i in range(40_000)})
    start = zipped(in_dict(b"N"))
    end = start.rindex(b"PK\5\6")
    first = start.index(b"PK\1\2")
    headers = start[first:end] * 20_000
    sizes = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0, 0, len(headers), first, 0)
    yield "many headers", start[:first] + headers + sizes
    wide = {f"{i:05d}{'a' * 249}\U0001f600": 1 for i in range(60_000)}
    yield "wide names", saved({**content, "config": wide})
    name = ("\U0001f600" + "a" * 65_000 + "\0").encode()
    fields = (20, 0, 20, 0, 0x800, 0, 0, 0x21, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0)
    header = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", *fields) + name
    headers = start[first:end] + header * 200
    sizes = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0, 0, len(headers), first, 0)
    yield "wide headers", start[:first] + headers + sizes


@pytest.mark.parametrize(
    "opcodes",
    [STORAGE, b"ctorch\nFloatStorage\n", b"ccollections\nOrderedDict\n", STORAGE + b"\x85"],
    ids=["storage", "dtype", "class", "storage in a tuple"],
)
@pytest.mark.parametrize("place", [b"%s", b"](%se", b"]%sa", b"}K\1%ss"])
def test_what_only_the_reader_uses_is_no_value(place: bytes, opcodes: bytes) -> None:
    data = zipped(b"\x80\x02" + place.replace(b"%s", opcodes) + b".", {"data/0": bytes(4)})
    with pytest.raises(TorchFileError, match="something else than tensors"):
        load_plain(data)


def test_equal_content_has_equal_bytes(tmp_path: Path) -> None:
    """A text that is a key and a value, such as patch, is one object or two."""
    path = tmp_path / "a.pth"
    first = save_checkpoint(path, Checkpoint(make_model("patch_forward_mean"), 1, 0.1))
    assert save_checkpoint(path, load_checkpoint(path, scan="reference")) == first


LOADER = """
import json, os, resource, signal, sys
from pathlib import Path
from mnist_mamba.training.checkpoint import CheckpointError, load_checkpoint

def peak():
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

def load(name):
    before = peak()
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**30,) * 2)  # spare the machine
    signal.alarm(20)
    try:
        load_checkpoint(Path(name), scan="reference")
        error = None
    except CheckpointError as refused:
        error = str(refused)
    return error, peak() - before

for name in sys.argv[1:]:
    sys.stdout.flush()
    if not (child := os.fork()):
        print(json.dumps(load(name)), flush=True)
        os._exit(0)
    if status := os.waitpid(child, 0)[1]:
        print(json.dumps((f"ended with status {status}", 2**60)))
"""
"""A program that loads each checkpoint in a process of its own.

It prints each error or null, and by how many bytes the memory grew.
"""


def load_elsewhere(*paths: Path) -> list[tuple[str | None, int]]:
    """Run LOADER: return the error or None, and by how many bytes the memory grew, per file."""
    done = subprocess.run(
        [sys.executable, "-c", LOADER, *paths],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_loading_any_file_takes_a_multiple_of_its_size(tmp_path: Path) -> None:
    """Less than 10 times its size plus 64 MB, as SECURITY.md promises."""
    good = tmp_path / "good.pth"
    content = loaded(save_checkpoint(good, Checkpoint(make_model("patch_forward_mean"), 1, 0.1)))
    names = []
    for i, (name, data) in enumerate(hostile(content)):
        (tmp_path / f"{i}.pth").write_bytes(data)
        names.append(name)
        assert len(data) < 100_000_000, name
    paths = [tmp_path / f"{i}.pth" for i in range(len(names))]
    results = load_elsewhere(good, *paths)[1:]
    for name, path, (error, grown) in zip(names, paths, results, strict=True):
        assert error is not None, name
        assert error.startswith(str(path)), name
        assert len(error.removeprefix(str(path))) < 500, name
        assert error.isprintable(), name
        assert grown < 10 * path.stat().st_size + 2**26, name


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_size_that_a_config_describes_is_that_of_its_model(name: str) -> None:
    weights = make_model(name).state_dict().values()
    assert weight_bytes(ARCHITECTURES[name]) == sum(max(w.nbytes, 1024) for w in weights)


def test_loading_a_large_checkpoint_takes_a_multiple_of_its_size(tmp_path: Path) -> None:
    small, large = tmp_path / "small.pth", tmp_path / "large.pth"
    save_checkpoint(small, Checkpoint(make_model("patch_forward_mean"), 1, 0.1))
    model = MambaClassifier(dataclasses.replace(MODEL, d_model=640))
    size = len(save_checkpoint(large, Checkpoint(model, 1, 0.1)))
    (error, grown) = load_elsewhere(small, large)[1]
    assert error is None
    assert size < grown < 8 * size


def test_a_checkpoint_whose_numbers_do_not_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.pth"
    save_checkpoint(path, Checkpoint(make_model("patch_forward_mean"), 1, 0.1))
    content = torch.load(path, weights_only=True)
    torch.save({**content, "epoch": math.inf}, path)
    with pytest.raises(CheckpointError, match="epoch = inf: expected a whole number"):
        load_checkpoint(path)
    torch.save({**content, "model": {}}, path)
    with pytest.raises(CheckpointError, match="does not hold a complete model") as error:
        load_checkpoint(path)
    assert len(str(error.value)) < 500
    assert "\n" not in str(error.value)


class Evil:
    """A pickle that would run code when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return Path.touch, (Path("pwned"),)  # type: ignore[return-value]


def test_a_checkpoint_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "config": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "evil.pth")
    assert not Path("pwned").exists()
