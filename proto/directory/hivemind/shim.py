"""hivemind's DHT without the rest of hivemind: the one module that imports it.

Import this room where it is needed, not at the top of a module outside.
"""

from __future__ import annotations

import importlib.util
import sys

__all__ = [
    "DHTID",
    "P2P",
    "AuthRPCWrapper",
    "AuthRole",
    "AuthorizerBase",
    "DHTLocalStorage",
    "DHTNode",
    "MSGPackSerializer",
    "Multiaddr",
    "P2PDaemonError",
    "P2PHandlerError",
    "PeerID",
    "dht_pb2",
    "p2pd_pb2",
    "read_pbmsg_safe",
    "use_hivemind_log_handler",
    "write_pbmsg",
]


def import_hivemind_lightly() -> None:
    """Make hivemind's DHT importable without the rest of it.

    hivemind/__init__.py imports its optimizers, averagers and experts, and with them torch.  The DHT needs none of
    these, so the packages are entered in sys.modules without running their __init__; measured, this is 0.1 s and
    24 MB instead of 1.6 s and 225 MB (0.3 s and 15 MB where torch is loaded already).  In such a process
    `import hivemind` gives the bare package.
    """
    if "hivemind" in sys.modules:
        return
    for name in ("hivemind", "hivemind.dht", "hivemind.utils"):
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ImportError("hivemind is not installed", name="hivemind")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    # The names that the DHT's modules import from the package hivemind.utils itself.
    utils = sys.modules["hivemind.utils"]
    for module_name, names in {
        "hivemind.utils.logging": ("get_logger",),
        "hivemind.utils.serializer": ("MSGPackSerializer", "SerializerBase"),
        "hivemind.utils.timed_storage": ("get_dht_time",),
    }.items():
        source = importlib.import_module(module_name)
        for attribute in names:
            setattr(utils, attribute, getattr(source, attribute))


import_hivemind_lightly()

from hivemind.dht.node import DHTNode  # noqa: E402
from hivemind.dht.routing import DHTID  # noqa: E402
from hivemind.dht.storage import DHTLocalStorage  # noqa: E402
from hivemind.p2p import P2P, P2PDaemonError, P2PHandlerError, PeerID  # noqa: E402
from hivemind.p2p.p2p_daemon_bindings.utils import read_pbmsg_safe, write_pbmsg  # noqa: E402
from hivemind.proto import dht_pb2, p2pd_pb2  # noqa: E402
from hivemind.utils.auth import AuthorizerBase, AuthRole, AuthRPCWrapper  # noqa: E402
from hivemind.utils.logging import use_hivemind_log_handler  # noqa: E402
from hivemind.utils.multiaddr import Multiaddr  # noqa: E402
from hivemind.utils.serializer import MSGPackSerializer  # noqa: E402
