"""Embedding models and rerankers on disk: how they embed, and why some cannot be served."""

import json

import pytest

from osaurusd.inference.retrieval import DenseLayer, Pipeline
from osaurusd.models import embedding
from osaurusd.wire.admin import Availability
from tests.osaurusd.models.disk import embedder, model, scan, tensors, write

RERANKER = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}


def single(records):
    (record,) = records
    return record


def modules(*kinds):
    """The bytes of a modules.json with modules of these kinds, each in its own folder."""
    return json.dumps(
        [
            {
                "idx": number,
                "path": f"{number}_{kind}" if number else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for number, kind in enumerate(kinds)
        ]
    ).encode()


def encode(**fields):
    return json.dumps(fields).encode()


def read(tmp_path, files, **config):
    return embedding.read_pipeline(write(tmp_path / "m", {**embedder(), **files}), config)


def test_record_of_an_embedding_model(models, hub):
    write(models / "m", {**embedder(), "sentence_bert_config.json": encode(max_seq_length=256)})
    record = single(scan(models, hub))

    assert (Availability.AVAILABLE, "embed", "encoder") == (record.state, record.task, record.runner)
    assert Pipeline(pooling=["mean"], normalize=True, max_tokens=256) == record.pipeline
    assert 256 == record.context_length
    assert not record.capabilities.completion
    assert 0 < record.memory.pass_bytes_per_token
    assert "1_Pooling/config.json" in dict(record.files)


def test_record_of_a_reranker(models, hub):
    write(models / "m", model(**RERANKER, id2label={"0": "LABEL_0"}))
    record = single(scan(models, hub))

    assert (Availability.AVAILABLE, "rerank", "encoder") == (record.state, record.task, record.runner)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({**RERANKER, "id2label": {"0": "no", "1": "yes"}}, "it is a classifier with 2 labels; a reranker has one"),
        (RERANKER, "it is a classifier with 2 labels; a reranker has one"),
        (
            {"model_type": "qwen3", "architectures": ["Qwen3ForSequenceClassification"], "num_labels": 1},
            "sequence classifiers of the architecture `qwen3` are not supported",
        ),
    ],
)
def test_other_classifiers_are_unusable(models, hub, settings, reason):
    write(models / "m", model(**settings))
    record = single(scan(models, hub))

    assert (Availability.UNUSABLE, reason) == (record.state, record.reason)


@pytest.mark.parametrize("missing", ["modules.json", "1_Pooling/config.json"])
def test_model_without_its_modules_is_partial_until_they_exist(models, hub, missing):
    files = embedder()
    folder = write(models / "m", {name: content for name, content in files.items() if name != missing})
    record = single(scan(models, hub))
    write(folder, files)

    assert (Availability.PARTIAL, f"{missing} is missing") == (record.state, record.reason)
    assert Availability.AVAILABLE == single(scan(models, hub)).state


def test_embedding_model_needs_the_tokenizer_file(models, hub):
    write(models / "m", {name: content for name, content in embedder().items() if name != "tokenizer.json"})

    assert "tokenizer.json is missing" == single(scan(models, hub)).reason


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ["cls"]),
        ({"pooling_mode_lasttoken": True}, ["lasttoken"]),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, ["cls", "mean"]),
        ({"pooling_mode": "mean"}, ["mean"]),
    ],
)
def test_pooling_is_that_of_the_file(tmp_path, settings, pooling):
    assert pooling == read(tmp_path, {"1_Pooling/config.json": encode(**settings)}).pooling


def test_prompts_dense_layers_and_lengths_are_read(tmp_path):
    files = {
        "modules.json": modules("Transformer", "Pooling", "Dense", "Normalize"),
        "1_Pooling/config.json": encode(pooling_mode_mean_tokens=True, include_prompt=False),
        "2_Dense/config.json": encode(activation_function="torch.nn.modules.linear.Identity"),
        "2_Dense/model.safetensors": tensors(),
        "config_sentence_transformers.json": encode(prompts={"query": "query: "}, default_prompt_name="query"),
        "sentence_bert_config.json": encode(max_seq_length=None, do_lower_case=True),
    }

    expected = Pipeline(
        pooling=["mean"],
        pools_prompt=False,
        layers=[DenseLayer(folder="2_Dense", activation="identity")],
        normalize=True,
        prompts={"query": "query: "},
        default_prompt="query",
        lowercase=True,
    )
    assert expected == read(tmp_path, files)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"modules.json": b"{}"}, "must be a list of objects"),
        ({"modules.json": modules("Transformer")}, "must be Transformer and Pooling"),
        ({"modules.json": modules("Transformer", "Pooling", "LayerNorm")}, "the module LayerNorm is not supported"),
        ({"modules.json": modules("Transformer", "Pooling", "Normalize", "Dense")}, "2_Normalize|3_Dense"),
        ({"1_Pooling/config.json": b"{}"}, "the pooling is missing or not supported"),
        ({"1_Pooling/config.json": encode(pooling_mode="attention")}, "the pooling is missing or not supported"),
        (
            {"modules.json": modules("Transformer", "Pooling", "Dense"), "2_Dense/config.json": b"{}"},
            'the activation function "" is not supported',
        ),
        (
            {"modules.json": modules("Transformer", "Pooling").replace(b"1_Pooling", b"../1_Pooling")},
            "is not a folder of a module",
        ),
        ({"modules.json": modules("Transformer", "Pooling").replace(b'""', b'"0_T"')}, "in the model's folder itself"),
    ],
)
def test_models_that_cannot_embed_are_unusable_with_the_reason(tmp_path, files, reason):
    with pytest.raises(ValueError, match=reason):
        read(tmp_path, files)


@pytest.mark.parametrize(
    ("files", "config", "dimensions"),
    [
        ({}, {"matryoshka_dimensions": [64, 128]}, [64, 128]),
        ({}, {"is_matryoshka": True}, []),
        ({"README.md": b"---\ntags:\n- loss:MatryoshkaLoss\n---\n"}, {}, []),
    ],
)
def test_shorter_vectors_are_allowed_if_config_or_card_say_so(tmp_path, files, config, dimensions):
    pipeline = read(tmp_path, files, **config)

    assert pipeline.matryoshka
    assert dimensions == pipeline.matryoshka_dimensions


def test_shorter_vectors_are_not_allowed_otherwise(tmp_path):
    assert not read(tmp_path, {"README.md": b"# A model"}).matryoshka
