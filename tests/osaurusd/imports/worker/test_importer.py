import errno
import hashlib
import json
import os
import random
import time

import mlx.core as mx
import mlx_lm
import pytest
from mlx_lm.utils import dequantize_model

from osaurusd.errors import ImportFailed
from osaurusd.imports.worker.importer import import_model

from .gguf_writer import TinyLlama, sentence_piece_tokenizer


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
        "errors": {},
    }
    assert provenance == {"source": "Tiny.Q8_0.gguf", "format": "gguf", "sha256": digest}


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

    assert error_of(tiny.write(tmp_path / "x.gguf"), dest) == "x.gguf: No space left on device"


def test_missing_destination_is_reported(tmp_path, tiny):
    message = error_of(tiny.write(tmp_path / "x.gguf"), tmp_path / "missing")

    assert message == "missing: No such file or directory"


def test_a_file_that_shrinks_during_the_import_fails_it(tmp_path, dest, tiny):
    path = tiny.write(tmp_path / "x.gguf")

    def truncate(stage, done, total):
        os.truncate(path, 40_000)

    with pytest.raises(ImportFailed, match=r"^x\.gguf: the file shrank while it was read$"):
        import_model(path, dest, truncate)


@pytest.mark.parametrize("vocabulary", [None, sentence_piece_tokenizer()], ids=["byte-level", "sentence-piece"])
@pytest.mark.parametrize("seed", range(5))
def test_a_damaged_file_is_imported_or_rejected(tmp_path, tiny, vocabulary, seed):
    rng = random.Random(seed)
    path = TinyLlama(vocabulary).write(tmp_path / "x.gguf", "Q4_0")
    valid = path.read_bytes()
    header = valid.index(b"blk.1.ffn_down.weight")
    errors = []
    for attempt in range(40):
        data = bytearray(valid)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(header)] = rng.choice((0, 1, 32, 127, 128, 255, rng.randrange(256)))
        path.write_bytes(data)
        dest = tmp_path / f"dest{attempt}"
        dest.mkdir()
        try:
            import_model(path, dest, lambda stage, done, total: None)
        except ImportFailed as failure:
            errors.append(failure.message)
    assert errors
    assert all(message.startswith("x.gguf: ") for message in errors)
