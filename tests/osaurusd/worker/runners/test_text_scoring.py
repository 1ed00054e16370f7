"""Decisions and rankings of a text model agree with direct computations by mlx_lm."""

import math

import mlx.core as mx
import pytest
from mlx_lm.utils import load

from osaurusd.errors import ContextLengthExceeded
from osaurusd.inference.decisions import Option, Question, build_request, probabilities
from osaurusd.inference.request import ChatPrompt, Continuation, Message, ScoringRequest, TextPrompt
from osaurusd.inference.retrieval import RerankRequest, Scores
from osaurusd.rpc import messages
from osaurusd.worker.runners.text import TextRunner
from tests.models import REASONING_MARKERS, make_tiny, rename_tokens
from tests.osaurusd.worker.engine.harness import events_of, run

CONTEXT = 512
QUERY = "What do pandas eat?"
DOCUMENTS = ["Pandas eat bamboo.", "The sun is a star.", "A longer document about nothing in particular. " * 4]


class Direct:
    """mlx_lm's own network and tokenizer."""

    def __init__(self, folder):
        self.network, self.tokenizer = load(str(folder))

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False)

    def logits(self, tokens, candidates):
        last = self.network(mx.array([tokens]))[0, -1].astype(mx.float32)
        return [last[token].item() for token in candidates]


def start(folder):
    frame = messages.Load(path=str(folder), context_length=CONTEXT, prefix_cache_bytes=2**28)
    return TextRunner.load(frame, lambda _: None)


def result(runner, frame):
    """Return the result of a request, which precedes its only other event."""
    scores, _ = events_of(run(runner.engine, runner.prepare(frame)), frame.id)
    return scores


@pytest.fixture(scope="module")
def chat_folder(tiny_folder):
    return tiny_folder


@pytest.fixture(scope="module")
def reranker_folder(smollm_folder, tmp_path_factory):
    """A tiny random Qwen3 whose tokenizer has the special tokens of Qwen3-Reranker."""
    folder = tmp_path_factory.mktemp("Qwen3-Reranker-tiny")
    make_tiny(folder, smollm_folder, model_type="qwen3", head_dim=16, rope_theta=10000.0, seed=3)
    rename_tokens(folder, REASONING_MARKERS)
    return folder


@pytest.fixture(scope="module")
def chat_runner(chat_folder):
    return start(chat_folder)


@pytest.fixture(scope="module")
def reranker(reranker_folder):
    return start(reranker_folder)


def softmax(values):
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / sum(weights) for weight in weights]


def test_probabilities_equal_a_direct_computation_on_the_same_prompt(chat_runner, chat_folder):
    text, asked = "The sky is blue.", Question(text="Which color?", options=[Option(name="red"), Option(name="blue")])
    request = build_request([Message.from_text("user", text)], [asked])
    scores = result(chat_runner, messages.Score(id=1, request=request))
    direct = Direct(chat_folder)
    sums = [0.0, 0.0]
    for order in ([0, 1], [1, 0]):
        names = [asked.options[number].name for number in order]
        question = f"Which color?\n\nOptions:\n- {names[0]}\n- {names[1]}\n\n"
        content = f"{text}\n\n{question}Answer with exactly one of these options and nothing else."
        chat = [{"role": "user", "content": content}]
        prompt = direct.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        head, tail = prompt.split(question)
        tokens = direct.encode(head) + direct.encode(question + tail)
        for number, logit in zip(order, direct.logits(tokens, [direct.encode(name)[0] for name in names]), strict=True):
            sums[number] += logit / 2
    assert probabilities([asked], scores.logprobs)[0] == pytest.approx(softmax(sums), abs=1e-4)


def test_candidates_of_several_tokens_count_up_to_where_they_differ(chat_runner, chat_folder):
    direct, names = Direct(chat_folder), ["one world", "one day", "air"]
    request = ScoringRequest(
        prompt=TextPrompt(text="I live in"), continuations=[Continuation(text=" the city of", candidates=names)]
    )
    (logprobs,) = result(chat_runner, messages.Score(id=2, request=request)).logprobs
    encoded = [direct.encode(name) for name in names]
    assert encoded[0][0] == encoded[1][0] != encoded[2][0]
    prompt = direct.encode("I live in") + direct.encode(" the city of")

    def logprob(tokens, token):
        last = direct.network(mx.array([tokens]))[0, -1].astype(mx.float32)
        return (last[token] - mx.logsumexp(last)).item()

    new = logprob(prompt, encoded[0][0])
    expected = [new + logprob([*prompt, encoded[0][0]], each[1]) for each in encoded[:2]]
    assert logprobs == pytest.approx([*expected, logprob(prompt, encoded[2][0])], abs=1e-3)


def test_ranking_equals_the_computation_in_the_model_card_of_qwen3_reranker(reranker, reranker_folder):
    scores = result(reranker, messages.Rerank(id=1, request=RerankRequest(query=QUERY, documents=DOCUMENTS)))
    direct = Direct(reranker_folder)
    prefix = direct.encode(
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    suffix = direct.encode("<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")
    instruction = "Given a web search query, retrieve relevant passages that answer the query"
    candidates = [direct.encode("no")[0], direct.encode("yes")[0]]
    expected = []
    for document in DOCUMENTS:
        body = f"<Instruct>: {instruction}\n<Query>: {QUERY}\n<Document>: {document}"
        logits = direct.logits([*prefix, *direct.encode(body), *suffix], candidates)
        expected.append(softmax(logits)[1])
    assert scores.values == pytest.approx(expected, abs=1e-5)
    assert scores.truncated == []


def test_other_models_rank_with_their_own_chat_template(chat_runner):
    scores = result(chat_runner, messages.Rerank(id=3, request=RerankRequest(query=QUERY, documents=DOCUMENTS)))
    assert isinstance(scores, Scores)
    assert all(0 < value < 1 for value in scores.values)


def test_the_instruction_changes_the_scores(reranker):
    requests = [RerankRequest(query=QUERY, documents=DOCUMENTS, instruction=text) for text in (None, "Find stars")]
    default, changed = [
        result(reranker, messages.Rerank(id=10 + number, request=request)) for number, request in enumerate(requests)
    ]
    assert default.values != pytest.approx(changed.values, abs=1e-6)


def test_a_document_that_exceeds_the_context_is_rejected_or_cut(reranker):
    documents = ["short", "word " * CONTEXT]
    with pytest.raises(ContextLengthExceeded) as failure:
        reranker.prepare(messages.Rerank(id=20, request=RerankRequest(query=QUERY, documents=documents)))
    assert failure.value.location == ("documents", 1)
    cut = result(
        reranker, messages.Rerank(id=21, request=RerankRequest(query=QUERY, documents=documents, truncate=True))
    )
    assert cut.truncated == [1]
    assert len(cut.values) == 2


def test_a_query_that_exceeds_the_context_is_rejected(reranker):
    request = RerankRequest(query="word " * CONTEXT, documents=["x"], truncate=True)
    with pytest.raises(ContextLengthExceeded) as failure:
        reranker.prepare(messages.Rerank(id=22, request=request))
    assert failure.value.location == ("query",)


def test_a_question_that_exceeds_the_context_is_named(chat_runner):
    continuations = [Continuation(text=text, candidates=["a", "b"]) for text in ("short", "word " * CONTEXT)]
    request = ScoringRequest(prompt=ChatPrompt(messages=[Message.from_text("user", "x")]), continuations=continuations)
    with pytest.raises(ContextLengthExceeded) as failure:
        chat_runner.prepare(messages.Score(id=23, request=request))
    assert failure.value.location == ("continuations", 1)
