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


def test_smollm_knows_the_capital_of_france(smollm):
    model, tokenizer = mlx_lm.load(str(smollm))
    dequantize_model(model)
    model.set_dtype(mx.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Answer."}, {"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True,
    )

    answer = ""
    for response in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=12):
        answer += response.text
        if "Paris" in answer:
            break

    assert "Paris" in answer


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

    assert list(stages) == ["hash", "convert", "record"]
    for seen in stages.values():
        assert seen[0][0] == 0
        assert seen[-1][0] == seen[-1][1] > 0
        assert seen == sorted(seen)
    assert stages["hash"][-1][1] == path.stat().st_size
    assert stages["convert"][-1][1] <= (dest / "model.safetensors").stat().st_size


def test_the_file_extension_ignores_case(tmp_path, convert, tiny):
    assert (convert(tiny.write(tmp_path / "X.GGUF")) / "osaurus.json").exists()


def test_the_source_is_only_read(tmp_path, dest, tiny):
    """`mx.load` would open it for writing, which fails for another user's file."""
    path = tiny.write(tmp_path / "x.gguf")
    before = (path.stat().st_mtime_ns, path.read_bytes())

    import_model(path, dest, lambda stage, done, total: None)

    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


# Failures


def refusal(source, dest):
    with pytest.raises(ImportFailed) as caught:
        import_model(source, dest, lambda stage, done, total: None)
    return caught.value.message


def test_a_missing_source_is_rejected(tmp_path, dest):
    assert refusal(tmp_path / "x.gguf", dest) == "x.gguf: the file or folder does not exist"


def test_an_unsupported_source_is_rejected(tmp_path, dest):
    (tmp_path / "model.bin").touch()

    assert refusal(tmp_path / "model.bin", dest) == "model.bin: it is neither a model folder nor a .gguf file"


def test_a_file_in_another_format_is_rejected(tmp_path, dest):
    (tmp_path / "x.gguf").write_text("hello there")

    assert refusal(tmp_path / "x.gguf", dest) == "x.gguf: not a GGUF file: it does not start with GGUF"


def test_a_full_disk_is_a_failure_with_its_reason(tmp_path, dest, tiny, monkeypatch):
    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)

    assert refusal(tiny.write(tmp_path / "x.gguf"), dest) == "x.gguf: No space left on device"


def test_a_folder_that_cannot_be_written_is_a_failure_with_its_reason(tmp_path, tiny):
    message = refusal(tiny.write(tmp_path / "x.gguf"), tmp_path / "missing")

    assert message == "tokenizer.json: No such file or directory"


def test_a_file_that_shrinks_during_the_import_fails_it(tmp_path, dest, tiny):
    path = tiny.write(tmp_path / "x.gguf")

    def cut(stage, done, total):
        os.truncate(path, 40_000)

    with pytest.raises(ImportFailed, match=r"^x\.gguf: the file shrank while it was read$"):
        import_model(path, dest, cut)


@pytest.mark.parametrize("vocabulary", [None, sentence_piece_tokenizer()], ids=["byte-level", "sentence-piece"])
@pytest.mark.parametrize("seed", range(5))
def test_a_damaged_file_is_imported_or_rejected(tmp_path, tiny, vocabulary, seed):
    dice = random.Random(seed)
    path = TinyLlama(vocabulary).write(tmp_path / "x.gguf", "Q4_0")
    sound = path.read_bytes()
    header = sound.index(b"blk.1.ffn_down.weight")
    refusals = []
    for attempt in range(40):
        data = bytearray(sound)
        for _ in range(dice.randint(1, 4)):
            data[dice.randrange(header)] = dice.choice((0, 1, 32, 127, 128, 255, dice.randrange(256)))
        path.write_bytes(data)
        dest = tmp_path / f"dest{attempt}"
        dest.mkdir()
        try:
            import_model(path, dest, lambda stage, done, total: None)
        except ImportFailed as error:
            refusals.append(error.message)
    assert refusals
    assert all(message.startswith("x.gguf: ") for message in refusals)
