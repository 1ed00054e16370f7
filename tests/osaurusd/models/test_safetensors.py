"""Whether weights are all there."""

import json
import os
import struct

import pytest

from osaurusd.models import safetensors

from .disk import index, tensors, with_header, write

ONE = "model-00001-of-00002.safetensors"
TWO = "model-00002-of-00002.safetensors"
OTHERS = ("model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors")
SECOND = tensors(9, layer="second.")


def tensor(shape, offsets, dtype, nbytes=None):
    """A file with one tensor and an arbitrary header entry for it."""
    header = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    return with_header(header) + bytes(max(offsets) if nbytes is None else nbytes)


@pytest.mark.parametrize(
    "files",
    [
        pytest.param({"model.safetensors": tensors()}, id="one file"),
        pytest.param({"model.safetensors": tensors(metadata=False)}, id="without metadata"),
        pytest.param({"model.safetensors": with_header(b"{}")}, id="no tensors"),
        pytest.param({"model.safetensors": with_header(b'{"__metadata__":{}}   ')}, id="padded header"),
        pytest.param({ONE: tensors(), TWO: SECOND, safetensors.INDEX: index(ONE, TWO, ONE)}, id="shards"),
        pytest.param({ONE: tensors(), TWO: SECOND}, id="shards without an index"),
        pytest.param({ONE: tensors(), TWO.replace(".", " (1).", 1): SECOND}, id="a shard with the name of a copy"),
        pytest.param({"model.safetensors": tensors(), ONE: tensors(), TWO: SECOND}, id="whole and sharded"),
        pytest.param({"model.safetensors": tensors(), safetensors.INDEX: index(ONE, TWO)}, id="index of other weights"),
        pytest.param({ONE: tensors(), TWO: SECOND, safetensors.INDEX: index(*OTHERS)}, id="index of other shards"),
        pytest.param(
            {"model-x.safetensors": tensors(), safetensors.INDEX: b'{"weight_map": {"a": "x", "b": "y"}}'},
            id="all tensors of the index in another file",
        ),
        pytest.param({"model.safetensors": tensors(), safetensors.INDEX: index()}, id="empty index"),
        pytest.param({"model.safetensors": tensors(), "optimizer.safetensors": b"x"}, id="a file that is no weights"),
    ],
)
def test_complete_weights_are_recognized(tmp_path, files):
    assert safetensors.read(write(tmp_path, files)).missing is None


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        pytest.param(tensors()[:-1], "header implies", id="one byte short"),
        pytest.param(tensors()[:-16], "header implies", id="no data"),
        pytest.param(tensors() + b"\0", "header implies", id="one byte long"),
        pytest.param(b"", "unreadable header", id="empty"),
        pytest.param(tensors()[:7], "unreadable header", id="cut in its length"),
        pytest.param(tensors()[:20], "unreadable header", id="cut in its header"),
        pytest.param(struct.pack("<Q", 2**63) + b"{}", "header of 9223372036854775808 bytes", id="huge header"),
        pytest.param(struct.pack("<Q", 99_999_999) + b"{}", "header implies", id="header cut at a brace"),
        pytest.param(with_header(b"garbage"), "unreadable header", id="garbage"),
        pytest.param(with_header(b"\xff\xfe\xfd"), "unreadable header", id="not UTF-8"),
        pytest.param(with_header(b"[]"), "unreadable header", id="an array"),
        pytest.param(with_header(b"null"), "unreadable header", id="null"),
        pytest.param(with_header(b'{"a":1}'), "unreadable header", id="a number for a tensor"),
        pytest.param(with_header(b'{"a":{}}'), "unreadable header", id="no offsets"),
        pytest.param(with_header(b'{"a":{"data_offsets":[0]}}'), "unreadable header", id="one offset"),
        pytest.param(with_header(b'{"a":{"data_offsets":null}}'), "unreadable header", id="null for offsets"),
        pytest.param(with_header(b'{"a":{"data_offsets":[0,"9"]}}'), "unreadable header", id="text for an offset"),
        pytest.param(with_header(b'{"a":{"data_offsets":[0,1e400]}}'), "implies", id="an infinite offset"),
        pytest.param(with_header(b'{"a":' * 50_000), "unreadable header", id="nested too deeply"),
        pytest.param(tensor([4], [0, 16], "F32")[:-1], "implies", id="cut by a byte"),
        pytest.param(tensor([4], [0, 15], "F32"), "does not have 15 bytes", id="a shape larger than its place"),
        pytest.param(tensor([2], [0, 16], "F32"), "does not have 16 bytes", id="a shape smaller than its place"),
        pytest.param(tensor([2**62, 2**62], [0, 16], "U8"), "does not have 16 bytes", id="a shape beyond all memory"),
        pytest.param(tensor([-4, -1], [0, 16], "F32"), "outside of the file", id="a shape below nothing"),
        pytest.param(tensor([4], [16, 0], "F32", 0), "outside of the file", id="an end before its beginning"),
        pytest.param(tensor([24], [-8, 16], "U8", 16), "outside of the file", id="the header taken for weights"),
        pytest.param(b"<!DOCTYPE html><html>", "unreadable header", id="an error page"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "unreadable header", id="an LFS pointer"
        ),
    ],
)
def test_a_damaged_file_is_reported_with_the_reason(tmp_path, content, problem):
    reason = safetensors.read(write(tmp_path, {"model.safetensors": content})).missing
    assert reason is not None
    assert reason.startswith("model.safetensors: ")
    assert problem in reason


