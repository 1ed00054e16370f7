import errno
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections import namedtuple

import gguf
import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from mlx_lm.utils import dequantize_model

from osaurusd.errors import ImportFailed
from osaurusd.imports.worker import tensor_file
from osaurusd.imports.worker.gguf import read_header
from osaurusd.imports.worker.hashing import FileHash, model_files
from osaurusd.imports.worker.importer import Options, import_model
from osaurusd.wire.quantization import ImportQuantization

from .gguf_writer import TinyLlama, sentence_piece_tokenizer, write_gguf
from .networks import CASES, Network, add_value


@pytest.mark.long
def test_imported_smollm_generates_a_correct_answer(smollm):
    model, tokenizer = mlx_lm.load(str(smollm))
    dequantize_model(model)
    model.set_dtype(mx.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Answer."}, {"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
    )

    output = ""
    for response in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=12):
        output += response.text
        if "Paris" in output:
            break

    assert "Paris" in output


@pytest.mark.parametrize("vocabulary", [None, sentence_piece_tokenizer()], ids=["byte-level", "sentence-piece"])
def test_a_converted_file_is_a_folder_that_mlx_lm_loads(tmp_path, convert, vocabulary):
    folder = convert(TinyLlama(vocabulary).write(tmp_path / "x.gguf", "Q4_0"))

    model, tokenizer = mlx_lm.load(str(folder))

    assert mx.isfinite(model(mx.array([tokenizer.encode("hello")]))).all()
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "osaurus.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_an_imported_file_records_its_provenance(tmp_path, convert, tiny):
    path = tiny.write(tmp_path / "Tiny.Q8_0.gguf", "Q8_0")
    before = int(time.time())

    provenance = json.loads((convert(path) / "osaurus.json").read_text())

    assert before <= provenance.pop("imported_at") <= time.time()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    recorded = provenance.pop("files")
    assert (
        hashlib.sha256((path.parent / "dest" / "model.safetensors").read_bytes()).hexdigest()
        == recorded["model.safetensors"]
    )
    assert provenance.pop("quantization") == {
        "mode": "auto",
        "group_size": 32,
        "exact": 16,
        "converted": 0,
        "mean_error": 0.0,
        "worst_error": 0.0,
        "worst_tensor": None,
        "matrices": [{"type": "Q8_0", "count": 16, "stored": "8-bit, group size 32", "held": True, "error": 0.0}],
        "errors": {},
    }
    assert provenance == {"source": "Tiny.Q8_0.gguf", "format": "gguf", "sha256": digest}


def test_the_record_of_an_import_says_how_the_matrices_of_each_type_are_stored(tmp_path, dest, tiny):
    path = tiny.write(tmp_path / "x.gguf", "F16", kinds={"blk_0_ffn_up_weight": "Q4_0"})

    report = import_model(path, dest, lambda *_: None, Options(ImportQuantization.BITS_4, 128))

    # Rows of 64 and 96 weights.
    groups = {(group.type, group.stored, group.held): group for group in report.matrices}
    assert {key: group.count for key, group in groups.items()} == {
        ("F16", "4-bit, group size 64", False): 13,
        ("F16", "4-bit, group size 32", False): 2,
        ("Q4_0", "4-bit, group size 32", True): 1,
    }
    assert [group.error for group in groups.values() if group.held] == [0.0]
    assert all(0.05 < group.error < 0.1 for group in groups.values() if not group.held)
    config = json.loads((dest / "config.json").read_text())["quantization"]
    assert (config["group_size"], config["model.layers.1.mlp.down_proj"]["group_size"]) == (64, 32)


