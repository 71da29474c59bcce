"""Scenarios, traces, comparison and planning: validated at load, equal seeds give equal bytes."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from blockswarm.routing.papers.instances import InstanceError
from blockswarm.routing.sim.cli import app
from blockswarm.routing.sim.runs.policies import PRODUCT_POLICIES, prepare
from blockswarm.routing.sim.runs.published import no_progress
from blockswarm.routing.sim.studies.compare import compare, to_csv
from blockswarm.routing.sim.worlds.scenario import load_scenario, load_scenarios
from blockswarm.routing.sim.worlds.workload import Lengths, poisson, read_trace
from typer.testing import CliRunner

REFERENCE = Path(__file__).parents[2] / "reference"

BASE = """
name = "small"
seed = 5
runs = 2
[cluster]
topology = "abovenet"
servers = 9
fast_fraction = 0.3
[workload]
rate_per_second = 0.5
requests = 30
prompt_tokens = 20
new_tokens = 32
"""


def write(folder: Path, text: str, name: str = "scenario.toml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.long
def test_equal_seeds_give_equal_bytes_and_others_do_not(tmp_path: Path) -> None:
    policies = ["petals", "proposed", "ours", "ours_chains"]
    first, second = (to_csv(compare([load_scenario(write(tmp_path, BASE))], policies)) for _ in range(2))
    other = to_csv(compare([load_scenario(write(tmp_path, BASE.replace("seed = 5", "seed = 6")))], policies))
    assert first == second
    assert first != other
    assert first.count("\n") == 1 + 2 * len(policies)


@pytest.mark.long
def test_both_delay_settings_are_reported_and_the_csv_is_written(tmp_path: Path) -> None:
    out = tmp_path / "table.csv"
    plot = tmp_path / "cdf.svg"
    status, table, _ = run("compare", write(tmp_path, BASE), "--policy", "proposed", "--out", out, "--plot", plot)
    assert status == 0
    assert "published" in table
    assert "zero" in table
    assert out.read_text().startswith("scenario,policy,fixed_delays,R,")
    assert "<svg" in plot.read_text()


def test_a_plot_of_another_kind_is_refused_before_anything_runs(tmp_path: Path) -> None:
    status, out, err = run("compare", write(tmp_path, BASE), "--plot", tmp_path / "cdf.pdf")
    assert (status, out) == (2, "")
    assert "must end in .svg or .png" in err


def test_a_plot_without_matplotlib_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # type: ignore[arg-type]
    status, out, err = run("compare", write(tmp_path, BASE), "--plot", tmp_path / "cdf.svg")
    assert (status, out) == (2, "")
    assert "blockswarm[plots]" in err


@pytest.mark.parametrize("memory", ["slots", "tokens"])
@pytest.mark.parametrize("policy", ["petals", "proposed", *PRODUCT_POLICIES])
def test_mixed_lengths_never_over_commit_memory(tmp_path: Path, memory: str, policy: str) -> None:
    """At every start, what the running requests take on each server fits beside its blocks."""
    text = f'memory = "{memory}"\n' + BASE.replace("rate_per_second = 0.5", "rate_per_second = 5.0").replace(
        "new_tokens = 32", "new_tokens = {mean = 400, spread = 0.8, step = 100}"
    )
    instance = load_scenario(write(tmp_path, text)).instance(0)
    prepared = prepare(instance, policy, zero_fixed_delay=True)
    results = prepared.run(no_progress)
    kinds = instance.request_kinds()
    assert len({kind.model.new_tokens for kind in kinds}) > 1
    sizes = np.array([len(r) if r else 0 for r in prepared.ranges])
    units = instance.cache_units(sizes)
    spans = [
        (r.start_seconds, r.arrival_seconds + r.total_seconds, r.chain, kinds[instance.kind_of(n)].units_per_block)
        for n, r in enumerate(results)
    ]
    for moment, *_ in spans:
        used = np.zeros(len(units))
        for start, end, chain, need in spans:
            if start <= moment < end - 1e-9:
                for j, blocks in chain:
                    used[j] += need * len(blocks)
        assert (used <= units).all()


@pytest.mark.long
def test_our_policies_beat_neither_none_nor_themselves_on_a_loaded_map(tmp_path: Path) -> None:
    """The aim of the product: never a longer mean than PETALS or published CG-BP + WS-RR."""
    rows = compare([load_scenario(write(tmp_path, BASE))], ["petals", "proposed", *PRODUCT_POLICIES])
    for zero in (False, True):
        mean = {r.policy: r.summary.per_token_seconds for r in rows if r.zero_fixed_delay == zero and r.summary}
        for ours in PRODUCT_POLICIES:
            assert mean[ours] <= min(mean["petals"], mean["proposed"]) * (1 + 1e-9)


BAD = [
    ("servers = 9", "servers = 0", "cluster.servers"),
    ("servers = 9", "servers = 40", "cluster.servers"),
    ("servers = 9", "servers = 9\nbogus = 1", "cluster.bogus"),
    ('topology = "abovenet"', 'topology = "nowhere"', "cluster.topology"),
    ("rate_per_second = 0.5", "rate_per_second = nan", "workload.rate_per_second"),
    ("rate_per_second = 0.5", "rate_per_second = -1", "workload.rate_per_second"),
    ("requests = 30", "requests = 2.5", "workload.requests"),
    ("prompt_tokens = 20", "prompt_tokens = 0", "workload.prompt_tokens"),
    ("runs = 2", 'runs = 2\npolicies = ["best"]', "policies[0]"),
    ("seed = 5", 'memory = "bits"', "memory"),
    ("seed = 5", "seed = ", "is not TOML"),
    ("seed = 5", "seed = 1" + "0" * 400, "seed"),
    ("seed = 5", "seed = 1" + "0" * 5000, "is not TOML"),
    ("seed = 5", "seed = " + "[" * 5000, "nested too deeply"),
    ('"abovenet"', '"above\\u0000net"', "cluster.topology"),
]


@pytest.mark.parametrize(("old", "new", "complaint"), BAD)
def test_bad_scenarios_name_the_file_and_the_field(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    status, out, err = run("run", write(tmp_path, BASE.replace(old, new)))
    assert (status, out) == (2, "")
    assert "scenario.toml" in err
    assert complaint in err
    assert err.count("\n") == 1


def test_an_infeasible_scenario_says_which_blocks(tmp_path: Path) -> None:
    text = BASE.replace("fast_fraction = 0.3", "fast_fraction = 0.0")
    status, out, _ = run("run", write(tmp_path, text))
    assert status == 3
    assert "infeasible: blocks" in out


@pytest.mark.parametrize(
    ("command", "kind"), [("run", list), ("replay", dict), ("chains", dict)], ids=["run", "replay", "chains"]
)
def test_json_is_what_the_help_says(tmp_path: Path, command: str, kind: type) -> None:
    """A program that reads an object where an array comes stops at its first answer."""
    files = {
        "run": write(tmp_path, BASE.replace("fast_fraction = 0.3", "fast_fraction = 0.0")),
        "replay": REFERENCE / "homogeneous_ties.json",
        "chains": REFERENCE / "chain_composition.json",
    }
    _, out, _ = run(command, files[command], "--json")
    assert type(json.loads(out)) is kind
    said = " ".join(run(command, "-h")[1].split())
    assert f"One JSON {'array' if kind is list else 'object'} on stdout" in said


TRACE = "arrival_seconds,prompt_tokens,new_tokens\n0,10,5\n2.5,20,6\n"


def test_a_trace_is_played_as_recorded(tmp_path: Path) -> None:
    write(tmp_path, TRACE, "trace.csv")
    text = BASE.replace("requests = 30", 'trace = "trace.csv"')
    instance = load_scenario(write(tmp_path, text)).instance(0)
    assert instance.arrivals_seconds.tolist() == [0.0, 2.5]
    assert [instance.request_kinds()[instance.kind_of(n)].model.new_tokens for n in (0, 1)] == [5, 6]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("arrival_seconds,prompt_tokens\n0,1\n", "columns"),
        (TRACE + "1.0,10,5\n", "line 4: arrival_seconds"),
        (TRACE + "3.0,-1,5\n", "line 4: prompt_tokens"),
        (TRACE + "3.0,1,x\n", "line 4: new_tokens"),
        (TRACE + "3.0,1\n", "line 4: new_tokens"),
        ("arrival_seconds,prompt_tokens,new_tokens\n", "holds no requests"),
    ],
)
def test_bad_traces_name_the_line_and_the_column(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(InstanceError, match=complaint):
        read_trace(write(tmp_path, text, "trace.csv"), 1)


def test_lengths_have_the_stated_mean_and_step() -> None:
    drawn = Lengths(200.0, 0.5, 16, 1000).sample(20_000, np.random.default_rng(0))
    assert set((drawn % 16).tolist()) <= {0, 1000 % 16}
    assert drawn.max() <= 1000
    assert drawn.mean() == pytest.approx(208, rel=0.03)
    assert Lengths(7.0).sample(3, np.random.default_rng(0)).tolist() == [7, 7, 7]


def test_poisson_arrivals_have_the_rate() -> None:
    load = poisson(20_000, 4.0, Lengths(1), Lengths(1), 3, np.random.default_rng(0))
    assert load.arrivals_seconds[0] == 0.0
    assert load.arrivals_seconds[-1] == pytest.approx(5000, rel=0.03)
    assert np.bincount(load.client).tolist() == pytest.approx([6667] * 3, rel=0.05)


SNAPSHOT = {
    "model": {"num_blocks": 4, "block_bytes": 1e9, "kv_bytes_per_token": 1e6},
    "request": {"prompt_tokens": 50, "new_tokens": 50},
    "requests_per_second": 0.5,
    "peers": [
        {"id": f"p{j}", "memory_bytes": 4e9, "decode_seconds": 0.01, "prefill_seconds_per_token": 0.001,
         "client_rtt_seconds": [0.05], "blocks": "0:2" if j else "2:4"}
        for j in range(3)
    ],
}  # fmt: skip


def test_the_plan_of_a_snapshot_shows_the_bound_and_what_one_more_peer_brings(tmp_path: Path) -> None:
    status, out, _ = run("plan", write(tmp_path, json.dumps(SNAPSHOT), "snapshot.json"))
    report = json.loads(out)
    assert status == 0
    assert sorted(report["placement"]) == ["p0", "p1", "p2"]
    assert report["request_seconds"] <= report["present_request_seconds"]
    assert report["theorem2_bound_per_token_seconds"] > 0
    assert all(more["largest_feasible_R"] > report["largest_feasible_R"] for more in report["one_more_peer"])


@pytest.mark.parametrize(
    ("change", "status", "complaint"),
    [
        ({"peers": []}, 2, "peers"),
        ({"bogus": 1}, 2, "bogus"),
        ({"concurrency": 3}, 2, "either concurrency or requests_per_second"),
        ({"peers": [SNAPSHOT["peers"][0] | {"blocks": "0:9"}]}, 2, "peers"),  # type: ignore[index]
        ({"peers": [SNAPSHOT["peers"][0] | {"blocks": "x"}]}, 2, "peers[0].blocks"),  # type: ignore[index]
        ({"peers": [SNAPSHOT["peers"][0] | {"id": "\ud800"}]}, 2, "peers[0].id"),  # type: ignore[index]
        ({"peers": [SNAPSHOT["peers"][0] | {"memory_bytes": 1.5e9}]}, 3, "cannot be placed"),  # type: ignore[index]
    ],
)
def test_bad_snapshots_are_refused(tmp_path: Path, change: dict[str, object], status: int, complaint: str) -> None:
    got, out, err = run("plan", write(tmp_path, json.dumps(SNAPSHOT | change), "snapshot.json"))
    assert (got, out) == (status, "")
    assert "snapshot.json" in err
    assert complaint in err


def test_room_beyond_all_requests_is_room(tmp_path: Path) -> None:
    """It was none, "lower R or add memory", where the sessions that fit were more than 2^63."""
    model = SNAPSHOT["model"] | {"kv_bytes_per_token": 1e-4}  # type: ignore[operator]
    peers = [peer | {"memory_bytes": 1e18} for peer in SNAPSHOT["peers"]]  # type: ignore[attr-defined]
    changed = SNAPSHOT | {"model": model, "peers": peers}
    status, out, err = run("plan", write(tmp_path, json.dumps(changed), "snapshot.json"))
    assert (status, err) == (0, "")
    assert json.loads(out)["largest_feasible_R"] >= 10**9


def test_peers_that_take_no_time_are_planned_for(tmp_path: Path) -> None:
    nothing = {"decode_seconds": 0, "prefill_seconds_per_token": 0, "client_rtt_seconds": [0]}
    peers = [peer | nothing for peer in SNAPSHOT["peers"]]  # type: ignore[attr-defined]
    status, out, _ = run("plan", write(tmp_path, json.dumps(SNAPSHOT | {"peers": peers}), "snapshot.json"))
    report = json.loads(out)
    assert (status, report["request_seconds"], report["present_request_seconds"]) == (0, 0, 0)


@pytest.mark.parametrize("option", ["--out", "--plot"])
@pytest.mark.parametrize("where", ["absent/table.svg", "folder.svg"])
def test_a_file_that_cannot_be_written_is_told_before_anything_runs(tmp_path: Path, option: str, where: str) -> None:
    (tmp_path / "folder.svg").mkdir()
    status, out, err = run("compare", write(tmp_path, BASE), option, tmp_path / where)
    assert (status, out) == (2, "")
    assert err.startswith(f"swarm-sim: {option}: ")
    assert "cannot be written" in err


def test_a_disk_that_is_full_at_the_end_is_told_in_a_line(tmp_path: Path) -> None:
    status, _, err = run("compare", write(tmp_path, BASE), "--policy", "ours", "--out", "/dev/full")
    assert status == 2
    assert err == "swarm-sim: --out: /dev/full cannot be written: No space left on device\n"


def test_a_comparison_without_a_feasible_row_has_status_3(tmp_path: Path) -> None:
    text = BASE.replace("servers = 9", "servers = 1").replace("runs = 2", "runs = 1")
    assert run("compare", write(tmp_path, text), "--policy", "ours")[0] == 3


SWEEP = (
    BASE
    + """
