"""The command line of the client: what a user sees, with a swarm of this process behind it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from blockswarm.client.api.access.keys import read_keys
from blockswarm.client.program import talk
from blockswarm.client.program.account import account_for, step_counts
from blockswarm.client.program.cli import app
from blockswarm.client.program.edge import reported_errors
from blockswarm.client.program.options import GenerateOptions, SwarmOptions
from blockswarm.client.program.render import account_as_json, chain_as_json, describe_chain
from blockswarm.client.program.terminal import Spinner, block_map, harmless, table
from blockswarm.client.survey.survey import PredictedChain
from blockswarm.proto.directory.swarm_key import SwarmKey
from blockswarm.proto.identity import Identity
from blockswarm.proto.network.address import PeerAddress
from blockswarm.routing.swarm import BlockRange
from support.processes import command, environment, kill_group, peer_processes, run_program
from support.swarm_thread import SwarmThread, swarm_thread
from support.tiny_models import write_tiny_checkpoint
from support.tokenizers import byte_tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

PROMPT = "def hello():"
DEMO_MODEL = Path(__file__).parents[3] / "scripts" / "demo_model"
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_tiny_checkpoint("llama", tmp_path_factory.mktemp("models") / "small-llama")
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def full_model(folder: Path) -> Any:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def serving(folder: Path) -> Iterator[SwarmThread]:
    with swarm_thread(folder, "0:3", "3:6") as thread:
        yield thread


def run(*arguments: object, text: str = "") -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=text)


def check_refused(result: Any, code: int, *words: str) -> None:
    """One line that says what is wrong, one that says what to do, and nothing else."""
    assert result.exit_code == code, (result.output, result.exception)
    lines = result.stderr.splitlines()
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith("swarm-client: ")
    assert lines[1].startswith("  ")
    assert lines[1].strip()
    for word in words:
        assert word in result.stderr
    assert result.stdout == ""


def expected(full_model: Any, folder: Path, prompt: str, new_tokens: int, **kwargs: Any) -> str:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = full_model.generate(
        inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=new_tokens, do_sample=False,
        **kwargs,
    )  # fmt: skip
    return tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


# --- generate ---


@pytest.mark.long
@pytest.mark.parametrize("more", [{}, {"num_beams": 3}, {"prompt_lookup_num_tokens": 4}], ids=str)
def test_generate_writes_what_the_model_alone_says(
    serving: SwarmThread, full_model: Any, folder: Path, more: dict[str, int]
) -> None:
    names = {"num_beams": "--num-beams", "prompt_lookup_num_tokens": "--prompt-lookup"}
    options = [part for name, value in more.items() for part in (names[name], value)]
    result = run("generate", folder, *serving.initial, "-p", PROMPT, "-n", 20, *options)
    assert result.exit_code == 0, result.output
    assert result.stdout == expected(full_model, folder, PROMPT, 20, **more) + "\n"
    assert result.stderr == ""
    serving.wait_idle()


@pytest.mark.long
@pytest.mark.parametrize("push", [True, False], ids=["push", "hub"])
def test_json_and_report_tell_the_chain_and_how_steps_were_passed_on(
    serving: SwarmThread, full_model: Any, folder: Path, push: bool
) -> None:
    options = [] if push else ["--no-push"]
    result = run("generate", folder, *serving.initial, "-n", 8, "--json", "--report", *options, text=PROMPT)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["text"] == expected(full_model, folder, PROMPT, 8)
    assert told["new_tokens"] == len(told["token_ids"]) == 8
    assert [hop["blocks"] for hop in told["chain"]] == [[0, 3], [3, 6]]
    assert all(hop["compute_seconds"] > 0 for hop in told["chain"])
    assert (told["steps_pushed"], told["steps_relayed"]) == ((8, 0) if push else (0, 8))
    assert (told["exact"], told["unproven_seconds"], told["interrupted"]) == (True, 0, False)
    assert 0 < told["first_token_seconds"] <= told["seconds"]
    assert "tokens/s" in result.stderr
    assert "no repairs" in result.stderr
    assert (told["guesses"]["trips"], told["guesses"]["guessed"]) == (8, 0), "on this machine nothing is guessed"
    assert "8 trips along the chain, 1.0 tokens per trip; nothing was guessed (--guess auto)" in result.stderr


@pytest.mark.long
def test_the_speed_of_beams_is_that_of_the_whole_search(serving: SwarmThread, folder: Path) -> None:
    """Their tokens come together; that of all but the first, in the time that was left, was any number."""
    result = run("generate", folder, *serving.initial, "-p", PROMPT, "-n", 8, "--num-beams", 2, "--json")
    told = json.loads(result.stdout)
    assert told["first_token_seconds"] == told["seconds"]
    assert told["tokens_per_second"] == pytest.approx(told["new_tokens"] / told["seconds"])
    serving.wait_idle()


@pytest.mark.long
def test_guesses_are_told_and_change_no_word(serving: SwarmThread, full_model: Any, folder: Path) -> None:
    """The model is its own draft model, so all that it guesses comes."""
    text = f"{PROMPT} {PROMPT} {PROMPT}"
    options = ("--guess", 4, "--draft", folder, "--json", "--report")
    result = run("generate", folder, *serving.initial, "-n", 24, *options, text=text)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    guesses = told["guesses"]
    assert told["text"] == expected(full_model, folder, text, 24)
    assert guesses["trips"] < 24
    assert guesses["tokens_per_trip"] == 24 / guesses["trips"]
    assert {each["name"] for each in guesses["drafters"]} <= {"suffix", "draft"}
    for each in guesses["drafters"]:
        assert f"{each['name']} guessed {each['guessed']} token" in result.stderr
    assert f"{guesses['trips']} trips along the chain" in result.stderr


@pytest.mark.long
def test_drawing_is_repeatable_with_a_seed(serving: SwarmThread, folder: Path) -> None:
    texts = [
        run("generate", folder, *serving.initial, "-p", PROMPT, "-n", 12, "--temperature", 2, "--seed", seed).stdout
        for seed in (5, 5, 6)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_generate_stops_at_a_given_text(serving: SwarmThread, full_model: Any, folder: Path) -> None:
    whole = expected(full_model, folder, PROMPT, 20)
    stop = next(letter for letter in whole[3:] if letter.isascii())
    result = run("generate", folder, *serving.initial, "-p", PROMPT, "-n", 20, "--stop", stop)
    assert result.stdout == whole[: whole.index(stop) + len(stop)] + "\n"


@contextmanager
def generating(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The program, as the foreground job of a terminal of its own."""
    with subprocess.Popen(
        command("swarm-client", "generate", *arguments), env=environment(), start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            kill_group(process)


def interrupted(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Press Ctrl-C; what it still writes until its end."""
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    return output, errors


@pytest.mark.swarm
def test_an_interrupt_ends_the_program_and_its_sessions(serving: SwarmThread, folder: Path) -> None:
    """In a process of its own: the peers must notice, too. The line ends, as that of a whole text does."""
    serving.wait_idle()  # it waits for no room of earlier tests, and says nothing of that
    with generating(folder, *serving.initial, "-p", PROMPT, "-n", 400) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        output, errors = interrupted(process)
    assert output.endswith("\n")
    assert errors == ""
    serving.wait_idle()


@pytest.mark.swarm
def test_an_interrupt_while_a_step_is_pending_reports_what_was_reached(tmp_path: Path) -> None:
    """The peer stands still, so neither the step nor the session's end is ever answered."""
    with peer_processes(tmp_path) as processes:
        peer = processes.start(DEMO_MODEL, "--blocks", "0:8").wait_ready()
        asked = ("--initial-peers", peer.address, "-p", PROMPT)
        with generating(DEMO_MODEL, *asked, "-n", 3000, "--report") as process:
            assert process.stdout is not None
            begun = os.read(process.stdout.fileno(), 100).decode()
            peer.process.send_signal(signal.SIGSTOP)
            while select.select([process.stdout], [], [], 0.5)[0]:  # what was under way
                begun += os.read(process.stdout.fileno(), 100).decode()
            output, errors = interrupted(process)
        assert begun
        assert output.endswith("\n")
        count, speed = re.match(r"interrupted: (\d+) tokens in [\d.]+ s: ([\d.]+) tokens/s", errors).groups()
        assert (int(count), float(speed)) > (0, 0.0)
        assert peer.address.peer[-6:] in errors
        peer.process.send_signal(signal.SIGCONT)
        whole = json.loads(run_program("swarm-client", "generate", DEMO_MODEL, *asked, "-n", count, "--json").stdout)
        assert begun + output == whole["text"] + "\n"
        assert (whole["interrupted"], whole["error"]) == (False, None)
        sessions = [1]
        while sessions != [0]:  # the test's time-out bounds this
            told = json.loads(run_program("swarm-client", "ping", peer.address, "--json").stdout)
            sessions = [each["sessions"] for each in told]


@pytest.mark.parametrize("piece", [1, 5])
def test_an_interrupted_text_is_told_as_json(serving: SwarmThread, full_model: Any, folder: Path, piece: int) -> None:
    """With `piece` pieces written; also the token of which the interrupt came before all was written."""
    options = SwarmOptions(initial_peers=(serving.swarm.peers[0].address,))
    written: list[str] = []

    def write(text: str) -> None:
        written.append(text)
        if len(written) == piece:
            raise KeyboardInterrupt

    with talk.open_talker(str(folder), options, Spinner(), pytest.fail) as talker:
        before = step_counts(talker.swarm)
        with pytest.raises(talk.Interrupted) as stopped:
            talk.generate(talker, PROMPT, GenerateOptions(40), write)
        told = account_as_json(account_for(talker, stopped.value.reply, before))
    tokens = told["token_ids"]
    assert told["interrupted"] is True
    assert told["error"]["code"] == "interrupted"
    assert told["new_tokens"] == len(tokens) >= piece
    assert told["text"] == "".join(written) == talker.tokenizer.decode(tokens, skip_special_tokens=True)
    assert told["text"] == expected(full_model, folder, PROMPT, len(tokens))
    assert [hop["blocks"] for hop in told["chain"]] == [[0, 3], [3, 6]]
    serving.wait_idle()


@pytest.mark.swarm
@pytest.mark.parametrize("options", [[], ["--report"], ["--json"]], ids="".join)
def test_a_text_that_fails_is_told_as_far_as_it_came(full_model: Any, folder: Path, options: list[str]) -> None:
    """It says that it waits for a peer, stands still for as long as its patience, and is never told as whole."""
    with swarm_thread(folder, "0:3", "3:6") as thread:
        last = thread.swarm.peers[1]
        wish = ("-p", PROMPT, "-n", 2000, "--patience", 2)
        with generating(folder, *thread.initial, *wish, *options) as process:
            while last.parts.counters.steps_answered < 40:  # the test's time-out bounds this
                time.sleep(0.01)
            thread.run(last.kill())
            output, errors = process.communicate(timeout=180)
    waiting, *report, failed, hint = errors.splitlines()
    assert waiting.startswith("no peer serves blocks 3:6; waiting up to ")
    assert failed == "swarm-client: no peer serves blocks 3:6"
    assert hint
    assert process.returncode == 1
    text = output.removesuffix("\n")
    if options == ["--report"]:
        assert report[0].startswith("failed: ")
        assert int(report[0].split()[1]) >= 30
        assert any(last.identity.peer_id[-6:] in line for line in report)
    elif options == ["--json"]:
        told = json.loads(output)
        assert told["interrupted"] is False
        assert told["error"] == {
            "code": "no-chain", "message": "no peer serves blocks 3:6",
            "hint": "Start a peer for the missing blocks, or wait until one joins.",
        }  # fmt: skip
        assert told["new_tokens"] == len(told["token_ids"]) >= 30
        assert [hop["blocks"] for hop in told["chain"]] == [[0, 3], [3, 6]]
        text = told["text"]
    text = text.rstrip("\N{REPLACEMENT CHARACTER}")  # a character of which only some bytes came
    assert len(text) >= 10
    assert text == expected(full_model, folder, PROMPT, 500)[: len(text)]


def test_a_whole_text_is_told_although_all_peers_are_gone(folder: Path) -> None:
    with swarm_thread(folder, "0:6") as thread:
        options = SwarmOptions(initial_peers=(thread.swarm.peers[0].address,))
        with talk.open_talker(str(folder), options, Spinner(), lambda _: None) as talker:
            before = step_counts(talker.swarm)
            reply = talk.generate(talker, PROMPT, GenerateOptions(4), lambda _: None)
            thread.run(thread.swarm.peers[0].kill())
            told = account_as_json(account_for(talker, reply, before))
    assert (told["error"], told["new_tokens"]) == (None, 4)


def test_a_chat_from_a_script_in_which_an_answer_failed_has_not_gone_well(folder: Path) -> None:
    """It goes on, reports on what there is, and its end tells."""
    with swarm_thread(folder, "0:3", "3:6") as thread:
        thread.run(thread.swarm.peers[1].kill())
        asked = ("chat", folder, *thread.initial, "--patience", 0, "--report")
        result = run(*asked, text="one\ntwo\n")
    assert result.exit_code == 1
    assert result.stderr.count("no peer serves blocks 3:6") == 2
    assert result.stderr.count("failed: 0 tokens") == 2
    assert result.stdout == "\n\n"


# --- chat ---


@pytest.mark.long
def test_chat_continues_one_text_until_it_is_reset(serving: SwarmThread, full_model: Any, folder: Path) -> None:
    result = run(
        "chat", folder, *serving.initial, "-n", 6, text="one\n\n/help\ntwo\n/rset\n/reset\none\n/quit\nnever read\n"
    )
    assert result.exit_code == 0, result.output
    first = expected(full_model, folder, "one\n", 6)
    second = expected(full_model, folder, f"one\n{first}two\n", 6)
    assert result.stdout == f"{first}\n{second}\n{first}\n"
    assert "a new conversation begins" in result.stderr
    assert result.stderr.count(talk.CHAT_HELP) == 3, "at the start, when asked, and for a command that is none"
    assert "/rset is no command" in result.stderr
    serving.wait_idle()


def test_chat_reports_on_each_answer(serving: SwarmThread, full_model: Any, folder: Path) -> None:
    """Beside the conversation, on standard error, with the steps of that answer alone."""
    result = run("chat", folder, *serving.initial, "-n", 6, "--report", text="one\ntwo\n")
    assert result.exit_code == 0, result.output
    first = expected(full_model, folder, "one\n", 6)
    assert result.stdout == f"{first}\n{expected(full_model, folder, f'one{chr(10)}{first}two{chr(10)}', 6)}\n"
    assert result.stderr.count("tokens/s") == 2
    for peer in serving.swarm.peers:
        assert result.stderr.count(peer.identity.peer_id[-6:]) >= 2
    serving.wait_idle()


def test_chat_ends_at_the_end_of_its_input(serving: SwarmThread, folder: Path) -> None:
    assert run("chat", folder, *serving.initial, text="").exit_code == 0


def test_chat_uses_the_models_own_template(full_model: Any, folder: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    conversation = talk.Conversation(tokenizer)
    conversation.add("one", "yes")
    said = "user: one\nassistant: yes\nuser: two\nassistant: "
    assert conversation.token_ids("two").tolist() == tokenizer(said, return_tensors="pt")["input_ids"].tolist()


def test_an_interrupt_in_chat_stops_the_answer_only(serving: SwarmThread, full_model: Any, folder: Path) -> None:
    """The text before the interrupt stays part of the conversation."""
    options = SwarmOptions(initial_peers=(serving.swarm.peers[0].address,))
    lines = iter(["one", "two"])
    written: list[str] = []
    told: list[str] = []

    def read() -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    def write(piece: str) -> None:
        written.append(piece)
        if len(written) == 1:
            raise KeyboardInterrupt

    replies: list[talk.Reply] = []
    with talk.open_talker(str(folder), options, Spinner(), pytest.fail) as talker:
        talk.chat(talker, GenerateOptions(6), 256, read, write, told.append, replies.append)
    assert told == ["(stopped)"]
    assert [(reply.interrupted, reply.text) for reply in replies] == [
        (True, written[0]),
        (False, "".join(written[2:-1])),
    ]
    assert written[1] == "\n"
    assert "".join(written[2:]) == expected(full_model, folder, f"one\n{written[0]}two\n", 6) + "\n"
    serving.wait_idle()


def test_chat_says_when_the_conversation_is_full(serving: SwarmThread, folder: Path) -> None:
    result = run("chat", folder, *serving.initial, "--max-length", 10, text="a line of many tokens\n")
    assert result.exit_code == 0
    assert "/reset begins a new one" in result.stderr


# --- looking at a swarm ---


def test_peers_shows_who_hosts_what(serving: SwarmThread, folder: Path) -> None:
    result = run("peers", folder, *serving.initial)
    assert result.exit_code == 0, result.output
    for peer in serving.swarm.peers:
        assert peer.identity.peer_id[-6:] in result.stdout
        assert peer.target in result.stdout
    assert "missing" not in result.stdout
    told = json.loads(run("peers", folder, *serving.initial, "--json").stdout)
    assert told["missing_blocks"] == []
    assert [peer["blocks"] for peer in told["peers"]] == [[0, 3], [3, 6]]
    assert all(0 <= peer["rtt_seconds"] < 10 and 0 <= peer["age_seconds"] < 120 for peer in told["peers"])


def test_route_shows_the_chain_and_its_predicted_times(serving: SwarmThread, folder: Path) -> None:
    result = run("route", folder, *serving.initial)
    assert result.exit_code == 0, result.output
    assert "tokens/s" in result.stdout
    told = json.loads(run("route", folder, *serving.initial, "--json").stdout)
    assert [hop["peer"] for hop in told["hops"]] == [peer.identity.peer_id for peer in serving.swarm.peers]
    assert [hop["compute_seconds"] for hop in told["hops"]] == [pytest.approx(3e-3)] * 2  # 3 blocks of 1 ms
    parts = sum(hop["way_seconds"] + hop["compute_seconds"] for hop in told["hops"]) + told["return_seconds"]
    assert told["step_seconds"] == pytest.approx(parts)
    assert (told["exact"], told["unproven_seconds"]) == (True, 0)
    assert "not proven" not in result.stdout


def test_route_explains_the_chain(serving: SwarmThread, folder: Path) -> None:
    """No other peers are there: so there is no other chain, and nobody is unused."""
    result = run("route", folder, *serving.initial, "--explain")
    assert result.exit_code == 0, result.output
    assert "runner-up: none" in result.stdout
    told = json.loads(run("route", folder, *serving.initial, "--explain", "--json").stdout)
    assert [hop["peer"] for hop in told["hops"]] == [peer.identity.peer_id for peer in serving.swarm.peers]
    assert (told["runner_up"], told["not_used"], told["not_used_counts"]) == (None, [], {})


def test_a_chain_that_is_not_proven_to_be_the_best_says_so() -> None:
    """JSON has no infinity: a bound of which nothing is known is null there."""
    for unproven, line, told in (
        (1.5, "may be done up to 1.50 s sooner", 1.5),
        (float("inf"), "may be done sooner", None),
    ):
        chain = PredictedChain((), 0.1, unproven)
        assert describe_chain(chain).endswith(line)
        as_json = chain_as_json(chain)
        assert (as_json["exact"], as_json["unproven_seconds"]) == (False, told)


def test_status_tells_what_the_swarm_promises(serving: SwarmThread, folder: Path) -> None:
    """These peers do not say how large their blocks are, so that nothing can be promised; but all blocks are served."""
    result = run("status", folder, *serving.initial)
    assert result.exit_code == 0, result.output
    assert "weakest block: 0, with 1 server\n" in result.stdout
    assert "claimed moves: none" in result.stdout
    told = json.loads(run("status", folder, *serving.initial, "--json").stdout)
    assert told["R"] == 1
    assert told["theorem2_bound_per_token_seconds"] is None
    assert told["token_seconds"] >= 6e-3, "six blocks of 1 ms"
    assert (told["missing_blocks"], told["moves"]) == ([], [])


def test_ping_an_address_and_a_model(serving: SwarmThread, folder: Path) -> None:
    address = serving.swarm.peers[1].address
    result = run("ping", address)
    assert result.exit_code == 0, result.output
    assert "RTT" in result.stdout
    (told,) = json.loads(run("ping", address, "--json").stdout)
    assert told["model_digest"] == serving.swarm.digest
    assert abs(told["clock_offset_seconds"]) < 1
    assert len(json.loads(run("ping", folder, *serving.initial, "--json").stdout)) == 2


def test_a_new_key_is_secret_and_never_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "swarm.key"
    assert run("new-key", path).exit_code == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    SwarmKey.load(path)
    check_refused(run("new-key", path), 2, "exists already")
    assert path.read_bytes() == before


def test_a_new_api_key_is_shown_once_and_stored_as_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    keys = [run("new-api-key", path, name, "--tokens-per-day", 100).stdout.strip() for name in ("ann", "bob")]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    entries = read_keys(path)
    assert [(entry.name, entry.sha256) for entry in entries] == [
        (name, hashlib.sha256(key.encode()).hexdigest()) for name, key in zip(("ann", "bob"), keys, strict=True)
    ]
    assert not any(key in path.read_text() for key in keys)
    check_refused(run("new-api-key", path, "ann"), 2, "ann already")
    check_refused(run("new-api-key", path, "a b"), 2, "name")


# --- what goes wrong ---

NOBODY = f"{Identity.generate().peer_id}@127.0.0.1:1"
"""An address where nothing listens."""


def no_model(folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "llama"')
    return tmp_path


def no_weights(folder: Path, tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    return tmp_path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder, tmp_path: tmp_path, "config.json"),
        (no_model, "JSON"),
        (no_weights, "safetensors"),
    ],
    ids=["empty folder", "broken config", "no safetensors"],
)
def test_a_folder_that_is_no_model(folder: Path, tmp_path: Path, make: Any, words: str) -> None:
    check_refused(run("route", make(folder, tmp_path), "--initial-peers", NOBODY), 2, words)


@pytest.mark.parametrize("name", ["generate", "chat", "serve", "route", "peers", "status", "ping"])
def test_without_initial_peers(folder: Path, name: str) -> None:
    check_refused(run(name, folder, text="x"), 2, "--initial-peers ID@HOST:PORT")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--initial-peers", "localhost:1234"), "ID@HOST:PORT"),
        (("--initial-peers", NOBODY, "--temperature", "-1"), "--temperature"),
        (("--initial-peers", NOBODY, "--top-p", "1.5"), "--top-p"),
        (("--initial-peers", NOBODY, "-n", "0"), "--max-new-tokens"),
        (("--initial-peers", NOBODY, "--num-beams", "2", "--prompt-lookup", "3"), "combined"),
        (("--initial-peers", NOBODY, "-p", ""), "prompt is empty"),
        (("--initial-peers", NOBODY, "--stop", ""), "--stop has no text"),
        (("--initial-peers", NOBODY, "--swarm-key", "/nonexistent/key"), "/nonexistent/key"),
        (("--initial-peers", NOBODY, "--wire-format", "float12"), "float12"),
        (("--initial-peers", NOBODY, "--guess", "some"), "auto, off, or 0 to 64"),
        (("--initial-peers", NOBODY, "--guess", "0", "--draft", "org/small"), "guesses nothing"),
        (("--initial-peers", NOBODY, "--draft", "/nonexistent/draft"), "draft model /nonexistent/draft"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_option(folder: Path, options: tuple[str, ...], words: str) -> None:
    check_refused(run("generate", folder, "-p", "x", *options), 2, words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--port", "70000"), "--port"),
        (("--max-running", "0"), "--max-running"),
        (("--max-queue", "-1"), "--max-queue"),
        (("--max-length", "1"), "--max-length"),
        (("--default-max-tokens", "0"), "--default-max-tokens"),
        (("--name", "a\nb"), "--name"),
        (("--host", "no.such.host.invalid"), "cannot listen at no.such.host.invalid:8000: "),
        (("--keys", "/nonexistent/keys.toml"), "/nonexistent/keys.toml"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_option_of_the_endpoint(folder: Path, options: tuple[str, ...], words: str) -> None:
    check_refused(run("serve", folder, "--initial-peers", NOBODY, *options), 2, words)


def test_the_endpoint_says_which_extra_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A volunteer's install has no web server."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    result = run("serve", folder, "--initial-peers", NOBODY)
    check_refused(result, 2, "not installed: uvicorn", "pip install 'blockswarm[serve]'")


@pytest.mark.parametrize("name", ["generate", "route", "peers", "status", "ping"])
def test_an_error_is_json_too_if_json_is_asked_for(folder: Path, name: str) -> None:
    for peers, code, status in (((), "usage", 2), (("--initial-peers", NOBODY), "peer-unavailable", 1)):
        result = run(name, folder, *peers, "--json", text="x")
        assert result.exit_code == status
        (error,) = json.loads(result.stdout).values()
        assert error["code"] == code
        assert result.stderr.splitlines() == [f"swarm-client: {error['message']}", f"  {error['hint']}"]


def test_an_address_without_an_id_is_not_taken_for_the_name_of_a_model() -> None:
    check_refused(run("ping", "127.0.0.1:4000"), 2, "'127.0.0.1:4000' is not the address of a peer", "ID@HOST:PORT")


def test_unreachable_initial_peers(folder: Path) -> None:
    check_refused(run("generate", folder, "--initial-peers", NOBODY, "-p", "x"), 1, NOBODY, "Check the addresses")


def test_an_initial_peer_that_is_somebody_else(serving: SwarmThread, folder: Path) -> None:
    address = PeerAddress(Identity.generate().peer_id, serving.swarm.peers[0].address.target)
    for arguments in (("route", folder, "--initial-peers", address), ("ping", address)):
        check_refused(run(*arguments), 1, "not the node that it claims to be")


def test_another_model_than_the_swarms(serving: SwarmThread, folder: Path, tmp_path: Path) -> None:
    other = write_tiny_checkpoint("llama", tmp_path, rms_norm_eps=1e-5)
    for name in ("route", "peers"):
        check_refused(run(name, other, *serving.initial), 2, "serve test (", serving.swarm.digest[:12], "same model")


def test_a_model_without_tokenizer(serving: SwarmThread, folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if not path.name.startswith("tokenizer"):
            os.link(path, tmp_path / path.name)
    check_refused(run("generate", tmp_path, *serving.initial, "-p", "x"), 2, "tokenizer")
    serving.wait_idle()


def changed(folder: Path, path: Path, name: str, content: str) -> Path:
    """A copy of the model in `path`, with one of its small files as given."""
    for file in folder.iterdir():
        if file.name != name:
            os.link(file, path / file.name)
    (path / name).write_text(content)
    return path


ODD_SETTINGS: dict[str, dict[str, Any]] = {
    "stop strings": {"stop_strings": ["zzzz"]},
    "several texts": {"num_return_sequences": 3, "num_beams": 3},
    "an object": {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True},
}


@pytest.mark.long
@pytest.mark.parametrize("settings", ODD_SETTINGS.values(), ids=ODD_SETTINGS.keys())
@pytest.mark.parametrize("options", [(), ("--num-beams", 2)], ids=str)
def test_a_models_own_settings_want_other_things(
    serving: SwarmThread, folder: Path, tmp_path: Path, settings: dict[str, Any], options: tuple[Any, ...]
) -> None:
    """One text comes out, as without them."""
    odd = changed(folder, tmp_path, "generation_config.json", json.dumps({"pad_token_id": 0} | settings))
    asked = (*serving.initial, "-p", PROMPT, "-n", 6, *options)
    result = run("generate", odd, *asked)
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout == run("generate", folder, *asked).stdout
    serving.wait_idle()


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("generation_config.json", "{", "generation_config.json cannot be used"),
        ("generation_config.json", '{"eos_token_id": "two"}', "generation_config.json"),
        ("generation_config.json", '{"bad_words_ids": 5}', "generation_config.json"),
        ("tokenizer.json", '{"version": "9.0", "model": {"type": "Later"}}', "has no tokenizer that can be loaded"),
        ("tokenizer.json", "[]", "has no tokenizer that can be loaded"),
    ],
)
def test_files_that_make_no_sense_are_refused_in_one_line(
    serving: SwarmThread, folder: Path, tmp_path: Path, name: str, content: str, word: str
) -> None:
    odd = changed(folder, tmp_path, name, content)
    check_refused(run("generate", odd, *serving.initial, "-p", PROMPT, "-n", 2), 2, word)
    serving.wait_idle()


def test_a_template_that_fails_loses_no_conversation(serving: SwarmThread, folder: Path, tmp_path: Path) -> None:
    template = "{% if messages[-1]['content'] == 'bad' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE
    odd = changed(folder, tmp_path, "chat_template.jinja", template)
    result = run("chat", odd, *serving.initial, "-n", 3, text="one\nbad\ntwo\n")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "chat template fails" in result.stderr
    assert result.stdout.count("\n") == 2, "two lines were answered"
    serving.wait_idle()


@pytest.mark.parametrize("temperature", ["1e-320", "1e-9", "nan", "-1"])
def test_temperatures_that_nothing_can_be_divided_by(folder: Path, temperature: str) -> None:
    result = run("generate", folder, "-p", "x", "--initial-peers", NOBODY, "--temperature", temperature)
    check_refused(result, 2, "--temperature must be 0 or between 1e-05 and 100")


@pytest.mark.long
def test_bytes_that_are_no_text_are_refused_and_text_that_cannot_be_printed_is_not_fatal(
    serving: SwarmThread, folder: Path
) -> None:
    """A locale without UTF-8 is common in containers, cp1252 and surrogates on Windows and in scripts."""
    result = CliRunner(charset="ascii").invoke(app, ["generate", str(folder), *serving.initial], input=b"caf\xe9")
    check_refused(result, 2, "the prompt is not UTF-8")
    check_refused(run("generate", folder, *serving.initial, "-p", "caf\udce9"), 2, "the prompt is not UTF-8")
    texts = ["caf\xe9", "caf\udcc3\udca9"]  # the second as Python reads it where the locale is ASCII
    plain, escaped = (run("generate", folder, *serving.initial, "-p", text, "-n", 2) for text in texts)
    assert (plain.exit_code, plain.output) == (0, escaped.output)
    result = CliRunner().invoke(app, ["chat", str(folder), *serving.initial, "-n", "2"], input=b"one\ncaf\xe9\ntwo\n")
    assert result.exit_code == 0
    assert "the line is not UTF-8" in result.stderr
    assert result.stdout.count("\n") == 2
    serving.wait_idle()


def test_what_nobody_expected_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, reported_errors(False):
        raise ZeroDivisionError("deep inside")
    assert ended.value.exit_code == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == "swarm-client: unexpected: ZeroDivisionError: deep inside"
    assert "--verbose" in second


def test_missing_blocks_are_named(folder: Path) -> None:
    with swarm_thread(folder, "0:2", "5:6") as thread:
        for arguments in (("generate", folder, "-p", "x"), ("route", folder)):
            check_refused(run(*arguments, *thread.initial), 1, "blocks 2:5")
        result = run("peers", folder, *thread.initial)
        assert result.exit_code == 0
        assert "nobody serves blocks 2:5" in result.stdout
        assert json.loads(run("peers", folder, *thread.initial, "--json").stdout)["missing_blocks"] == [2, 3, 4]


def test_peers_that_are_gone_are_shown_as_silent(folder: Path) -> None:
    with swarm_thread(folder, "0:3", "3:6") as thread:
        thread.run(thread.swarm.peers[1].kill())
        result = run("peers", folder, *thread.initial)
        assert "silent" in result.stdout
        assert "nobody serves blocks 3:6" in result.stdout


def test_a_private_swarm_wants_its_key(full_model: Any, folder: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        right, wrong = tmp_path / "right.key", tmp_path / "wrong.key"
        for path in (right, wrong):
            run("new-key", path)
        thread = stack.enter_context(swarm_thread(folder, "0:6", swarm_key=SwarmKey.load(right)))
        ask = ("generate", folder, *thread.initial, "-p", PROMPT, "-n", 3)
        check_refused(run(*ask), 2, "private", "key file")
        check_refused(run(*ask, "--swarm-key", wrong), 2, "private", "key file")
        result = run(*ask, "--swarm-key", right)
        assert result.stdout == expected(full_model, folder, PROMPT, 3) + "\n", result.output


def test_clocks_that_disagree(folder: Path) -> None:
    """The peers' clocks are shifted by more than a record lives, so nothing that they announce can be believed."""
    with swarm_thread(folder, "0:6", clock=lambda: time.time() + 500) as thread:
        thread.swarm.store.records.clear()
        check_refused(run("route", folder, *thread.initial), 1, "clock", "500 s behind", "NTP")


# --- what is written ---


def test_the_map_of_the_blocks() -> None:
    assert block_map(6, [("b", BlockRange(4, 6)), ("a", BlockRange(0, 3))]).splitlines() == [
        "blocks   0    6",
        "a        ###...  0:3",
        "b        ....##  4:6",
        "missing  ...#..  nobody serves blocks 3:4",
    ]
    assert all(len(line.split()[1]) == 64 for line in block_map(200, [("a", BlockRange(0, 200))]).splitlines()[1:])


def test_numbers_stand_to_the_right() -> None:
    assert table(("who", "ms"), [("a", "10.5"), ("bcde", "3.0")]) == "who     ms\na     10.5\nbcde   3.0"


def test_a_model_gives_the_terminal_no_orders() -> None:
    assert harmless("a\tb\x1b[2J\x07\u009b1m\r\n\N{SNOWMAN}") == "a\tb\ufffd[2J\ufffd\ufffd1m\ufffd\n\N{SNOWMAN}"
