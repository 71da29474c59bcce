"""The endpoint as its users see it, with OpenAI's own package before it and two peers of this process behind it."""

from __future__ import annotations

import http.client
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from blockswarm.client.api.access.keys import add_key
from support.endpoint import NAME, RunningEndpoint, running_endpoint
from support.swarm_thread import SwarmThread, swarm_thread
from support.waiting import until
from transformers import AutoModelForCausalLM, AutoTokenizer

MODEL = Path(__file__).parents[3] / "scripts" / "demo_model"
PROMPT = "class Reader:"
MESSAGES = [{"role": "user", "content": "import os"}]


@pytest.fixture(scope="module")
def serving() -> Iterator[SwarmThread]:
    torch.set_num_threads(1)
    with swarm_thread(MODEL, "0:4", "4:8") as thread:
        yield thread


@pytest.fixture(scope="module")
def running(serving: SwarmThread) -> Iterator[RunningEndpoint]:
    with running_endpoint(serving, MODEL) as endpoint:
        yield endpoint


@pytest.fixture
def client(running: RunningEndpoint, serving: SwarmThread) -> Iterator[openai.OpenAI]:
    yield running.client()
    serving.wait_idle()


@pytest.fixture(scope="module")
def alone() -> Any:
    """The model alone: a prompt's continuation, greedy."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)

    def continued(prompt: str, new_tokens: int) -> str:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False)
        return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)

    return continued


def test_the_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "blockswarm"


@pytest.mark.long
def test_a_completion_is_what_the_model_alone_says(client: openai.OpenAI, alone: Any) -> None:
    told = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=20, temperature=0)
    assert told.choices[0].text == alone(PROMPT, 20)
    assert told.choices[0].finish_reason == "length"
    assert (told.usage.prompt_tokens, told.usage.completion_tokens) == (14, 20)


@pytest.mark.long
def test_a_stream_has_the_same_text_and_its_usage_at_the_end(client: openai.OpenAI, alone: Any) -> None:
    chunks = list(
        client.chat.completions.create(
            model=NAME, messages=MESSAGES, max_tokens=12, temperature=0, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == alone("import os\n", 12)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert (chunks[-1].usage.completion_tokens, chunks[0].usage) == (12, None)
    assert [hop["blocks"] for hop in chunks[-1].swarm["chain"]] == [[0, 4], [4, 8]]
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.long
def test_a_stop_string_is_no_part_of_the_answer(client: openai.OpenAI, alone: Any) -> None:
    whole = alone(PROMPT, 30)
    stop = whole[10:13]
    expected = whole[: whole.index(stop)]
    for stream in (False, True):
        told = client.completions.create(
            model=NAME, prompt=PROMPT, max_tokens=30, temperature=0, stop=[stop], stream=stream
        )
        parts = list(told) if stream else [told]
        assert "".join(part.choices[0].text for part in parts) == expected
        assert parts[-1].choices[0].finish_reason == "stop"


@pytest.mark.long
def test_several_prompts_and_answers_each_have_their_place(client: openai.OpenAI, alone: Any) -> None:
    prompts = [PROMPT, "import re"]
    told = client.completions.create(model=NAME, prompt=prompts, n=2, max_tokens=8, temperature=0, echo=True)
    texts = [choice.text for choice in told.choices]
    assert texts == [prompt + alone(prompt, 8) for prompt in prompts for _ in range(2)]
    assert told.usage.completion_tokens == 32


@pytest.mark.long
def test_a_seed_makes_draws_repeatable_also_among_others(running: RunningEndpoint, client: openai.OpenAI) -> None:
    def drawn(seed: int, stream: bool = False) -> list[str]:
        told = client.chat.completions.create(
            model=NAME, messages=MESSAGES, max_tokens=12, n=2, seed=seed, stream=stream
        )
        if not stream:
            return [choice.message.content for choice in told.choices]
        texts = ["", ""]
        for chunk in told:
            texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
        return texts

    first = drawn(5)
    assert first[0] != first[1]
    assert drawn(5, stream=True) == first != drawn(6)


@pytest.mark.long
def test_probabilities_are_those_of_the_model_alone(client: openai.OpenAI) -> None:
    told = client.chat.completions.create(
        model=NAME, messages=MESSAGES, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    content = told.choices[0].logprobs.content
    assert "".join(token.token for token in content) == told.choices[0].message.content
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    ids = tokenizer("import os\n", return_tensors="pt")["input_ids"]
    for token in content:
        with torch.no_grad():
            logprobs = torch.log_softmax(model(ids).logits[0, -1], -1)
        top = logprobs.topk(3)
        assert token.logprob == pytest.approx(float(top.values[0]), abs=1e-4)
        assert [other.logprob for other in token.top_logprobs] == pytest.approx(top.values.tolist(), abs=1e-4)
        ids = torch.cat([ids, top.indices[None, :1]], dim=1)


@pytest.mark.long
def test_headers_tell_the_chain_and_its_times(running: RunningEndpoint, serving: SwarmThread) -> None:
    status, headers, body = running.complete(prompt=PROMPT, max_tokens=4)
    assert status == 200
    peers = [peer.identity.peer_id for peer in serving.swarm.peers]
    assert headers["x-swarm-chain"] == f"{peers[0]}[0:4],{peers[1]}[4:8]"
    assert (headers["x-swarm-repairs"], headers["x-swarm-precision"]) == ("0", "float32")
    assert {"queue", "first", "total", "hop0-network", "hop1-compute"} <= set(
        re.findall(r"([\w-]+);dur=", headers["server-timing"])
    )
    assert body["swarm"]["steps"] == 4
    assert headers["x-swarm-trips"] == "4", "on this machine nothing is guessed"
    assert body["swarm"]["guesses"]["trips"] == 4


@pytest.mark.long
def test_metrics_count_requests_tokens_and_times(running: RunningEndpoint) -> None:
    def tokens() -> float:
        found = re.search(
            r'^gen_ai_client_token_usage_sum\{.*"text_completion".*token_type="output"\} (\S+)',
            running.get("/metrics"),
            re.MULTILINE,
        )
        return float(found[1]) if found else 0.0

    before = tokens()
    assert running.complete(prompt=PROMPT, max_tokens=3)[0] == 200
    until(lambda: tokens() != before)
    assert tokens() == before + 3
    scraped = running.get("/metrics")
    for name in ("gen_ai_server_time_to_first_token_seconds", "gen_ai_server_time_per_output_token_seconds"):
        assert f'{name}_count{{gen_ai_operation_name="text_completion",gen_ai_request_model="{NAME}"}}' in scraped
    until(lambda: "blockswarm_endpoint_running 0.0" in running.get("/metrics"))


@pytest.mark.long
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_json_and_nothing_else(client: openai.OpenAI, stream: bool) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": {**schema, "additionalProperties": False}}}
    told = client.chat.completions.create(model=NAME, messages=MESSAGES, response_format=form, stream=stream)
    choices = [chunk.choices[0] for chunk in told] if stream else [told.choices[0]]
    text = "".join((choice.delta if stream else choice.message).content or "" for choice in choices)
    assert json.loads(text)["ok"] in (True, False)
    assert choices[-1].finish_reason == "stop"


# --- what is refused ---


@pytest.mark.parametrize(
    ("fields", "status", "param", "code"),
    [
        ({"model": "other"}, 404, "model", "model_not_found"),
        ({"temperature": 3}, 400, "temperature", "invalid_value"),
        ({"prompt": [100_000]}, 400, "prompt", None),
        ({"logit_bias": {"100000": 1}}, 400, "logit_bias", None),
        ({"max_tokens": 1020}, 400, "max_tokens", "context_length_exceeded"),
        ({"prompt": "x" * 1500}, 400, "prompt", "context_length_exceeded"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_what_is_impossible_has_openais_shape_and_names_the_field(
    running: RunningEndpoint, fields: dict[str, Any], status: int, param: str, code: str | None, stream: bool
) -> None:
    """Also in a stream: its head waits for the first piece."""
    told = running.complete(**{"prompt": PROMPT, "stream": stream} | fields)
    assert told[0] == status
    assert (told[2]["error"]["param"], told[2]["error"]["code"]) == (param, code)


def test_another_models_name_is_answered_with_those_that_are_served(running: RunningEndpoint) -> None:
    told = running.complete(prompt=PROMPT, model="other")[2]["error"]["message"]
    assert "'other' is not served here" in told
    assert f"'{NAME}'" in told


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"", 400), (b"{", 400), (b"[]", 400), (b"\xff", 400), (b'{"a": "' + b"x" * (1 << 20) + b'"}', 413)],
    ids=["empty", "cut", "no object", "no UTF-8", "huge"],
)
def test_bodies_that_are_no_request(running: RunningEndpoint, body: bytes, status: int) -> None:
    told = running.post("/v1/chat/completions", body)
    assert told[0] == status
    assert json.loads(told[2])["error"]["type"] == "invalid_request_error"


def test_paths_and_methods_that_there_are_not(running: RunningEndpoint) -> None:
    assert running.post("/v1/audio/speech", b"{}")[0] == 404
    status, headers, body = running.post("/v1/models", b"{}")
    assert (status, set(headers["allow"].split(", "))) == (405, {"GET", "HEAD"})
    assert "error" in json.loads(body)


def test_a_slash_behind_a_path_changes_nothing(running: RunningEndpoint) -> None:
    for path in ("/v1/models", f"/v1/models/{NAME}", "/healthz"):
        assert running.get(f"{path}/") == running.get(path)
    for path in ("/v1/completions/", "/v1/chat/completions/"):
        status, _, body = running.post(path, b"{}")
        assert (status, json.loads(body)["error"]["param"]) == (400, "model" if "chat" not in path else "messages")


@pytest.mark.parametrize("path", ["/", "/chat.css", "/chat.js"])
def test_files_of_the_page_are_not_sent_again(running: RunningEndpoint, path: str) -> None:
    status, headers, body = fetched(running, path)
    assert (status, headers["cache-control"]) == (200, "no-cache")
    again = fetched(running, path, {"if-none-match": headers["etag"]})
    assert (again[0], again[1]["etag"], again[2]) == (304, headers["etag"], b"")
    assert again[1]["content-security-policy"] == headers["content-security-policy"]
    assert fetched(running, path, {"if-none-match": '"older"'}) == (200, headers | again[1], body)


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/v1/models", f"/v1/models/{NAME}", "/v1/models/none", "/x"])
def test_answers_about_now_are_not_kept_by_caches(running: RunningEndpoint, path: str) -> None:
    assert fetched(running, path)[1]["cache-control"] == "no-store"


def fetched(
    running: RunningEndpoint, path: str, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers without their moment, and body."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
    try:
        connection.request("GET", path, headers=headers or {})
        answer = connection.getresponse()
        named = {name.lower(): value for name, value in answer.getheaders() if name.lower() != "date"}
        return answer.status, named, answer.read()
    finally:
        connection.close()


def test_the_official_client_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=NAME, messages=[{"role": "robot", "content": "x"}])
    assert refused.value.param == "messages[0].role"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="other", prompt="x")


# --- access ---


@pytest.mark.long
def test_keys_and_their_budgets(serving: SwarmThread, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    key = add_key(file, "ann", None, 30, "secret")
    with running_endpoint(serving, MODEL, keys=file) as running:
        with pytest.raises(openai.AuthenticationError) as refused:
            running.client(api_key="wrong").models.list()
        assert refused.value.code == "invalid_api_key"
        assert running.complete(prompt=PROMPT, max_tokens=1)[0] == 401
        client = running.client(api_key=key)
        assert client.completions.create(model=NAME, prompt=PROMPT, max_tokens=10).usage.total_tokens == 24
        client.completions.create(model=NAME, prompt=PROMPT, max_tokens=10)  # the last one may overdraw
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(model=NAME, prompt=PROMPT, max_tokens=1)
        assert refused.value.code == "insufficient_quota"
        assert int(refused.value.response.headers["retry-after"]) > 1
        assert "ok" in running.get("/healthz")


def test_pages_of_other_origins_may_not_ask_unless_they_are_allowed(running: RunningEndpoint, serving: Any) -> None:
    foreign = {"origin": "http://evil.example"}
    status, headers, body = running.complete(foreign, prompt=PROMPT, max_tokens=1)
    assert (status, body["error"]["code"]) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in headers
    assert running.complete({"host": "evil.example"}, prompt=PROMPT, max_tokens=1)[0] == 403
    with running_endpoint(serving, MODEL, allowed_origins=("http://app.example",)) as allowing:
        status, headers, _ = allowing.complete({"origin": "http://app.example"}, prompt=PROMPT, max_tokens=1)
        assert (status, headers["access-control-allow-origin"]) == (200, "http://app.example")
        assert headers["access-control-expose-headers"] == "*", "Retry-After, x-swarm-chain and the like"
        assert allowing.complete(foreign, prompt=PROMPT, max_tokens=1)[0] == 403


def test_a_browser_that_asks_first_is_told_that_a_page_of_the_internet_may_ask_this_machine(serving: Any) -> None:
    """Browsers ask so before a page that is not of this machine or network may reach it."""
    asked = {
        "origin": "https://app.example", "access-control-request-method": "POST",
        "access-control-request-headers": "authorization", "access-control-request-private-network": "true",
    }  # fmt: skip
    with running_endpoint(serving, MODEL, allowed_origins=("https://app.example",)) as allowing:
        request = urllib.request.Request(f"{allowing.root}/v1/chat/completions", headers=asked, method="OPTIONS")
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.headers["access-control-allow-origin"] == "https://app.example"
            assert answer.headers["access-control-allow-private-network"] == "true"
