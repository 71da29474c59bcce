"""A swarm on the Internet of one machine, and a peer in a home behind a router that translates addresses.

    unshare --user --map-root-user --net python -m support.behind_nat MODEL FOLDER PROMPT closed|forwarded

Two network namespaces, each with a TUN device; this program carries packets from one to the other as a router does
(nat.py).  In the first, the Internet, are two public peers, of which one relays, and a client; in the second is a peer
that is started as a volunteer does, who has set the router to forward two ports, or has not.  Prints what came of it as
a line of JSON.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

from support.nat import Router
from support.processes import PeerProcess, command, environment, kill_group, peer_processes, run_program

INTERNET, ROUTER, HOME = "11.0.0.1", "11.0.0.2", "192.168.7.2"
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MOST_PACKET_BYTES = 65535
PORT, DHT_PORT = 7000, 7001
"""Nobody else is in the home's network."""


def tunnel(address: str, *, is_way_out: bool) -> int:
    """A TUN device in this network namespace, with an address of its own; its descriptor reads and writes packets."""
    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", b"tun0", _IFF_TUN | _IFF_NO_PI))
    commands = ["link set lo up", f"addr add {address}/24 dev tun0", "link set tun0 up"]
    for each in (*commands, *(["route add default dev tun0"] if is_way_out else [])):
        subprocess.run(["ip", *each.split()], check=True, capture_output=True)
    return device


def live_at_home(channel: int, program: list[str]) -> None:
    """In a namespace of its own: give the router the descriptor of this home's network, and become the program."""
    device = tunnel(HOME, is_way_out=True)
    with socket.socket(fileno=channel) as router:
        socket.send_fds(router, [b"home"], [device])
    os.execv(program[0], program)


def carry(router: Router, home: int, internet: int, stop: int) -> None:
    """Be the router until `stop` can be read."""
    while True:
        ready, _, _ = select.select([home, internet, stop], [], [])
        if stop in ready:
            return
        for source, other, translate in ((home, internet, router.outgoing), (internet, home, router.incoming)):
            if source in ready and (packet := translate(os.read(source, MOST_PACKET_BYTES))) is not None:
                os.write(other, packet)


def start_at_home(folder: Path, *arguments: object) -> tuple[PeerProcess, int]:
    """A peer behind the router, and the descriptor of the home's network."""
    ours, theirs = socket.socketpair()
    program = command("swarm-peer", *arguments)
    line = ["unshare", "--net", sys.executable, "-m", "support.behind_nat", str(theirs.fileno()), *program]
    log = folder / "home.log"
    with log.open("w") as errors, ours, theirs:
        process = subprocess.Popen(
            line, env=environment(), start_new_session=True, text=True, pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        theirs.close()
        ours.settimeout(30)
        _, (device, *_), _, _ = socket.recv_fds(ours, 16, 1)
    return PeerProcess(process, log), device


def main(model: Path, folder: Path, prompt: str, ports: str) -> None:
    internet = tunnel(INTERNET, is_way_out=False)
    stop_read, stop_write = os.pipe()
    router, options = Router(ROUTER), ["--blocks", "4:8"]
    if ports == "forwarded":
        router.forward(PORT, HOME)
        router.forward(DHT_PORT, HOME)
        options += ["--port", str(PORT), "--dht-port", str(DHT_PORT), "--announce", f"{ROUTER}:{PORT}"]
    with peer_processes(folder) as processes:
        first = processes.start(model, "--blocks", "0:4", "--relay", "--host", INTERNET).wait_ready()
        processes.start(model, "--blocks", "0:4", "--host", INTERNET, initial=[first.address]).wait_ready()
        swarm = ["--initial-peers", str(first.address)]
        home, device = start_at_home(
            folder, model, *swarm, *options, "--data", folder / "home", "--device", "cpu", "--threads", 1, "--json"
        )
        carrier = threading.Thread(target=carry, args=(router, device, internet, stop_read))
        carrier.start()
        try:
            home.wait_ready()
            text = run_program(
                "swarm-client",
                "generate",
                model,
                *swarm,
                "--prompt",
                prompt,
                "--temperature",
                0,
                "--max-new-tokens",
                24,
                "--json",
            )
            print(json.dumps({
                "reach": home.described["reach"], "status": text.returncode, "errors": text.stderr,
                "answer": text.stdout, "log": home.log.read_text(),
                "refused": router.refused, "invited": router.invited,
            }))  # fmt: skip
        finally:
            kill_group(home.process)
            os.write(stop_write, b"x")
            carrier.join()


if __name__ == "__main__":
    if sys.argv[1].isdigit():
        live_at_home(int(sys.argv[1]), sys.argv[2:])
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
