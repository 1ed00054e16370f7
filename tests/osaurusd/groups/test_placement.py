"""Which host runs which part of a model, and what is refused before anything starts."""

import itertools

import pytest
from msgspec.structs import replace

from osaurusd.errors import InsufficientMemory, InvalidRequest, VersionMismatch
from osaurusd.groups.facts import HEADS_WIDTH, Part
from osaurusd.groups.placement import check_link_address, plan
from osaurusd.pool.memory import CACHE_FACTOR, ORDINARY_TOKENS, WEIGHTS_FACTOR
from tests.osaurusd.groups.models import GB, VERSIONS, facts, host

PAIR = (host(), host("b"))


def rdma_host(name=None, gigabytes=64, rdma_device="rdma_en2"):
    return host(name, gigabytes, backend="jaccl", rdma_device=rdma_device)


CACHE_BYTES = 128 * 1024 * ORDINARY_TOKENS * CACHE_FACTOR


def test_tensor_split_gives_each_rank_the_same_share():
    placement = plan(facts("llama"), PAIR, "tensor")

    expected = int((16 + 1) * GB * WEIGHTS_FACTOR + CACHE_BYTES / 2)
    assert [None, "b"] == [rank.host for rank in placement.ranks]
    assert [expected, expected] == [rank.needs_bytes for rank in placement.ranks]
    assert () == placement.layer_counts


def test_latent_cache_is_not_divided_by_a_tensor_split():
    sizes = {"num_attention_heads": 16}
    placement = plan(facts("deepseek_v3", sizes=sizes), PAIR, "tensor")

    assert int(17 * GB * WEIGHTS_FACTOR + CACHE_BYTES) == placement.ranks[0].needs_bytes


def test_pipeline_gives_the_last_layers_to_the_leader_and_every_rank_the_shared_weights():
    placement = plan(facts(layers=4), PAIR, "pipeline")

    assert [range(2, 4), range(2)] == [rank.layers for rank in placement.ranks]
    assert (2, 2) == placement.layer_counts
    assert int(3 * GB * WEIGHTS_FACTOR + CACHE_BYTES / 2) == placement.ranks[0].needs_bytes


