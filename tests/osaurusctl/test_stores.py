"""Model folders of other programs, and missing folders: `config discover` and `doctor`."""

import json
import os
import tomllib

import pytest

from osaurusd.wire.admin import Route


@pytest.fixture
def user(tmp_path, monkeypatch):
    """The home directory of a user without any models."""
    path = tmp_path / "user"
    path.mkdir()
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.delenv("OSU_MODELS_DIR", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    return path


def create_model(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()


@pytest.fixture
def lm_studio(user):
    """LM Studio's folder with two MLX models and one in another format."""
    folder = user / ".lmstudio" / "models"
    create_model(folder / "mlx-community" / "One-4bit")
    create_model(folder / "lmstudio-community" / "Zwei-模型")
    (folder / "lmstudio-community" / "gguf").mkdir()
    (folder / "lmstudio-community" / "gguf" / "model.gguf").touch()
    return folder


def roots(home):
    return tomllib.loads((home / "config.toml").read_text())["models"]["roots"]


def discovered(invoke):
    stores = json.loads(invoke("config", "discover", "--json").stdout)
    return [(store["program"], store["path"], store["models"], store["served"]) for store in stores]


def test_nothing_is_found_on_a_new_machine(user, invoke):
    result = invoke("config", "discover")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no models of other programs found" in result.stderr


def test_known_programs_are_found(user, lm_studio, invoke, monkeypatch):
    for folder in (".omlx/models/org/a", "MLXModels/b", ".swama/models/org/c", ".mlxstudio/models/d"):
        create_model(user / folder)
    create_model(user / "elsewhere" / "org" / "e")
    monkeypatch.setenv("OSU_MODELS_DIR", str(user / "elsewhere"))
    (user / ".cache" / "lm-studio" / "models").mkdir(parents=True)
    assert [(program, os.path.relpath(path, user), count) for program, path, count, _ in discovered(invoke)] == [
        ("LM Studio", ".lmstudio/models", 2),
        ("Osaurus", "elsewhere", 1),
        ("oMLX", ".omlx/models", 1),
        ("Osaurus", "MLXModels", 1),
        ("Swama", ".swama/models", 1),
        ("MLX Studio", ".mlxstudio/models", 1),
    ]


def test_folders_that_lm_studio_is_configured_to_use_are_found(user, invoke):
    create_model(user / "disk" / "org" / "a")
    create_model(user / "lms" / "models" / "org" / "b")
    (user / ".lmstudio-home-pointer").write_text(f"{user}/lms\n")
    (user / "lms" / "settings.json").write_text(json.dumps({"downloadsFolder": f"{user}/disk"}))
    assert [path for _, path, _, _ in discovered(invoke)] == [f"{user}/disk", f"{user}/lms/models"]


@pytest.mark.parametrize("settings", ["", "[]", '{"downloadsFolder": 1}', '{"downloadsFolder": "."}', "\x00"])
def test_unusual_settings_of_lm_studio_are_ignored(user, lm_studio, invoke, settings):
    (user / ".lmstudio" / "settings.json").write_text(settings)
    assert [path for _, path, _, _ in discovered(invoke)] == [str(lm_studio)]


def test_yes_adds_the_folders_and_keeps_the_others(user, lm_studio, invoke, home):
    (home / "config.toml").write_text('# mine\n[models]\nroots = ["/mine"]\n')
    before = sorted(lm_studio.rglob("*"))
    result = invoke("config", "discover", "--yes")
    assert result.exit_code == 0, result.stderr
    assert roots(home) == ["/mine", str(lm_studio)]
    assert (home / "config.toml").read_text().startswith("# mine\n")
    assert sorted(lm_studio.rglob("*")) == before
    assert discovered(invoke) == [("LM Studio", str(lm_studio), 2, True)]


def test_running_daemon_is_reloaded(user, lm_studio, daemon, invoke):
    assert invoke("config", "discover", "--yes").exit_code == 0
    assert len(daemon.bodies(Route.RELOAD)) == 1


def test_without_a_terminal_nothing_is_added(user, lm_studio, invoke, home):
    result = invoke("config", "discover")
    assert str(lm_studio) in result.stdout
    assert "config discover --yes" in result.stderr
    assert not (home / "config.toml").exists()


@pytest.mark.parametrize(("answer", "added"), [("y", True), ("n", False), ("", False)])
@pytest.mark.parametrize("command", [("config", "discover"), ("doctor",)])
def test_terminal_asks_before_it_adds_a_folder(user, lm_studio, terminal, home, command, answer, added):
    screen = terminal(*command)
    screen.expect(f"Serve the 2 models of LM Studio in {lm_studio}?")
    screen.type(f"{answer}\n")
    screen.end()
    assert (home / "config.toml").exists() == added
    if added:
        assert roots(home) == [str(lm_studio)]


def test_doctor_mentions_models_of_other_programs(user, lm_studio, invoke):
    lines = invoke("doctor").stdout.splitlines()
    index = next(i for i, line in enumerate(lines) if "2 models of LM Studio" in line)
    assert lines[index].startswith("ok")
    assert "osaurusctl config discover" in lines[index + 1]


def test_doctor_warns_about_a_missing_root_without_a_daemon(user, invoke, home, tmp_path):
    (home / "config.toml").write_text(f'[models]\nroots = ["/missing/模型", "{tmp_path}"]\n')
    checks = json.loads(invoke("doctor", "--json").stdout)["checks"]
    warnings = [check for check in checks if check["name"] == "models"]
    assert [(check["verdict"], check["detail"]) for check in warnings] == [
        ("warning", "/missing/模型 in `models.roots` does not exist")
    ]
