"""A runner in this process, which tests step by hand."""

import json
from dataclasses import dataclass, field

import numpy as np
import pytest

from osaurusd.inference.request import TextPrompt, TokenPrompt
from osaurusd.inference.retrieval import EmbedRequest
from osaurusd.models import embedding
from osaurusd.rpc import framing, messages
from osaurusd.worker.runners.embedding.runner import EmbeddingRunner


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


@pytest.fixture(scope="module")
def minilm(minilm_folder):
    return load(minilm_folder)
