"""Instance files: converted once, into seconds, bytes and 0-based numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from blockswarm.routing.papers.instances import InstanceError, load_chain_cases, load_instance

REFERENCE = Path(__file__).parents[1] / "reference"


def test_units_are_converted() -> None:
    raw = json.loads((REFERENCE / "abvt_C9_lam0.5_l64.json").read_text())
    loaded = load_instance(REFERENCE / "abvt_C9_lam0.5_l64.json")
    assert loaded.model.memory_bytes[7] == pytest.approx(79.13e9)
    assert loaded.model.decode_seconds[0] == pytest.approx(0.0162488)
    assert loaded.model.rtt_seconds[0, 2] == pytest.approx(0.113898)
    assert loaded.model.session_bytes == pytest.approx(raw["sc"] * 1e9)
    assert loaded.model.block_limit.tolist() == [4] * 7 + [70, 70]
    assert loaded.requests_per_second == pytest.approx(0.5)
    assert (loaded.initial_delay_seconds, loaded.allocation_seconds) == pytest.approx((0.07, 60.0))
    assert loaded.arrivals_seconds[2] == pytest.approx(sum(raw["inter_arrivals"][:3]) / 1e3)
    assert loaded.petals is not None
    assert loaded.petals.allocation_seconds == pytest.approx(250.0)


def test_requests_name_their_clients(tmp_path: Path) -> None:
    raw = json.loads((REFERENCE / "single_server_queue.json").read_text())
    raw |= {"rtt": [[40.0], [50.0]], "rtt_input": [[50.0], [60.0]], "n_clients": 2, "inter_arrivals": [0.0, 5.0]}
    path = tmp_path / "two.json"
    path.write_text(json.dumps(raw | {"request_client": [1, 0]}))
    assert load_instance(path).request_client.tolist() == [1, 0]
    path.write_text(json.dumps(raw | {"request_client": [1, 2]}))
    with pytest.raises(InstanceError, match=r"two.json: request_client\[1\]"):
        load_instance(path)


@pytest.mark.parametrize(
    ("key", "value"), [("rho_bar", 1.5), ("c", 0), ("arrival_rate_per_s", 0), ("servers", [{"M": 1}]), ("sm", "x")]
)
def test_bad_chain_cases_name_the_field(tmp_path: Path, key: str, value: object) -> None:
    raw = json.loads((REFERENCE / "chain_composition.json").read_text())
    raw["cases"][0][key] = value
    path = tmp_path / "cases.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(InstanceError, match=rf"cases.json: cases\[0\].{key}"):
        load_chain_cases(path)