[[sweep]]
vary = "cluster.servers"
values = [9, 12]
[[sweep]]
vary = "delays.allocation_seconds"
values = [0.5, 1, 2]
[delays]
initial_seconds = 0.1
"""
)


def test_a_sweep_stands_for_scenarios_that_differ_in_one_number(tmp_path: Path) -> None:
    """Each point is what a file of its own with that number would be."""
    points = load_scenarios(write(tmp_path, SWEEP))
    assert [point.name for point in points] == [
        "small, servers = 9",
        "small, servers = 12",
        "small, allocation_seconds = 0.5",
        "small, allocation_seconds = 1",
        "small, allocation_seconds = 2",
    ]
    alone = load_scenario(
        write(tmp_path, BASE.replace("servers = 9", "servers = 12") + "[delays]\ninitial_seconds=0.1")
    )
    for field in ("seed", "runs", "policies", "requests", "requests_per_second", "allocation_seconds"):
        assert getattr(points[1], field) == getattr(alone, field)
    assert np.array_equal(points[1].instance(0).model.rtt_seconds, alone.instance(0).model.rtt_seconds)
    assert [point.allocation_seconds for point in points] == [60.0, 60.0, 0.5, 1.0, 2.0]


@pytest.mark.long
def test_sweeps_are_compared_as_a_table_a_csv_and_one_panel_each(tmp_path: Path) -> None:
    out, plot = tmp_path / "table.csv", tmp_path / "sweep.svg"
    status, table, _ = run("compare", write(tmp_path, SWEEP), "--policy", "ours", "--out", out, "--plot", plot)
    assert status == 0
    assert "small, servers = 12" in table
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert {row["base"] for row in rows} == {"small"}
    assert [float(row["value"]) for row in rows if row["varied"] == "cluster.servers"] == [9.0, 9.0, 12.0, 12.0]
    text = plot.read_text()
    assert text.count("<!-- cluster.servers -->") == text.count("<!-- delays.allocation_seconds -->") == 2


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("values = [9, 12]", "values = [9]", "sweep[0].values: must have 2 to 100"),
        ("values = [9, 12]", "values = [12, 9]", "sweep[0].values[1]: must be more than"),
        ("values = [9, 12]", 'values = [9, "x"]', "sweep[0].values[1]: must be a number"),
        ("values = [9, 12]", "values = [9, 400]", "cluster.servers: 400 servers"),
        ("values = [9, 12]", "values = [9, 12]\nbogus = 1", "sweep[0].bogus"),
        ("cluster.servers", "cluster.topology", "sweep[0].vary: cluster.topology is no number"),
        ("cluster.servers", "nowhere.servers", "sweep[0].vary: 'nowhere' is no table"),
        ("cluster.servers", "cluster.bogus", "cluster.bogus: is not a known field"),
    ],
)
def test_bad_sweeps_name_the_file_and_the_field(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    status, out, err = run("compare", write(tmp_path, SWEEP.replace(old, new)))
    assert (status, out) == (2, "")
    assert "scenario.toml" in err
    assert complaint in err
    assert err.count("\n") == 1


def test_where_one_scenario_is_wanted_a_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InstanceError, match="one scenario is wanted"):
        load_scenario(write(tmp_path, SWEEP))


def test_the_example_files_are_accepted() -> None:
    examples = sorted((Path(__file__).parents[4] / "docs" / "scenarios").glob("*.toml"))
    assert examples
    for example in examples:
        assert load_scenarios(example)
