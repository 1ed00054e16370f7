"""The part of a rank: what can be split is opened without the files of other ranks, and what cannot is refused."""

import shutil

import pytest

from osaurusd.errors import LoadFailed
from osaurusd.rpc import messages
from osaurusd.worker.engine.device import CPU
from osaurusd.worker.runners.sharding import ModelPart
from tests.models import make_tiny, split_files

SIZES = {"hidden_size": 48, "num_attention_heads": 6, "num_key_value_heads": 3, "num_hidden_layers": 4}
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8}


@pytest.fixture(scope="module")
def folder_of(tiny_tokenizer, tmp_path_factory):
    """Returns the folder of a tiny random model of this kind, with a file for each layer and one for the rest."""

    def folder_of(kind):
        folder = make_tiny(tmp_path_factory.mktemp(kind), tiny_tokenizer, model_type=kind, **SIZES, **GEMMA)
        split_files(folder)
        return folder

    folders = {kind: folder_of(kind) for kind in ("llama", "qwen2", "gemma2")}
    return folders.__getitem__


def open_part(folder, rank=1, size=2, split="pipeline", layers=(2, 2), **options):
    spec = messages.RankSpec(rank=rank, size=size, split=split, address="127.0.0.1", layers=layers)
    return ModelPart.open(messages.Load(path=str(folder), rank=spec, **options), spec, CPU)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("gemma2", {"split": "tensor"}, 'models of the type "gemma2" cannot be split by heads'),
        ("gemma2", {"split": "pipeline"}, 'models of the type "gemma2" cannot be split by layers'),
        ("llama", {"split": "pipeline"}, 'models of the type "llama" cannot be split by layers'),
        ("llama", {"split": "tensor", "size": 4}, "the model's 6 attention heads cannot be divided among 4 ranks"),
        ("llama", {"split": "tensor", "size": 2}, "the model's 3 key-value heads cannot be divided among 2 ranks"),
        ("qwen2", {"layers": ()}, "[] does not divide the model's 4 layers among 2 ranks"),
        ("qwen2", {"layers": (1, 2)}, "[1, 2] does not divide the model's 4 layers among 2 ranks"),
        ("qwen2", {"layers": (0, 4)}, "[0, 4] does not divide the model's 4 layers among 2 ranks"),
        ("qwen2", {"task": "embed"}, "only models that generate text"),
        ("qwen2", {"task": "rerank"}, "only models that generate text"),
        ("qwen2", {"vision": True}, "only models that generate text"),
    ],
)
def test_an_impossible_split_is_refused(folder_of, kind, options, message):
    with pytest.raises(LoadFailed) as failure:
        open_part(folder_of(kind), **options)
    assert message in failure.value.message


@pytest.mark.parametrize(("rank", "own"), [(0, [1, 2, 3]), (1, [0])])
def test_a_pipeline_rank_needs_only_its_layers(folder_of, tmp_path, rank, own):
    folder = tmp_path / "part"
    shutil.copytree(folder_of("qwen2"), folder)
    for layer in {0, 1, 2, 3} - set(own):
        (folder / f"model-{layer}.safetensors").unlink()
    open_part(folder, rank, layers=(3, 1))

    (folder / f"model-{own[0]}.safetensors").unlink()
    with pytest.raises(LoadFailed, match=f'the file "model-{own[0]}.safetensors" of the model is missing'):
        open_part(folder, rank, layers=(3, 1))


def test_a_tensor_rank_needs_all_files(folder_of, tmp_path):
    folder = tmp_path / "part"
    shutil.copytree(folder_of("llama"), folder)
    open_part(folder, size=3, split="tensor")
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(LoadFailed, match=r'the file "model-2.safetensors" of the model is missing'):
        open_part(folder, size=3, split="tensor")


@pytest.mark.parametrize(
    "index", ['{"weight_map": {"w": "model-00001-of-00002.safetensors"}}', "{", "[]", '{"weight_map": 1}']
)
def test_an_index_that_fits_no_file_does_no_harm(tiny_tokenizer, tmp_path, index):
    make_tiny(tmp_path, tiny_tokenizer, model_type="qwen2", **SIZES)
    (tmp_path / "model.safetensors.index.json").write_text(index)
    open_part(tmp_path, size=2)


def test_only_rank_0_has_a_tokenizer(folder_of):
    assert open_part(folder_of("qwen2"), 0).model.tokenizer is not None
    assert open_part(folder_of("qwen2"), 1).model.tokenizer is None
