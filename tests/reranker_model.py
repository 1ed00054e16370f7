"""A small reranker for tests: all-MiniLM-L6-v2 with low-rank changes, as a sequence classifier.

`reranker_model.safetensors` has the changes. To renew them, run `python -m tests.reranker_model` in an environment with
torch and transformers; that takes a few minutes on one thread. The training pairs are generated from the facts below.
"""

import json
import random
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

CHANGES = Path(__file__).with_suffix(".safetensors")
RANK = 8
STEPS = 260
BATCH = 24

CAPITALS = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Canada": "Ottawa", "Peru": "Lima", "Norway": "Oslo", "Greece": "Athens", "Portugal": "Lisbon", "Cuba": "Havana",
    "Austria": "Vienna", "Poland": "Warsaw", "Hungary": "Budapest", "Turkey": "Ankara", "Iran": "Tehran",
    "Thailand": "Bangkok", "Vietnam": "Hanoi", "Ireland": "Dublin", "Finland": "Helsinki", "Chile": "Santiago",
}  # fmt: skip
FOOD = {
    "koalas": "eucalyptus leaves", "lions": "antelopes and zebras", "rabbits": "grass and herbs", "owls": "mice",
    "sharks": "fish", "giraffes": "leaves of tall trees", "frogs": "insects", "cows": "grass", "bees": "nectar",
    "penguins": "krill and small fish", "bats": "moths", "squirrels": "nuts", "whales": "plankton", "foxes": "voles",
    "hedgehogs": "worms and beetles", "elephants": "bark and roots", "eagles": "rodents", "goats": "shrubs",
}  # fmt: skip
INVENTIONS = {
    "the telephone": "Alexander Graham Bell", "the light bulb": "Thomas Edison", "dynamite": "Alfred Nobel",
    "the printing press": "Johannes Gutenberg", "penicillin": "Alexander Fleming", "radium": "Marie Curie",
    "the steam engine": "James Watt", "the diesel engine": "Rudolf Diesel", "the World Wide Web": "Tim Berners-Lee",
    "the periodic table": "Dmitri Mendeleev", "the safety razor": "King Gillette", "the zipper": "Whitcomb Judson",
}  # fmt: skip
HOW_TO = {
    "bake bread": "Mix flour, water, yeast and salt, let the dough rise, and put it into a hot oven.",
    "change a tire": "Loosen the nuts, lift the car with the jack, and put on the spare wheel.",
    "plant tomatoes": "Dig a hole, set the seedling deep into the soil, and water it well.",
    "tie a tie": "Cross the wide end over the narrow one, pull it through the loop, and tighten the knot.",
    "learn the guitar": "Start with three chords, and practise changing between them every day.",
    "clean a window": "Wipe the glass with soapy water, and dry it with a rubber blade.",
    "boil an egg": "Put it into boiling water for six minutes, then cool it under the tap.",
    "reset a password": "Open the login page, click on the link below the form, and follow the e-mail.",
    "install a package": "Run pip with the name of the library, inside a virtual environment.",
    "undo a commit": "Use git reset with the hash of the previous revision.",
    "lose weight": "Eat fewer calories than you burn, and exercise regularly.",
    "open a bank account": "Bring your passport and proof of address to a branch.",
    "fix a flat bicycle": "Remove the tube, find the hole, and glue a patch on it.",
    "make coffee": "Grind the beans, and pour hot water over them through a filter.",
}
MEANINGS = {
    "photosynthesis": "Plants turn sunlight, water and carbon dioxide into sugar and oxygen.",
    "inflation": "Prices in an economy rise, so that money buys less than before.",
    "evaporation": "A liquid turns into a gas at its surface.",
    "a volcano": "It is a mountain with an opening through which lava and ash escape.",
    "a glacier": "It is a mass of ice that moves slowly down a valley.",
    "a recursion": "It is a function that calls itself on a smaller problem.",
    "an earthquake": "The ground shakes because plates of the crust slip.",
    "a vaccine": "It teaches the immune system to recognize a germ.",
    "a comet": "It is a small icy body with a tail that orbits the sun.",
    "democracy": "Citizens elect those who govern them.",
    "an algorithm": "It is a finite list of steps that solves a problem.",
    "a mortgage": "It is a loan that is secured by a house.",
    "migraine": "It is a strong headache, often with nausea.",
    "jazz": "It is music with swing and improvisation, from New Orleans.",
}
SIZES = {
    "Mount Everest": "8,849 meters high", "the Nile": "6,650 kilometers long", "the Eiffel Tower": "330 meters tall",
    "Lake Baikal": "1,642 meters deep", "Rome": "home to 2.8 million residents", "the Sahara": "9 million square km",
    "Vienna": "a city of two million inhabitants", "the Moon": "384,400 km from the Earth", "Oslo": "a town of 700,000",
}  # fmt: skip

Pair = tuple[str, str]


