"""The endpoint before peers that die, clients that go away, and more requests than it takes: nobody is told a lie."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from blockswarm.client.api.timing import EndpointTiming
from blockswarm.routing.swarm import BlockRange, ComputeCost
from support.endpoint import NAME, RunningEndpoint, running_endpoint
from support.loop_watchdog import watched_loops
from support.processes import PeerProcess, command, environment, kill_group, peer_processes
from support.swarm_thread import SwarmThread, swarm_thread
from support.waiting import until
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = [pytest.mark.swarm, pytest.mark.timeout(300)]

MODEL = Path(__file__).parents[2] / "scripts" / "demo_model"
PROMPT = "class Reader:"
SLOW = ComputeCost(1e-2, prefill_per_token=1e-3)
"""That of a peer that is used when there is no other one."""
KILLS, ANSWERS = 2, 40
"""A hundred answers were equal as well; more kills take minutes."""
LONGEST_SECONDS = 0.02
"""How long a loop may be kept by one callback."""


@pytest.fixture(scope="module")
def serving() -> Iterator[SwarmThread]:
    torch.set_num_threads(1)
    with swarm_thread(MODEL, "0:4", "4:8") as thread:
        yield thread


@pytest.fixture(scope="module")
def running(serving: SwarmThread) -> Iterator[RunningEndpoint]:
    with running_endpoint(serving, MODEL) as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def alone() -> Any:
    """The greedy continuation of a prompt by the model alone."""
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)

    def continued(prompt: str, new_tokens: int) -> str:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False)
        return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)

    return continued


def stream(running: RunningEndpoint, new_tokens: int, prompt: str = PROMPT, **options: Any) -> Any:
    """An iterator over the chunks of a greedy completion."""
    return iter(
        running.client().completions.create(
            model=NAME, prompt=prompt, max_tokens=new_tokens, temperature=0, stream=True, **options
        )
    )


# --- peers that die ---


def test_a_peer_that_dies_costs_no_token_and_is_told(alone: Any) -> None:
    with swarm_thread(MODEL, "0:4", "4:8") as thread:
        thread.run(thread.swarm.start_peer(BlockRange(4, 8), cost=SLOW))
        dying = thread.swarm.peers[1]
        with running_endpoint(thread, MODEL) as running:
            text, last = "", None
            for index, chunk in enumerate(stream(running, 24)):
                text += chunk.choices[0].text
                last = chunk
                if index == 3:
                    thread.run(dying.kill())
        assert text == alone(PROMPT, 24)
        assert last.choices[0].finish_reason == "length"
        assert last.swarm["repair_count"] > 0
        assert {"kind": "hop-lost", "peer": dying.identity.peer_id} in last.swarm["repairs"]
        assert last.swarm["chain"][1]["peer"] == thread.swarm.peers[2].identity.peer_id


def test_an_answer_that_cannot_go_on_is_never_a_stop() -> None:
    """The only peer of some blocks dies: a stream ends with an error, whole answers with a status."""
    with swarm_thread(MODEL, "0:4", "4:8") as thread, running_endpoint(thread, MODEL, patience_seconds=1) as running:
        answer = stream(running, 300)
        chunks = [next(answer) for _ in range(3)]
        thread.run(thread.swarm.peers[1].kill())
        with pytest.raises(openai.APIError) as failed:
            chunks.extend(answer)
        assert "blocks 4:8" in str(failed.value)
        assert all(chunk.choices[0].finish_reason is None for chunk in chunks)
        for whole in (False, True):
            status, _, body = running.post(
                "/v1/completions", json.dumps({"model": NAME, "prompt": PROMPT, "stream": not whole}).encode()
            )
            assert status == 503
            assert json.loads(body)["error"]["code"] == "no-chain"
            assert b"[DONE]" not in body
        until(lambda: 'blockswarm_endpoint_refused_total{status="503"} 3.0' in running.get("/metrics"))


@pytest.mark.slow
def test_forty_answers_are_those_of_the_model_alone_while_peers_are_killed(tmp_path: Path, alone: Any) -> None:
    """Real processes; one of two replicas is killed (`kill -9`) and started again, over and over."""
    with peer_processes(tmp_path) as processes:
        first = processes.start(MODEL, "--blocks", "0:4").wait_ready()
        data = [tmp_path / "replica-0", tmp_path / "replica-1"]

        def start(index: int) -> PeerProcess:
            return processes.start(MODEL, "--blocks", "4:8", initial=[first.address], data=data[index])

        replicas = [start(0), start(1)]
        for replica in replicas:
            replica.wait_ready()
        settings = tmp_path / "endpoint.toml"
        settings.write_text(
            f'model = "{MODEL}"\ninitial-peers = ["{first.address}", "{replicas[0].address}"]\n'
            f'max-running = 4\npatience = 120\n[[models]]\nname = "{NAME}"\n[[models]]\nname = "other"\n'
        )
        line = command("swarm-client", "serve", "--config", settings, "--port", 0)
        with subprocess.Popen(
            line,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                address = process.stdout.readline().split()[-1]
                with ThreadPoolExecutor(4) as pool, asking(pool, address) as answers:
                    for kill in range(KILLS):
                        replicas[kill % 2].kill()
                        replicas[kill % 2] = start(kill % 2).wait_ready()
                    until(lambda: len(answers) >= ANSWERS, seconds=200.0)
            finally:
                kill_group(process)
    assert {prompt: text for prompt, (text, _) in answers.items()} == {prompt: alone(prompt, 48) for prompt in answers}
    assert sum(repairs for _, repairs in answers.values()) > 0, "some answers were hit"


@contextmanager
def asking(pool: ThreadPoolExecutor, address: str) -> Iterator[dict[str, tuple[str, int]]]:
    """The answers of four clients that ask until the block is over, by prompt: each with its number of repairs."""
    answers: dict[str, tuple[str, int]] = {}
    over = threading.Event()

    def ask(client: int) -> None:
        for index in itertools.count():
            if over.is_set():
                return
            prompt = f"def f{client}_{index}("
            answers[prompt] = streamed(address, prompt, NAME if client % 2 else "other")

    asked = [pool.submit(ask, client) for client in range(4)]
    try:
        yield answers
    finally:
        over.set()
    for clients in asked:
        clients.result()


def streamed(address: str, prompt: str, model: str) -> tuple[str, int]:
    """The text of a greedy stream, and the number of its repairs."""
    client = openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=200)
    chunks = list(client.completions.create(model=model, prompt=prompt, max_tokens=48, temperature=0, stream=True))
    assert chunks[-1].choices[0].finish_reason in ("length", "stop")
    return "".join(chunk.choices[0].text for chunk in chunks), chunks[-1].swarm["repair_count"]


# --- clients that go away ---


@contextmanager
def ended_early(serving: SwarmThread, new_tokens: int) -> Iterator[None]:
    """The answer that is begun inside ends after it, long before the peers have computed `new_tokens`."""
    answered = [peer.parts.counters.steps_answered for peer in serving.swarm.peers]
    yield
    serving.wait_idle()
    for peer, before in zip(serving.swarm.peers, answered, strict=True):
        assert peer.parts.counters.steps_answered - before < new_tokens / 2


def test_a_stream_that_is_left_frees_the_peers_at_once(running: RunningEndpoint, serving: SwarmThread) -> None:
    with ended_early(serving, 900):
        answer = stream(running, 900)
        next(answer)
        answer.close()
    until(lambda: "blockswarm_endpoint_running 0.0" in running.get("/metrics"))


def test_a_whole_answer_that_nobody_waits_for_frees_the_peers(running: RunningEndpoint, serving: SwarmThread) -> None:
    with ended_early(serving, 900):
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps({"model": NAME, "prompt": PROMPT, "max_tokens": 900}))
        until(lambda: any(peer.parts.sessions.sessions for peer in serving.swarm.peers))
        connection.close()


def test_a_client_that_never_reads_is_given_up(serving: SwarmThread) -> None:
    """Within the time-out its place is free for others, long before its answer would have ended."""
    timing = EndpointTiming(send_seconds=0.2)
    with (
        running_endpoint(serving, MODEL, timing=timing, send_buffer_bytes=4096, max_running=1) as running,
        socket.socket() as deaf,
    ):
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect(("127.0.0.1", running.port))
        messages = [{"role": "user", "content": "x"}]
        wish = {"model": NAME, "messages": messages, "max_tokens": 900, "n": 8, "logprobs": True, "top_logprobs": 20}
        body = json.dumps({**wish, "stream": True})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        deaf.sendall((head + body).encode())
        until(lambda: running.endpoint.gate.running == 1)
        until(lambda: running.endpoint.gate.running == 0)
        assert "gen_ai_client_token_usage_count{" not in running.get("/metrics"), "it was not answered to its end"
    serving.wait_idle()


def test_a_body_that_does_not_come_is_given_up(serving: SwarmThread) -> None:
    with (
        running_endpoint(serving, MODEL, timing=EndpointTiming(body_seconds=0.2)) as running,
        socket.create_connection(("127.0.0.1", running.port)) as slow,
    ):
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
        assert b" 408 " in slow.recv(1000)


# --- more than it takes ---


def test_a_full_endpoint_refuses_with_a_time(serving: SwarmThread, alone: Any) -> None:
    with running_endpoint(serving, MODEL, max_running=1, max_queue=1) as running, ThreadPoolExecutor() as pool:
        assert running.complete(prompt=PROMPT, max_tokens=1)[0] == 200  # so that the time of a request is known
        first = stream(running, 900)
        next(first)
        second = pool.submit(running.complete, prompt=PROMPT, max_tokens=4, temperature=0)
        until(lambda: running.endpoint.gate.queued == 1)
        status, headers, body = running.complete(prompt=PROMPT, max_tokens=4)
        assert (status, body["error"]["type"]) == (429, "rate_limit_error")
        assert int(headers["retry-after"]) >= 1
        first.close()
        assert second.result(60)[2]["choices"][0]["text"] == alone(PROMPT, 4)
    serving.wait_idle()


def test_one_address_with_many_requests_delays_the_request_of_another_by_one(serving: SwarmThread, alone: Any) -> None:
    """Without keys, networks take turns; a proxy of this machine names the address that it asks for."""
    ann, bob = {"x-forwarded-for": "192.0.2.1"}, {"x-forwarded-for": "192.0.2.2"}
    with running_endpoint(serving, MODEL, max_running=1) as running, ThreadPoolExecutor() as pool:
        first = stream(running, 900)
        next(first)
        many = [pool.submit(running.complete, ann, prompt=PROMPT, max_tokens=200) for _ in range(3)]
        until(lambda: running.endpoint.gate.queued == 3)
        short = pool.submit(running.complete, bob, prompt=PROMPT, max_tokens=4, temperature=0)
        until(lambda: running.endpoint.gate.queued == 4)
        first.close()
        assert short.result(60)[2]["choices"][0]["text"] == alone(PROMPT, 4)
        assert not many[-1].done(), "two long ones come after it"
        assert [request.result(120)[0] for request in many] == [200] * 3
    serving.wait_idle()


@pytest.mark.long
def test_many_streams_share_the_threads_and_never_keep_the_loop(
    running: RunningEndpoint, serving: SwarmThread, alone: Any
) -> None:
    prompts = [f"def f{index}(" for index in range(24)]

    def answer(prompt: str) -> str:
        return "".join(chunk.choices[0].text for chunk in stream(running, 6, prompt))

    answer(prompts[0])  # what is imported and made on first use
    with watched_loops() as watch, ThreadPoolExecutor(24) as pool:
        texts = [pool.submit(answer, prompt) for prompt in prompts]
        most = 0
        while not all(text.done() for text in texts):
            most = max(most, sum(thread.name == "blockswarm-stream" for thread in threading.enumerate()))
            time.sleep(0.005)
        assert [text.result() for text in texts] == [alone(prompt, 6) for prompt in prompts]
    assert 1 <= most <= 16
    assert watch.callbacks > 100
    assert watch.longest_seconds < LONGEST_SECONDS, watch.longest
    serving.wait_idle()


# --- the program ---


@pytest.mark.long
def test_an_interrupt_ends_the_program_at_once_and_tells_its_clients(serving: SwarmThread) -> None:
    line = command("swarm-client", "serve", MODEL, *serving.initial, "--port", 0, "--name", NAME)
    with (
        ended_early(serving, 900),
        subprocess.Popen(
            line, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]
            client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
            chunks = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=900, stream=True)
            next(iter(chunks))
            process.send_signal(signal.SIGINT)
            began = time.monotonic()
            with pytest.raises(openai.APIError, match="the endpoint stops"):
                list(chunks)
            _, errors = process.communicate(timeout=60)
            seconds = time.monotonic() - began
        finally:
            kill_group(process)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert seconds < 30, "shorter than the other time-outs of an endpoint"


# --- over the wire of a strict server ---


def test_it_is_a_plain_asgi_application(running: RunningEndpoint) -> None:
    """Any server can run it; errors of its own are answers, too."""

    async def ask() -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return int(answer.split()[1]), answer

    status, answer = asyncio.run(ask())
    assert status == 200
    assert b'{"status":"ok"}' in answer
    assert os.fsencode("uvicorn") not in answer
