"""`swarm-sim replay` and `chains` reproduce the authors' numbers, and refuse bad files with one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from blockswarm.routing.sim.cli import app
from typer.testing import CliRunner

REFERENCE = Path(__file__).parents[2] / "reference"
INSTANCES = ("abvt_C9_lam0.5_l64", "homogeneous_ties", "infeasible_at_R_only", "milp_3s_1c_2r", "single_server_queue")
AVERAGES = ("avg_per_token_ms", "avg_ttft_ms", "avg_wait_ms", "avg_remaining_per_token_ms")
PER_REQUEST = ("raw_wait_ms", "wait_ms", "start_ms", "ttft_ms", "total_ms", "path_cost_ms")


def close(value: float | list[float]) -> Any:
    return pytest.approx(value, rel=1e-6, abs=1e-6)


def load(name: str) -> dict[str, Any]:
    return json.loads((REFERENCE / f"{name}.json").read_text())  # type: ignore[no-any-return]


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def replay(name: str, policy: str, *flags: str) -> tuple[int, dict[str, Any]]:
    status, out, _ = run("replay", str(REFERENCE / f"{name}.json"), "--policy", policy, "--json", *flags)
    return status, json.loads(out)


ONLINE = [(name, policy) for name in INSTANCES for policy in load(name)["expected"].get("online", {})]


@pytest.mark.parametrize(("name", "policy"), ONLINE)
def test_online_policies_reproduce_every_request(name: str, policy: str) -> None:
    expected = load(name)["expected"]["online"][policy]
    status, report = replay(name, policy)
    assert status == 0
    for key in AVERAGES:
        assert report[key] == close(expected[key]), key
    for key in PER_REQUEST:
        assert [request[key] for request in report["requests"]] == close(expected[key]), key
    tied = set(expected.get("tied_requests", ()))
    routes = [request["route"] for request in report["requests"]]
    assert [r for i, r in enumerate(routes) if i not in tied] == [
        r for i, r in enumerate(expected["routes"]) if i not in tied
    ]
    if "a" in expected:
        assert (report["placement"]["a"], report["placement"]["m"]) == (expected["a"], expected["m"])


@pytest.mark.parametrize(("name", "policy"), ONLINE)
def test_without_fixed_delays_the_averages_agree_too(name: str, policy: str) -> None:
    expected = load(name)["expected"]["online_zero_fixed_delay"][policy]
    _, report = replay(name, policy, "--zero-fixed-delay")
    for key in AVERAGES:
        assert report[key] == close(expected[key]), key


@pytest.mark.parametrize("name", [name for name in INSTANCES if load(name)["expected"]["cg_bp"]["feasible"]])
def test_the_cg_bp_placement_and_its_bound_agree(name: str) -> None:
    expected = load(name)["expected"]
    _, report = replay(name, "proposed")
    plan = expected["cg_bp"]
    assert report["R"] == expected["R_used"]
    assert report["placement"] == {"a": plan["a"], "m": plan["m"], "order": plan["server_order"]}
    assert report["theorem2_bound_per_token_ms"] == close(plan["theorem2_bound_per_token_ms"])


@pytest.mark.parametrize("name", ["homogeneous_ties", "milp_3s_1c_2r"])
def test_the_offline_heuristic_agrees(name: str) -> None:
    expected = load(name)["expected"]["offline"]["cg_bprr"]
    status, report = replay(name, "cg_bprr")
    assert status == 0
    assert (report["placement"]["a"], report["placement"]["m"]) == (expected["a"], expected["m"])
    assert report["route_per_client"] == expected["route_per_client"]
    for key in ("total_ms", "avg_per_token_ms"):
        assert report[key] == close(expected[key])


def test_the_exact_program_reaches_the_exhaustive_optimum() -> None:
    _, report = replay("milp_3s_1c_2r", "milp")
    assert report["total_ms"] == close(load("milp_3s_1c_2r")["expected"]["offline"]["milp"]["total_ms"])


@pytest.mark.parametrize("policy", ["proposed", "cg_bprr"])
def test_an_infeasible_r_is_status_3_and_names_the_blocks(policy: str) -> None:
    status, report = replay("infeasible_at_R_only", policy)
    assert status == 3
    assert report["feasible"] is False
    assert "blocks 15-19 cannot be placed" in report["reason"]


def test_chain_composition_reproduces_the_five_server_example() -> None:
    status, out, _ = run("chains", str(REFERENCE / "chain_composition.json"), "--json")
    (case,) = json.loads(out)["cases"]
    expected = load("chain_composition")["cases"][0]["expected"]
    assert status == 0
    assert case["placement"] == expected["placement"]
    assert case["disjoint_chains"] == expected["disjoint_chains"]
    for ours, theirs in zip(case["gca_chains"], expected["gca_chains"], strict=True):
        assert (ours["servers"], ours["capacity"]) == (theirs["servers"], theirs["capacity"])
        assert ours["service_time_s"] == close(theirs["service_time_s"])
    for key in ("total_service_rate", "total_capacity", "theorem4_mean_response_s", "theorem4_mean_occupancy"):
        assert case[key] == close(expected[key])


def test_chains_of_servers_that_take_no_time_have_finite_rates(tmp_path: Path) -> None:
    server = {"M": 10, "tau_c_s": 0, "tau_p_s": 0}
    case = {"name": "c", "L": 3, "sm": 1, "sc": 1e-300, "arrival_rate_per_s": 1, "rho_bar": 0.7, "c": 1}
    path = tmp_path / "cases.json"
    path.write_text(json.dumps({"cases": [case | {"servers": [server]}]}))
    status, out, _ = run("chains", str(path), "--json")
    assert status == 0
    (found,) = json.loads(out)["cases"]
    assert found["theorem4_mean_response_s"] == pytest.approx([0, 0], abs=1e-6)


def test_a_case_without_a_chain_is_status_3_with_an_error(tmp_path: Path) -> None:
    cases = load("chain_composition")
    cases["cases"][0]["c"] = 1000
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    status, out, _ = run("chains", str(tmp_path / "cases.json"), "--json")
    assert status == 3
    assert "less than the whole model" in json.loads(out)["cases"][0]["error"]


def test_a_policy_whose_fields_are_missing_is_status_2() -> None:
    status, out, err = run("replay", str(REFERENCE / "homogeneous_ties.json"), "--policy", "petals", "--json")
    assert (status, out) == (2, "")
    assert "homogeneous_ties.json: petals: is missing" in err


BAD = [
    ("L", 0),
    ("L", 2.5),
    ("sm", -1.0),
    ("sc", 0),
    ("servers", []),
    ("rtt", [[30.0]]),
    ("rtt_input", [[30.0, -1, 30, 30, 30, 30]]),
    ("R", 0),
    ("R", "ten"),
    ("inter_arrivals", [0.0, 1e300]),
    ("request_client", [1]),
    ("n_clients", 2),
    ("bogus", 1),
    ("l_max", True),
    ("l_max", 10**400),
    ("name", "\0"),
]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_bad_values_name_the_file_and_the_field(tmp_path: Path, key: str, value: object) -> None:
    instance = load("homogeneous_ties") | {key: value}
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(instance))
    status, out, err = run("replay", str(path), "--json")
    assert (status, out) == (2, "")
    assert err.count("\n") == 1
    assert f"bad.json: {key}" in err


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not JSON"),
        ("[1]", "must be an object"),
        ('{"L": NaN}', "NaN"),
        ("[" * 10**5, "nested"),
        ("1" * 5000, "is not JSON"),
    ],
)
def test_a_file_that_is_no_instance_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    status, _, err = run("replay", str(path), "--json")
    assert status == 2
    assert complaint in err


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    status, _, err = run("replay", str(tmp_path / "none.json"))
    assert status == 2
    assert "none.json: cannot be read" in err
