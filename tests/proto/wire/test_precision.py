"""The order of the numeric formats."""

from __future__ import annotations

import subprocess
import sys

import pytest
from blockswarm.proto.errors import UsageError
from blockswarm.proto.wire.precision import FORMATS, at_least, precision_rank


def test_every_format_satisfies_itself_and_those_of_lower_rank() -> None:
    for name in FORMATS:
        for minimum in FORMATS:
            assert at_least(name, minimum) == (precision_rank(name) >= precision_rank(minimum))
        assert at_least(name, name)


def test_the_order_is_the_one_of_the_measured_errors() -> None:
    ranks = [precision_rank(name) for name in ("nf4", "int8", "bfloat16", "float32")]
    assert ranks == sorted(set(ranks))
    assert precision_rank("float16") == precision_rank("bfloat16")
    assert precision_rank("int4") == precision_rank("nf4")


def test_an_unknown_announced_format_satisfies_no_demand() -> None:
    """A record may come from a newer version, or from an attacker."""
    assert not any(at_least("float128", minimum) for minimum in FORMATS)


def test_an_unknown_demand_is_the_users_mistake() -> None:
    with pytest.raises(UsageError, match="int7"):
        at_least("float32", "int7")


def test_it_needs_no_torch() -> None:
    code = "import sys, blockswarm.proto.wire.precision; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