@pytest.mark.parametrize(
    ("gigabytes", "layers", "expected"),
    [
        ((64, 64), 33, (16, 17)),
        ((64, 64, 64), 32, (10, 11, 11)),
        ((16, 48), 32, (8, 24)),
        ((48, 16), 32, (24, 8)),
        ((200, 20, 20), 40, (34, 3, 3)),
        ((100, 100), 2, (1, 1)),
    ],
)
def test_pipeline_layers_follow_the_memory_of_the_hosts(gigabytes, layers, expected):
    names = (None, "b", "c")
    hosts = [host(name, size) for name, size in zip(names, gigabytes, strict=False)]
    model = facts(layers=layers, shared_bytes=0, cache_bytes_per_token=0)

    assert expected == plan(model, hosts, "pipeline").layer_counts


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("layers", [5, 12, 61])
def test_pipeline_covers_every_layer_once_in_order(ranks, layers):
    hosts = [host(), *(host(f"h{number}", 20 + 31 * number) for number in range(1, ranks))]
    parts = [rank.layers for rank in plan(facts(layers=layers, layer_bytes=GB // 10), hosts, "pipeline").ranks]

    assert list(range(layers)) == list(itertools.chain(*reversed(parts)))
    assert all(parts)


def test_large_layer_is_balanced_by_fewer_layers():
    model = replace(facts(), layers=(Part(8 * GB),) + (Part(GB),) * 8)
    placement = plan(model, PAIR, "pipeline")

    assert (8, 1) == placement.layer_counts


@pytest.mark.parametrize(
    ("architecture", "hosts", "split", "reason"),
    [
        ("qwen2", PAIR, "pipeline", "it exchanges least over the network"),
        ("qwen2", [rdma_host(), rdma_host("b")], "tensor", "RDMA is fast enough"),
        ("llama", PAIR, "tensor", "the architecture `llama` has no pipeline split"),
        ("qwen3_next", [rdma_host(), rdma_host("b")], "pipeline", "has no tensor split"),
        ("qwen2", [rdma_host(None, 50), rdma_host("b", 9)], "pipeline", "does not fit"),
    ],
)
def test_auto_chooses_a_split_that_is_possible_and_says_why(architecture, hosts, split, reason):
    placement = plan(facts(architecture), hosts, "auto")

    assert split == placement.split
    assert placement.reason.startswith(split)
    assert reason in placement.reason


def test_rdma_connects_two_hosts_by_the_devices_that_they_state():
    hosts = [rdma_host(), rdma_host("b", rdma_device="rdma_en5")]

    assert ("rdma_en2", "rdma_en5") == plan(facts(), hosts, "auto").rdma_devices
    assert () == plan(facts(), PAIR, "auto").rdma_devices


def test_auto_uses_a_pipeline_if_heads_cannot_be_divided():
    model = facts(sizes={"num_attention_heads": 7})
    placement = plan(model, [rdma_host(), rdma_host("b")], "auto")

    assert "pipeline" == placement.split
    assert "`num_attention_heads` (7) to be divisible by 2 hosts" in placement.reason


def test_auto_uses_a_tensor_split_for_more_hosts_than_layers():
    placement = plan(facts(layers=1), PAIR, "auto")

    assert "tensor" == placement.split
    assert "1 layers, fewer than 2 hosts" in placement.reason


def test_cpu_converts_to_float32_on_all_ranks_or_on_none():
    cpus = (host(device="cpu"), host("b", device="cpu"))

    assert plan(facts("llama"), cpus, "tensor").float32
    assert not plan(facts("llama"), (cpus[0], host("b", 20, device="cpu")), "tensor").float32
    assert not plan(facts("llama"), cpus, "tensor", "never").float32
    assert not plan(facts("llama"), PAIR, "tensor").float32
    with pytest.raises(InsufficientMemory):
        plan(facts("llama"), (cpus[0], host("b", 20, device="cpu")), "tensor", "always")


REFUSALS = [
    ("heads", facts("llama"), [host(), host("b"), host("c")], "tensor", "hosts", "`num_attention_heads` (32)"),
    (
        "kv heads",
        facts("qwen2", sizes={"num_key_value_heads": 3}),
        PAIR,
        "tensor",
        "split",
        "`num_key_value_heads` (3)",
    ),
    (
        "scales of quantized rows",
        facts("qwen2", sizes={"intermediate_size": 64 * 3}),
        PAIR,
        "tensor",
        "split",
        "`intermediate_size` (192) to be divisible by 2 hosts times the quantization's group size 64",
    ),
    ("width of heads", facts("llama", sizes={HEADS_WIDTH: 64}), PAIR, "tensor", "hosts", HEADS_WIDTH),
    ("no pipeline", facts("llama"), PAIR, "pipeline", "split", 'has no pipeline split; set `split` to "tensor"'),
    ("no tensor", facts("qwen3_next"), PAIR, "tensor", "split", 'has no tensor split; set `split` to "pipeline"'),
    ("architecture", facts("gemma3"), PAIR, "auto", "model", "`gemma3`, which cannot be divided; supported: deepseek"),
    ("few layers", facts(layers=1), PAIR, "pipeline", "hosts", "1 layers, fewer than 2 hosts"),
    ("vision", facts(runner="vision"), PAIR, "auto", "model", "is a vision model"),
    ("embedder", facts(task="embed", runner="encoder"), PAIR, "auto", "model", "for the task `embed`"),
    ("reranker", facts(task="rerank"), PAIR, "auto", "model", "for the task `rerank`"),
    ("no layers", facts(layers=0), PAIR, "auto", "model", "does not match the weights"),
    ("one host", facts(), [host()], "auto", "hosts", "`hosts` must name 1 to 15"),
    ("host twice", facts(), [host(), host("b"), host("b")], "auto", "hosts", "names a host twice"),
    ("backend", facts(), [host(), host("b", backend="jaccl")], "auto", "hosts", "set the same `distributed.backend`"),
    (
        "no RDMA device",
        facts(),
        [rdma_host(), rdma_host("b", rdma_device=None)],
        "auto",
        "hosts",
        "`distributed.rdma_d",
    ),
    ("three with RDMA", facts(), [rdma_host(), rdma_host("b"), rdma_host("c")], "auto", "hosts", "connects two hosts"),
    ("public address", facts(), [host(), host("b", link_address="8.8.8.8")], "auto", "hosts", "8.8.8.8, is not a priv"),
    ("no address", facts(), [host(link_address=None), host("b")], "auto", "hosts", "this host, which is not set"),
]


@pytest.mark.parametrize(
    ("model", "hosts", "split", "param", "message"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS]
)
def test_impossible_split_is_refused_with_the_field(model, hosts, split, param, message):
    with pytest.raises(InvalidRequest) as refusal:
        plan(model, hosts, split)

    assert param == refusal.value.param
    assert message in refusal.value.message


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        (VERSIONS | {"mlx": "0.33.0"}, 'host "b" has mlx 0.33.0, and this host 0.32.4; install the same versions'),
        ({"osaurusd": "1.0", "mlx": "0.32.4"}, "mlx-lm of an unknown version"),
        (VERSIONS | {"system": "26.2 (25C56)"}, "has system 26.2 (25C56), and this host none"),
    ],
)
def test_other_versions_are_refused(versions, message):
    with pytest.raises(VersionMismatch) as refusal:
        plan(facts(), [host(), host("b", versions=versions)], "auto")

    assert message in refusal.value.message


@pytest.mark.parametrize("split", ["tensor", "pipeline", "auto"])
def test_lack_of_memory_is_refused_with_the_numbers_of_each_host(split):
    with pytest.raises(InsufficientMemory) as refusal:
        plan(facts("qwen2"), [host(None, 12), host("b", 12)], split)

    assert "this host needs 18.0 GB and has 12.0 GB" in refusal.value.message
    assert 'host "b" needs 18.0 GB and has 12.0 GB' in refusal.value.message
    assert "`distributed.lend_bytes`" in refusal.value.message


def test_host_that_lends_nothing_is_named():
    with pytest.raises(InsufficientMemory, match=r'host "b" needs \d+\.\d GB and has 0 B'):
        plan(facts(), [host(), host("b", 0)], "auto")


def test_neither_split_is_possible_for_two_reasons():
    with pytest.raises(InvalidRequest, match=r"fewer than 3 hosts.*divisible by 3 hosts"):
        plan(facts(layers=2), [host(), host("b"), host("c")], "auto")


@pytest.mark.parametrize("address", ["10.1.2.3", "172.16.0.9", "192.168.1.2", "169.254.3.4", "127.0.0.2"])
def test_private_link_address_is_accepted(address):
    check_link_address(host(link_address=address))


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8",
        "172.32.0.1",
        "192.0.2.1",
        "2001:db8::1",
        "mac.local",
        "",
        "198.18.0.1",
        "fe80::1%en5",
        "fd00::2",
        "::1",
    ],
)
def test_other_link_address_is_refused(address):
    with pytest.raises(InvalidRequest, match="is not a private address"):
        check_link_address(host("b", link_address=address))


def test_placement_is_described_for_the_admin_api():
    info = plan(facts(layers=4), PAIR, "auto").info(["b"], "auto")

    assert ("pipeline", (2, 3), (0, 1)) == (info.chosen, info.ranks[0].layers, info.ranks[1].layers)
    assert ["b"] == info.hosts
