import psutil
import pytest
from msgspec.structs import replace

from osaurusd.config import Config, Residency, Worker
from osaurusd.errors import ConfigError
from osaurusd.pool.config import KeepAlive, PoolConfig, find_blas, find_blas_core

DEBIAN = "lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0"


@pytest.fixture
def root(tmp_path):
    """An empty /usr."""
    return tmp_path / "usr"


@pytest.fixture
def install(root):
    """Creates an empty file in /usr."""

    def install(place):
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    return install


def find(setting="auto", **options):
    return find_blas(setting, **{"platform": "linux", **options})


# BLAS


@pytest.mark.parametrize(
    "place",
    [
        DEBIAN,
        "lib/aarch64-linux-gnu/libopenblas.so.0",
        "lib64/libopenblasp.so.0",
        "lib64/libopenblas.so.0",
        "lib/libopenblas.so.0",
    ],
)
def test_auto_finds_openblas_in_the_folders_of_distributions(root, install, place):
    assert install(place) == find(root=root)


def test_auto_prefers_the_threaded_build(root, install):
    for place in ("lib64/libopenblas.so.0", "lib/x86_64-linux-gnu/libopenblas.so.0", "lib/libopenblas.so.0"):
        install(place)
    threaded = install(DEBIAN)

    assert threaded == find(root=root)


def test_auto_chooses_deterministically(root, install):
    install("lib/x86_64-linux-gnu/libopenblas.so.0")
    first = install("lib/aarch64-linux-gnu/libopenblas.so.0")

    assert first == find(root=root)


def test_auto_without_openblas_preloads_nothing(root, install, tmp_path):
    install("lib/x86_64-linux-gnu/libblas.so.3")

    assert find(root=root) is None
    assert find(root=tmp_path / "absent") is None


def test_none_and_other_systems_preload_nothing(root, install):
    path = install(DEBIAN)

    assert find("none", root=root) is None
    assert find("auto", platform="darwin", root=root) is None
    assert find(str(path), platform="darwin", root=root) is None


def test_a_path_is_used_as_configured(root, install, tmp_path, monkeypatch):
    install(DEBIAN)
    path = install("opt/libmkl.so")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "libmine.so").touch()

    assert path == find(str(path), root=root)
    assert tmp_path / "libmine.so" == find("~/libmine.so")


@pytest.mark.parametrize("name", ["absent.so", "folder"])
def test_a_path_that_is_not_a_file_is_a_config_error(tmp_path, name):
    (tmp_path / "folder").mkdir()

    with pytest.raises(ConfigError, match=name) as caught:
        find(str(tmp_path / name))

    assert caught.value.param == "worker.blas"


# Keep-alive


def test_a_keep_alive_is_found_by_name_repo_or_alias_in_any_case(model):
    record = replace(model(), name="llama", repo="Org/Llama", aliases=("fast",))
    for name in ("Llama", "org/llama", "FAST"):
        assert KeepAlive(900, {name: 5}).for_model(record) == 5
    assert KeepAlive(900, {"other": 5}).for_model(record) == 900


def test_a_negative_keep_alive_means_never(model):
    assert KeepAlive(900, {"echo": -1}).for_model(model()) is None
    assert KeepAlive(-1).for_model(model()) is None


# The whole configuration


def test_unset_limits_are_fractions_of_the_physical_memory():
    physical = psutil.virtual_memory().total

    config = PoolConfig.from_config(Config(worker=Worker(blas="none")))

    assert config.scheduler.budget_bytes == int(physical * 0.7)
    assert config.limits.prefix_cache_bytes == int(physical / 8)


def test_configured_values_are_used():
    worker = Worker(blas="none", prefix_cache_bytes=1, max_waiting=2, stop_grace_seconds=3.0)
    residency = Residency(budget_bytes=4, hang_seconds=5.0, standby_seconds=6.0, keep_alive_by_model={"m": 7.0})

    config = PoolConfig.from_config(Config(worker=worker, residency=residency))

    assert (config.limits.prefix_cache_bytes, config.scheduler.budget_bytes) == (1, 4)
    assert (config.scheduler.max_waiting, config.limits.max_waiting) == (2, 2)
    assert (config.launch.stop_grace, config.launch.hang_timeout, config.standby_seconds) == (3, 5, 6)
    assert config.keep_alive.by_model == {"m": 7}


@pytest.mark.parametrize(
    ("flags", "core"),
    [
        ("fpu sse2 avx avx2 fma avx512f avx512cd avx512bw avx512dq avx512vl", "SkylakeX"),
        ("fpu sse2 avx avx2 fma avx512f", "Haswell"),
        ("fpu sse2 avx", None),
    ],
)
def test_openblas_core_follows_from_the_instructions(tmp_path, flags, core):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: spectre_v1\n" * 2)
    assert find_blas_core(cpuinfo) == core


def test_openblas_chooses_the_core_without_known_flags(tmp_path):
    assert find_blas_core(tmp_path / "missing") is None
    (tmp_path / "arm").write_text("Features\t: fp asimd\n")
    assert find_blas_core(tmp_path / "arm") is None