def test_an_imported_folder_records_its_provenance(tmp_path, tiny):
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    import_model(tiny.write(tmp_path / "x.gguf"), first, lambda stage, done, total: None)
    stages = set()

    import_model(first, second, lambda stage, done, total: stages.add(stage))

    provenance = json.loads((second / "osaurus.json").read_text())
    assert (provenance["source"], provenance["format"]) == ("first", "folder")
    assert stages == {"copy", "record"}
    assert (second / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def test_each_stage_reports_progress_from_zero_to_total(tmp_path, dest, tiny):
    path = tiny.write(tmp_path / "x.gguf", "Q8_0")
    stages = {}

    import_model(path, dest, lambda stage, done, total: stages.setdefault(stage, []).append((done, total)))

    assert list(stages) == ["convert", "hash", "record"]
    for progress in stages.values():
        assert progress[0][0] == 0
        assert progress[-1][0] == progress[-1][1] > 0
        assert progress == sorted(progress)
    assert stages["hash"][-1][1] == path.stat().st_size
    assert stages["convert"][-1][1] <= (dest / "model.safetensors").stat().st_size


def test_file_extension_ignores_case(tmp_path, convert, tiny):
    assert (convert(tiny.write(tmp_path / "X.GGUF")) / "osaurus.json").exists()


def test_source_is_not_modified(tmp_path, dest, tiny):
    """`mx.load` opens files for writing, which fails for a file of another user."""
    path = tiny.write(tmp_path / "x.gguf")
    before = (path.stat().st_mtime_ns, path.read_bytes())

    import_model(path, dest, lambda stage, done, total: None)

    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


# Split models


def split(path, part_bytes):
    """Divide a file into parts, as gguf-split does. Return their paths."""
    header = read_header(path)
    groups, size = [[]], 0
    for tensor in header.tensors.values():
        if groups[-1] and size + tensor.nbytes > part_bytes:
            groups.append([])
            size = 0
        groups[-1].append(tensor)
        size += tensor.nbytes
    paths = []
    for number, group in enumerate(groups):
        part = path.with_name(f"{path.stem}-{number + 1:05d}-of-{len(groups):05d}.gguf")
        keys = dict(header.metadata.items()) if number == 0 else {}
        keys |= {"split.no": number, "split.count": len(groups)}
        tensors = {each.name: ("F32", np.frombuffer(header.read(each), "<f4").reshape(each.shape)) for each in group}
        paths.append(write_gguf(part, keys, tensors))
    return paths


def test_a_split_model_is_imported_like_a_single_file(tmp_path, tiny):
    whole = tiny.write(tmp_path / "x.gguf")
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    parts = split(whole, 40_000)
    assert len(parts) > 3

    import_model(whole, one, lambda *_: None)
    import_model(parts[0], two, lambda *_: None)

    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    digest = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
    assert json.loads((two / "osaurus.json").read_text())["sha256"] == digest


def test_a_hash_that_was_started_before_is_used_if_it_is_of_the_same_files(tmp_path, tiny):
    whole = tiny.write(tmp_path / "x.gguf")
    parts = split(whole, 40_000)
    expected = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()

    for number, paths in enumerate((model_files(parts[0]), [whole])):
        dest = tmp_path / f"dest{number}"
        dest.mkdir()
        with FileHash(paths) as started:
            import_model(parts[0], dest, lambda *_: None, source_hash=started)
        assert json.loads((dest / "osaurus.json").read_text())["sha256"] == expected


def test_matrices_without_a_group_cannot_be_quantized(tmp_path, dest):
    network = TinyLlama()
    network.hidden = network.inner = 48
    network.heads, network.kv_heads, network.head_dim = 3, 3, 16
    network.__init__()
    path = network.write(tmp_path / "x.gguf")
    with pytest.raises(ImportFailed, match="no matrix can be quantized"):
        import_model(path, dest, lambda *_: None, Options(ImportQuantization.BITS_4))


def test_parts_must_have_as_many_tensors_as_the_first_one_declares(tmp_path, dest, tiny):
    first, second = tmp_path / "x-00001-of-00002.gguf", tmp_path / "x-00002-of-00002.gguf"
    tensors = list(tiny.tensors().items())
    keys = {"split.count": 2, "split.tensors.count": len(tensors)}
    write_gguf(first, tiny.metadata(**keys, **{"split.no": 0}), dict(tensors[:5]))
    write_gguf(second, keys | {"split.no": 1}, dict(tensors[5:-1]))
    assert f"{len(tensors) - 1} tensors instead of {len(tensors)}" in error_of(first, dest)


def test_parts_of_a_split_model_are_checked(tmp_path, dest, tiny):
    parts = split(tiny.write(tmp_path / "x.gguf"), 40_000)

    assert "import the first one" in error_of(parts[1], dest)
    parts[2].write_bytes(parts[1].read_bytes())
    assert error_of(parts[0], dest) == f"{parts[2].name}: it is not part 3 of {len(parts)}"
    parts[2].unlink()
    assert error_of(parts[0], dest) == f"{parts[2].name}: No such file or directory"


# Failures


def error_of(source, dest):
    with pytest.raises(ImportFailed) as caught:
        import_model(source, dest, lambda stage, done, total: None)
    return caught.value.message


def test_a_missing_source_is_rejected(tmp_path, dest):
    assert error_of(tmp_path / "x.gguf", dest) == "x.gguf: the file or folder does not exist"


def test_an_unsupported_source_is_rejected(tmp_path, dest):
    (tmp_path / "model.bin").touch()

    assert error_of(tmp_path / "model.bin", dest) == "model.bin: it is neither a model folder nor a GGUF file"


def test_a_file_in_another_format_is_rejected(tmp_path, dest):
    (tmp_path / "x.gguf").write_text("not a model")

    assert error_of(tmp_path / "x.gguf", dest) == "x.gguf: not a GGUF file: it does not start with GGUF"


def test_full_disk_is_reported(tmp_path, dest, tiny, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)

    assert error_of(tiny.write(tmp_path / "x.gguf"), dest) == "x.gguf: the disk is full"


def test_failure_of_a_sync_in_the_background_is_reported(dest, monkeypatch):
    """The system reports it only once."""
    failures = [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]

    def fail_once(_):
        if failures:
            raise failures.pop()

    monkeypatch.setattr(tensor_file, "_SYNC_BYTES", 1)
    monkeypatch.setattr(os, "fsync", fail_once)
    entries = [tensor_file.Entry(name, "U8", (4,), 4) for name in ("a", "b")]

    with pytest.raises(OSError, match="No space left"):
        tensor_file.write_model(dest, entries, [[b"1234"], [b"5678"]], lambda *_: None)


def test_too_little_disk_space_is_reported_before_the_conversion(tmp_path, dest, tiny, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(1000))

    message = error_of(tiny.write(tmp_path / "x.gguf"), dest)

    assert message == "x.gguf: the disk is full: the model needs 384 kB, but 1.0 kB are free"
    assert not list(dest.iterdir())


def test_missing_destination_is_reported(tmp_path, tiny):
    message = error_of(tiny.write(tmp_path / "x.gguf"), tmp_path / "missing")

    assert message == "missing: No such file or directory"


def test_a_file_that_shrinks_during_the_import_fails_it(tmp_path, dest, tiny):
    path = tiny.write(tmp_path / "x.gguf")

    def truncate(stage, done, total):
        os.truncate(path, 40_000)

    with pytest.raises(ImportFailed, match=r"^x\.gguf: the file shrank while it was read$"):
        import_model(path, dest, truncate)


def damage(path, valid, rng, end):
    data = bytearray(valid)
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(end)] = rng.choice((0, 1, 32, 127, 128, 255, rng.randrange(256)))
    path.write_bytes(data[: rng.choice((len(data), len(data), len(data), rng.randrange(len(data))))])