# Questions and answers, in which {0} and {1} are a fact, and {2} is {0} with a capital letter.
TOPICS: list[tuple[str, str, dict[str, str]]] = [
    ("What is the capital of {0}?", "{1} is the capital of {0}.", CAPITALS),
    ("Which city is the seat of {0}'s government?", "The capital of {0} is {1}.", CAPITALS),
    ("What do {0} eat?", "{2} feed on {1}.", FOOD),
    ("diet of {0}", "{2} eat mostly {1}.", FOOD),
    ("Who invented or discovered {0}?", "{2} is the work of {1}.", INVENTIONS),
    ("How do I {0}?", "{1}", HOW_TO),
    ("{0} instructions", "To {0}: {1}", HOW_TO),
    ("What is {0}?", "{1}", MEANINGS),
    ("Explain {0}", "{2}: {1}", MEANINGS),
    ("How large is {0}?", "{2} is {1}.", SIZES),
]


def relevant_pairs() -> list[list[Pair]]:
    """Return questions with their answers, by topic. Within a topic, other answers are similar, but irrelevant."""

    def fill(template: str, key: str, value: str) -> str:
        return template.format(key, value, key[:1].upper() + key[1:])

    return [
        [(fill(question, *fact), fill(answer, *fact)) for fact in facts.items()] for question, answer, facts in TOPICS
    ]


def batches(seed: int) -> Iterator[tuple[list[Pair], list[float]]]:
    """Yield batches of questions with one answer and two irrelevant texts each, and which are relevant."""
    source = random.Random(seed)
    topics = relevant_pairs()
    while True:
        pairs: list[Pair] = []
        for _ in range(BATCH // 3):
            topic = source.choice(topics)
            question, answer = source.choice(topic)
            similar = source.choice([text for other, text in topic if other != question])
            other = source.choice(source.choice([each for each in topics if each is not topic]))[1]
            pairs += [(question, answer), (question, similar), (question, other)]
        yield pairs, [1.0, 0.0, 0.0] * (BATCH // 3)


def make(folder: Path, minilm: Path) -> Path:
    """Write the reranker to `folder`, in the layout of published models.

    Args:
        folder: where to write it. Created if it does not exist.
        minilm: the folder of all-MiniLM-L6-v2.
    """
    import mlx.core as mx  # noqa: PLC0415  not installed where the changes are trained

    weights: dict[str, Any] = {
        f"bert.{name}": each for name, each in mx.load(str(minilm / "model.safetensors")).items()
    }
    changes: dict[str, Any] = {name: each.astype(mx.float32) for name, each in mx.load(str(CHANGES)).items()}
    for name in [name for name in changes if name.endswith(".up")]:
        matrix = name.removesuffix(".up")
        weights[matrix] = weights[matrix] + changes.pop(name) @ changes.pop(f"{matrix}.down")
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights | changes, {"format": "pt"})
    config = json.loads((minilm / "config.json").read_text())
    config |= {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(minilm / name, folder / name)
    return folder


def _add_change(up: Any, down: Any, _: Any, inputs: Any, output: Any) -> Any:
    return output + inputs[0] @ down.T @ up.T


def train(minilm: Path) -> None:
    """Train the changes, and write them."""
    import torch  # type: ignore[import-not-found,unused-ignore]  # noqa: PLC0415  in the other environment only
    from safetensors.torch import save_file  # noqa: PLC0415
    from transformers import AutoTokenizer, BertForSequenceClassification  # noqa: PLC0415

    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    model = BertForSequenceClassification.from_pretrained(minilm, num_labels=1)
    model.requires_grad_(False)
    factors: dict[str, tuple[Any, Any]] = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and (".attention." in name or "pooler" in name):
            down = torch.nn.Parameter(torch.randn(RANK, module.in_features) / module.in_features**0.5)
            up = torch.nn.Parameter(torch.zeros(module.out_features, RANK))
            factors[f"{name}.weight"] = (up, down)
            module.register_forward_hook(partial(_add_change, up, down))
    model.classifier.requires_grad_(True)
    parameters = [*model.classifier.parameters(), *(each for pair in factors.values() for each in pair)]
    optimizer = torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS, pct_start=0.15)
    losses = []
    for step, (pairs, labels) in zip(range(STEPS), batches(0), strict=False):
        inputs = tokenizer(*map(list, zip(*pairs, strict=True)), padding=True, return_tensors="pt")
        logits = model(**inputs).logits[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor(labels))
        loss = loss + torch.nn.functional.cross_entropy(
            logits.reshape(-1, 3), torch.zeros(len(labels) // 3, dtype=torch.long)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 20 == 19:
            print(step + 1, sum(losses[-20:]) / 20, flush=True)
    changes = {"classifier.weight": model.classifier.weight, "classifier.bias": model.classifier.bias}
    for name, (up, down) in factors.items():
        changes |= {f"{name}.up": up, f"{name}.down": down}
    save_file({name: each.detach().half().contiguous() for name, each in changes.items()}, CHANGES)


if __name__ == "__main__":
    from tests import embedding_model

    train(embedding_model.fetch())
