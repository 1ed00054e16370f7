"""A runner in this process, which tests step by hand."""

import json
import shutil
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from osaurusd.inference.request import TextPrompt, TokenPrompt
from osaurusd.inference.retrieval import EmbedRequest
from osaurusd.models import embedding
from osaurusd.rpc import framing, messages
from osaurusd.worker.runners.embedding import bert
from osaurusd.worker.runners.embedding.runner import EmbeddingRunner

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@dataclass
class Embedder:
    """Sends requests to a runner, and steps its engine."""

    runner: EmbeddingRunner
    passes: int = 0
    frames: list = field(default_factory=list)

    def submit(self, id_, *inputs, **options):
        """Tokenize and queue a request."""
        prompts = [TextPrompt(text=each) if isinstance(each, str) else TokenPrompt(tokens=each) for each in inputs]
        frame = messages.Embed(id=id_, request=EmbedRequest(inputs=prompts, **options))
        self.frames += self.runner.engine.add(self.runner.prepare(frame))

    def run(self):
        """Step the engine until it is idle; return the events of each request."""
        while self.runner.engine.busy:
            self.frames += self.runner.engine.prefill()
            self.passes += 1
        events = {}
        for frame in self.frames:
            blobs = ()
            if isinstance(frame, framing.FrameWithBlobs):
                frame, blobs = frame.frame, frame.blobs
            events.setdefault(frame.id, []).append((frame.event, *blobs))
        self.frames.clear()
        return events

    def embed(self, *inputs, **options):
        """Return the vectors of inputs."""
        self.submit(1, *inputs, **options)
        (vectors, data), (_completed,) = self.run()[1]
        return np.frombuffer(data, dtype="<f4").reshape(-1, vectors.dimensions)


def load(folder):
    """Load a runner from a model's folder."""
    config = json.loads((folder / "config.json").read_text())
    frame = messages.Load(path=str(folder), task="embed", pipeline=embedding.read_pipeline(folder, config))
    return Embedder(EmbeddingRunner.load(frame, lambda _: None))


def make_tiny_bert(folder, minilm):
    """Create a model with the tokenizer and the modules of all-MiniLM-L6-v2, but a tiny random network."""
    shutil.copytree(minilm, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    config = {**json.loads((minilm / "config.json").read_text()), **SIZES}
    (folder / "config.json").write_text(json.dumps(config))
    mx.random.seed(0)
    network = bert.Model(bert.ModelArgs.from_dict(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(network.parameters())))
    return folder


@pytest.fixture(scope="session")
def tiny_folder(minilm_folder, tmp_path_factory):
    return make_tiny_bert(tmp_path_factory.mktemp("embedder") / "tiny", minilm_folder)


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    embedder = load(tiny_folder)
    yield embedder
    embedder.runner.close()
