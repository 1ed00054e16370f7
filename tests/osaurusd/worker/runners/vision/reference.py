"""What mlx_vlm itself generates."""

import importlib
from pathlib import Path

import mlx.core as mx
import numpy as np

OTHERS = ("ImageProcessor", "VideoProcessor")
TEXT_INPUTS = ("input_ids", "pixel_values", "attention_mask")


class Reference:
    """mlx_vlm's own loading, preprocessing and generation for a model folder."""

    def __init__(self, folder: Path, family: str):
        # Imports all of transformers, which takes a second in each process that collects tests.
        self.model = importlib.import_module("mlx_vlm.utils").load_model(folder)
        module = importlib.import_module(f"mlx_vlm.models.{family}.processing_{family}")
        names = [name for name in vars(module) if name.endswith("Processor") and not name.endswith(OTHERS)]
        self.processor = getattr(module, names[0]).from_pretrained(str(folder))
        self.family = family

    def generate(self, chat, count):
        """Return the greedy continuation of a chat."""
        return self._generate(self._encode(chat), count)

    def _encode(self, chat):
        turns, _ = chat
        images = [part for _, content in turns for part in content if not isinstance(part, str)]
        rendered = self.processor.tokenizer.apply_chat_template(
            [{"role": role, "content": [_part(part) for part in content]} for role, content in turns],
            tokenize=False,
            add_generation_prompt=True,
        )
        if not images:
            return {"input_ids": mx.array(self.processor.tokenizer.encode(rendered, add_special_tokens=False))[None]}
        inputs = self.processor(images=images, text=[rendered])
        return {name: mx.array(np.asarray(value)) for name, value in inputs.items()}

    def shortfalls(self, chat, tokens):
        """Return how much less likely than the most likely token each token of an answer is, and the deviation of all.

        Both are differences of logits.
        """
        inputs = self._encode(chat)
        ids, pixels, _ = (inputs.pop(name, None) for name in TEXT_INPUTS)
        ids = mx.concatenate([ids, mx.array([tokens], ids.dtype)], axis=1)
        logits = self.model(ids, pixels, None, **inputs).logits
        logits = logits[0, -1 - len(tokens) : -1].astype(mx.float32)
        chosen = mx.take_along_axis(logits, mx.array(tokens)[:, None], axis=1)[:, 0]
        return mx.max(logits, axis=1) - chosen, float(mx.mean(mx.std(logits, axis=1)))

    def _generate(self, inputs, count):
        ids, pixels, mask = (inputs.pop(name, None) for name in TEXT_INPUTS)
        if self.family == "gemma3" and pixels is not None:
            return self._generate_bidirectional(ids, pixels, mask, count)
        steps = importlib.import_module("mlx_vlm.generate.ar").generate_step(
            ids, self.model, pixels, mask, max_tokens=count, temperature=0.0, **inputs
        )
        return [int(token) for token, _ in steps]

    def _generate_bidirectional(self, ids, pixels, mask, count):
        """Generate with the mask of transformers: mlx_vlm's generation uses a causal one for images, too."""
        model = self.model.language_model
        embeddings = self.model.get_input_embeddings(ids, pixels, mask=mask).inputs_embeds
        is_image = np.array(ids[0] == self.model.config.image_token_index)
        group = np.cumsum(is_image & ~np.roll(is_image, 1)) * is_image
        causal = np.tril(np.ones((len(group), len(group)), bool))
        together = (group[:, None] == group[None]) & is_image[None]
        cache = importlib.import_module("mlx_vlm.models.cache").make_prompt_cache(model)
        logits = model(ids, inputs_embeds=embeddings, mask=mx.array(causal | together), cache=cache).logits
        tokens = [int(mx.argmax(logits[0, -1]))]
        while len(tokens) < count:
            logits = model(mx.array([tokens[-1:]]), cache=cache).logits
            tokens.append(int(mx.argmax(logits[0, -1])))
        return tokens


def _part(part):
    return {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
