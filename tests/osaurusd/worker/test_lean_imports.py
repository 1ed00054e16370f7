"""Workers start without reading the sources of all models that transformers contains."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

COUNT_MODEL_SOURCES = """
import sys
opened = set()
def hook(event, arguments):
    if event == "open" and "transformers/models/" in str(arguments[0]) and str(arguments[0]).endswith(".py"):
        opened.add(arguments[0])
sys.addaudithook(hook)
import osaurusd.worker.lean_imports, osaurusd.worker.session
"""


def run(code, *arguments):
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, timeout=240)


def test_a_worker_loads_a_tokenizer_without_unused_parts_of_libraries(tiny_folder):
    """The sources of all models, the client of the hub, and what images need. Fails if a library imports more."""
    run(
        COUNT_MODEL_SOURCES + "unused = {'mlx_vlm', 'PIL', 'osaurusd.worker.frontend.images'}\n"
        "unused |= {'huggingface_hub.utils', 'huggingface_hub.hf_api', 'httpx2', 'yaml'}\n"
        "from mlx_lm.utils import load_tokenizer\nassert load_tokenizer(sys.argv[1]).encode('Hello')\n"
        "assert len(opened) < 100, len(opened)\n"
        "assert not unused & sys.modules.keys(), unused & sys.modules.keys()",
        tiny_folder,
    )


def test_the_client_of_the_hub_is_imported_when_it_is_used():
    run(
        "import osaurusd.worker.lean_imports\n"
        "from transformers.utils import hub\n"
        "assert hub.hf_hub_url('a/b', 'c').endswith('/a/b/resolve/main/c')\n"
        "import huggingface_hub\n"
        "assert isinstance(hub.HfApi(), huggingface_hub.HfApi) and isinstance(huggingface_hub.HfApi(), hub.HfApi)\n"
        "assert hub.REGEX_COMMIT_HASH.match('0' * 40) and not hub.is_offline_mode()"
    )


def test_pillow_is_imported_when_it_is_used():
    pytest.importorskip("PIL", reason="Pillow is not installed")
    run(
        "import sys, osaurusd.worker.lean_imports\n"
        "from transformers import image_utils\n"
        "assert 'PIL' not in sys.modules\n"
        "assert 3 == image_utils.PILImageResampling.BICUBIC\n"
        "from PIL import Image\n"
        "image = Image.new('RGB', (4, 4))\n"
        "assert isinstance(image, image_utils.PIL.Image.Image) and image_utils.load_image(image).size == (4, 4)"
    )


def test_other_classes_of_transformers_can_be_imported_and_its_files_found():
    run(
        "import osaurusd.worker.lean_imports, transformers\n"
        "from importlib.util import find_spec\n"
        "assert find_spec('transformers').origin.endswith('transformers/__init__.py')\n"
        "from transformers.models.llama import LlamaConfig\n"
        "from transformers.models import llama\n"
        "from transformers import GenerationConfig\n"
        "assert transformers.LlamaConfig is llama.LlamaConfig is LlamaConfig\n"
        "assert transformers.AutoTokenizer.__module__ == 'transformers.models.auto.tokenization_auto'"
    )


def test_another_version_of_transformers_is_imported_as_a_whole():
    """Hide a module, as if that version did not have it."""
    run("import sys; sys.modules['transformers.tokenization_python'] = None\n"
        "import osaurusd.worker.lean_imports; assert 'transformers' not in sys.modules\n"
        "import osaurusd.worker.session, transformers; assert transformers.PreTrainedTokenizer")  # fmt: skip


@pytest.mark.skipif(find_spec("mlx_vlm") is None, reason="mlx-vlm is not installed")
def test_a_worker_of_vision_models_imports_only_the_model_code_of_mlx_vlm():
    run(
        "import sys, osaurusd.worker.lean_imports, osaurusd.worker.session\n"
        "from osaurusd.worker.runners.vision import runner, network\n"
        "network.import_model('smolvlm', '.processing_{}')\n"
        "heavy = {'torch', 'cv2', 'fastapi', 'datasets', 'mlx_audio', 'mlx_vlm.generate', 'mlx_vlm.server'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()"
    )