@pytest.mark.parametrize("kind", [Type.Q4_0, Type.Q6_K], ids=lambda kind: kind.name)
@pytest.mark.parametrize("count", [50, pytest.param(500, marks=pytest.mark.long)])
def test_damaged_files_are_imported_or_rejected(tmp_path, kind, count):
    rng = random.Random(count)
    path = Network(CASES[0], kind).write(tmp_path / "x.gguf")
    valid = path.read_bytes()
    tensors = read_header(path).tensors
    end = min(tensor.offset for tensor in tensors.values())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    errors = []
    for attempt in range(count):
        # Most of the header is the vocabulary.
        damage(path, valid, rng, rng.choice((1500, end, len(valid))))
        dest = tmp_path / f"dest{attempt}"
        dest.mkdir()
        try:
            import_model(path, dest, lambda *_: None)
        except ImportFailed as failure:
            errors.append(failure.message)
        shutil.rmtree(dest)
    assert len(errors) > count / 4
    assert all(message.startswith("x.gguf: ") for message in errors)
    assert all(len(message.splitlines()) == 1 for message in errors)
    # In KB on Linux, in bytes on macOS.
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 300 << 20


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory from /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """The largest tensor has 67 MB; the process needs less than twice as much for everything."""
    path = write_large(tmp_path / "x.gguf")
    (tmp_path / "dest").mkdir()
    code = (
        "import pathlib, resource, sys\n"
        "from osaurusd.imports.worker.importer import import_model\n"
        "import_model(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), lambda *_: None)\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])\n"
    )
    script = [sys.executable, "-c", f"import mlx_lm.models.llama, gguf, tokenizers\n{code}", str(path)]
    result = subprocess.run([*script, str(tmp_path / "dest")], capture_output=True, text=True, check=True)
    baseline = subprocess.run(
        [*script[:2], "import mlx_lm.models.llama, gguf, tokenizers\n" + code.splitlines()[-1]],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(result.stdout) - int(baseline.stdout) < 2 * 67_000


def write_large(path):
    """Write a file of about 400 MB with random Q8_0 matrices."""
    hidden, inner = 2048, 30_720
    rng = np.random.default_rng(0)
    tokenizer = TinyLlama().tokenizer
    vocabulary = len(tokenizer["tokenizer.ggml.tokens"])
    writer = gguf.GGUFWriter(path, "qwen2")
    keys = {
        "qwen2.context_length": 128,
        "qwen2.embedding_length": hidden,
        "qwen2.block_count": 2,
        "qwen2.feed_forward_length": inner,
        "qwen2.attention.head_count": 16,
        "qwen2.attention.layer_norm_rms_epsilon": 1e-5,
    }
    for key, value in (keys | tokenizer).items():
        add_value(writer, key, value)

    def add(name, rows, columns):
        data = rng.integers(0, 64, (rows, columns // 32 * 34), dtype=np.uint8)
        data.reshape(-1, 34)[:, 1] = 0x20
        writer.add_tensor(name, data, raw_dtype=Type.Q8_0)

    add("token_embd.weight", vocabulary, hidden)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for layer in range(2):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{part}.weight", hidden, hidden)
        for part, rows, columns in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            add(f"blk.{layer}.ffn_{part}.weight", rows, columns)
        for part in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{part}.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