def test_sizes_are_reported(tmp_path):
    whole = tensors()
    reason = safetensors.read(write(tmp_path, {"model.safetensors": whole[:-1]})).missing
    assert reason == f"model.safetensors: {len(whole) - 1} bytes, but its header implies {len(whole)}"


def test_a_folder_without_weights_is_incomplete(tmp_path):
    write(tmp_path, {"config.json": b"{}", "pytorch_model.bin": b"x"})
    assert safetensors.read(tmp_path).missing == "no model*.safetensors"


def test_a_missing_folder_has_no_weights(tmp_path):
    assert safetensors.read(tmp_path / "none").missing == "no model*.safetensors"


def test_a_missing_shard_is_named(tmp_path):
    write(tmp_path, {ONE: tensors(), safetensors.INDEX: index(ONE, TWO)})
    assert safetensors.read(tmp_path).missing == f"{TWO}: missing"


def test_a_shard_with_a_broken_link_is_missing(tmp_path):
    write(tmp_path, {ONE: tensors(), safetensors.INDEX: index(ONE, TWO)})
    (tmp_path / TWO).symlink_to(tmp_path / "blob.incomplete")
    assert safetensors.read(tmp_path).missing == f"{TWO}: missing"


def test_missing_shards_are_detected_without_an_index(tmp_path):
    write(tmp_path, {ONE: tensors()})
    assert safetensors.read(tmp_path).missing is not None


def test_a_missing_shard_is_named_without_an_index(tmp_path):
    write(tmp_path, {OTHERS[1]: tensors()})
    assert safetensors.read(tmp_path).missing == f"{OTHERS[0]}: missing"


def test_an_additional_file_does_not_replace_the_shards_of_the_index(tmp_path):
    write(tmp_path, {"model-extra.safetensors": tensors(), safetensors.INDEX: index(ONE, TWO)})
    assert safetensors.read(tmp_path).missing == f"{ONE}: missing"


def test_every_file_that_mlx_lm_loads_is_checked(tmp_path):
    write(tmp_path, {"model.safetensors": tensors(), "model-extra.safetensors": b"", safetensors.INDEX: index(ONE)})
    assert safetensors.read(tmp_path).missing.startswith("model-extra.safetensors: unreadable header")


def test_weights_with_names_that_mlx_lm_does_not_load_do_not_count(tmp_path):
    write(tmp_path, {"weights.safetensors": tensors(), safetensors.INDEX: index("weights.safetensors")})
    assert safetensors.read(tmp_path).missing == "no model*.safetensors"


def test_contradictory_files_are_reported(tmp_path):
    # mlx_lm would use either, depending on the order of the directory.
    write(tmp_path, {"model.safetensors": tensors(16), "model-old.safetensors": tensors(32)})
    reason = safetensors.read(tmp_path).missing
    assert reason.startswith("model.safetensors: another file contains a different `")
    assert "remove the file that does not belong to the model" in reason


def test_pipe_in_place_of_weights_is_reported(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    assert safetensors.read(tmp_path).missing == "model.safetensors: unreadable header: it is not a regular file"


def test_a_folder_in_place_of_weights_is_reported(tmp_path):
    (tmp_path / "model.safetensors").mkdir()
    reason = safetensors.read(tmp_path).missing
    assert reason is not None
    assert reason.startswith("model.safetensors: unreadable header")


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd", "sub/model.safetensors", "./m", "a/"])
def test_a_file_outside_the_folder_counts_as_missing(tmp_path, name):
    write(tmp_path, {"model.safetensors": tensors(), safetensors.INDEX: index("model.safetensors", name)})
    assert safetensors.read(tmp_path).missing == f"{name}: missing"


@pytest.mark.parametrize("name", [".", ".."])
def test_an_index_may_not_name_a_folder(tmp_path, name):
    write(tmp_path, {"model.safetensors": tensors(), safetensors.INDEX: index("model.safetensors", name)})
    assert safetensors.read(tmp_path).missing is not None


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"garbage", id="garbage"),
        pytest.param(b"\xff\xff\xff", id="not UTF-8"),
        pytest.param(b"[]", id="an array"),
        pytest.param(b"{}", id="no map"),
        pytest.param(b'{"weight_map": null}', id="null for the map"),
        pytest.param(b'{"weight_map": ["model.safetensors"]}', id="an array for the map"),
        pytest.param(b'{"weight_map": {"a": 1}}', id="a number for a file"),
        pytest.param(b'{"weight_map": {"a": {}}}', id="an object for a file"),
        pytest.param(b'{"weight_map":' * 50_000, id="nested too deeply"),
    ],
)
def test_a_damaged_index_does_no_harm(tmp_path, content):
    write(tmp_path, {"model.safetensors": tensors(), safetensors.INDEX: content})
    assert safetensors.read(tmp_path).missing is None
