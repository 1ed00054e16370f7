import pytest

from osaurusd.errors import ConfigError
from osaurusd.pool import blas

DEBIAN = "lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0"


@pytest.fixture
def root(tmp_path):
    """An empty /usr."""
    return tmp_path / "usr"


@pytest.fixture
def install(root):
    """Puts an empty file into /usr."""

    def install(place):
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    return install


def find(setting="auto", **where):
    return blas.find(setting, **{"platform": "linux", **where})


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
def test_auto_finds_openblas_where_distributions_put_it(root, install, place):
    path = install(place)

    assert path == find(root=root)


def test_auto_prefers_the_threaded_build(root, install):
    for place in ("lib64/libopenblas.so.0", "lib/x86_64-linux-gnu/libopenblas.so.0", "lib/libopenblas.so.0"):
        install(place)
    threaded = install(DEBIAN)

    assert threaded == find(root=root)


def test_auto_chooses_the_same_one_of_several_always(root, install):
    install("lib/x86_64-linux-gnu/libopenblas.so.0")
    first = install("lib/aarch64-linux-gnu/libopenblas.so.0")

    assert first == find(root=root)


def test_auto_finds_nothing_where_there_is_nothing(root, install):
    install("lib/x86_64-linux-gnu/libblas.so.3")

    assert find(root=root) is None


def test_auto_without_any_usr_finds_nothing(tmp_path):
    assert find(root=tmp_path / "absent") is None


def test_none_takes_nothing_even_where_there_is_something(root, install):
    install(DEBIAN)

    assert find("none", root=root) is None


def test_other_systems_have_a_fast_one_of_their_own(root, install):
    path = install(DEBIAN)

    assert find("auto", platform="darwin", root=root) is None
    assert find(str(path), platform="darwin", root=root) is None


def test_a_path_is_taken_as_it_is(root, install):
    install(DEBIAN)
    path = install("opt/libmkl.so")

    assert path == find(str(path), root=root)


def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "libmine.so").touch()

    assert tmp_path / "libmine.so" == find("~/libmine.so")


@pytest.mark.parametrize("name", ["absent.so", "folder"])
def test_a_path_that_is_no_file_is_an_error_in_the_config(tmp_path, name):
    (tmp_path / "folder").mkdir()

    with pytest.raises(ConfigError, match=name) as caught:
        find(str(tmp_path / name))

    assert caught.value.param == "worker.blas"
