"""Scenario files (TOML): a cluster, a workload and the delays; every run is an Instance, made from the seed alone."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...papers.baselines import PetalsSpec
from ...papers.instances import GIGABYTE, Field, Instance, InstanceError, RequestKind, parsed_file
from ...perf import FloatArray, PerfModel
from ..runs.churn import Churn
from ..runs.policies import CHURN_POLICIES, ONLINE_POLICIES
from .churn_table import ChurnSpec, read_churn
from .cluster import Cluster, clustered, scattered
from .geography import TOPOLOGIES, GeographyError, Planet, bundled_topology, read_rtt_matrix, read_topology
from .workload import MOST_REQUESTS, MOST_TOKENS, Lengths, Workload, poisson, read_trace

_MOST_KINDS = 2000
_PETALS_CACHE_TOKENS = 4096
_DEFAULT_POLICIES = ("petals", "proposed", "ours", "ours_push", "ours_chains")
_CHURN_STREAM = 1
"""Churn has random numbers of its own, so that it changes nothing else of a run."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The served model; the default is BLOOM-176B with 4.25-bit weights and 16-bit caches."""

    num_blocks: int = 70
    block_bytes: float = 2_466_437_120 * 4.25 / 8 * 1.01
    hidden_size: int = 14336
    kv_group: int = 1
    """Query heads per KV head."""

    @property
    def kv_bytes_per_token(self) -> float:
        return 4.0 * self.hidden_size / self.kv_group


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """Which sweep a scenario is one point of."""

    base: str
    """The name of the scenario that is varied."""
    varied: str
    """The number that differs from point to point, as a path in the file: workload.rate_per_second."""
    value: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario to simulate; `instance(run)` is one Monte Carlo run."""

    name: str
    seed: int
    runs: int
    policies: tuple[str, ...]
    shape: ModelShape
    place: Callable[[np.random.Generator], Cluster]
    prompt: Lengths
    answer: Lengths
    requests: int
    requests_per_second: float
    trace: Path | None
    count_tokens: bool
    """Memory is counted in KV tokens (each request its own length) instead of slots of the longest."""
    concurrency: int | None
    initial_seconds: float
    allocation_seconds: float
    petals_allocation_seconds: float
    churn_spec: ChurnSpec | None = None
    point: SweepPoint | None = None
    """None for a scenario by itself."""

    def churn(self, run: int) -> Churn:
        """The events of the peers in one run. Raises InstanceError; only where there is a `churn_spec`."""
        assert self.churn_spec is not None
        rng = np.random.default_rng([self.seed, run])
        cluster = self.place(rng)
        workload = self._workload(cluster, rng)
        try:
            events = self.churn_spec.draw(
                float(workload.arrivals_seconds[-1]), np.random.default_rng([self.seed, run, _CHURN_STREAM])
            )
        except ValueError as error:
            raise InstanceError(f"{self.name}: churn: {error}") from error

        def prefill(tokens: int) -> tuple[FloatArray, FloatArray]:
            per_block = np.array([device.prefill(tokens) for device in cluster.devices])
            return per_block, cluster.prefill_rtt_seconds(tokens)

        return Churn(
            events=events,
            prompt_tokens=tuple(prompt for prompt, _ in _shapes(workload)),
            prefill=prefill,
            drain_seconds=self.churn_spec.drain_seconds,
            refresh_seconds=self.churn_spec.refresh_seconds,
        )

    def instance(self, run: int) -> Instance:
        """The instance of one run; a pure function of the scenario, its seed and `run`."""
        rng = np.random.default_rng([self.seed, run])
        cluster = self.place(rng)
        workload = self._workload(cluster, rng)
        shapes = _shapes(workload)
        if len(shapes) > _MOST_KINDS:
            raise InstanceError(f"{self.name}: workload: {len(shapes)} different lengths; raise step above 1")
        index = {shape: number for number, shape in enumerate(shapes)}
        lengths = zip(workload.prompt_tokens.tolist(), workload.new_tokens.tolist(), strict=True)
        models = [self._model(cluster, prompt, answer) for prompt, answer in shapes]
        design = self._design(cluster, workload, models)
        unit = self.shape.kv_bytes_per_token if self.count_tokens else float(design.session_bytes)
        units = [prompt + answer if self.count_tokens else 1 for prompt, answer in shapes]
        return Instance(
            name=f"{self.name}#{run}",
            model=design,
            prompt_tokens=round(float(workload.prompt_tokens.mean())),
            initial_delay_seconds=self.initial_seconds,
            allocation_seconds=self.allocation_seconds,
            arrivals_seconds=workload.arrivals_seconds,
            request_client=workload.client,
            requests_per_second=self.requests_per_second,
            concurrency=self.concurrency,
            requests_per_client=None,
            petals=self._petals(cluster, rng),
            kinds=tuple(RequestKind(model, count) for model, count in zip(models, units, strict=True)),
            request_kind=np.array([index[shape] for shape in lengths], dtype=np.int64),
            unit_bytes=unit,
        )

    def _workload(self, cluster: Cluster, rng: np.random.Generator) -> Workload:
        if self.trace is not None:
            return read_trace(self.trace, cluster.clients)
        return poisson(self.requests, self.requests_per_second, self.prompt, self.answer, cluster.clients, rng)

    def _model(self, cluster: Cluster, prompt_tokens: int, new_tokens: int) -> PerfModel:
        blocks = self.shape.num_blocks
        return PerfModel(
            num_blocks=blocks,
            block_bytes=self.shape.block_bytes,
            session_bytes=self.shape.kv_bytes_per_token * (prompt_tokens + new_tokens),
            new_tokens=new_tokens,
            memory_bytes=np.array([device.memory_bytes for device in cluster.devices]),
            block_limit=np.array([min(device.block_limit or blocks, blocks) for device in cluster.devices]),
            decode_seconds=np.array([device.decode_seconds for device in cluster.devices]),
            prefill_seconds=np.array([device.prefill(prompt_tokens) for device in cluster.devices]),
            rtt_seconds=cluster.rtt_seconds(),
            prefill_rtt_seconds=cluster.prefill_rtt_seconds(prompt_tokens),
        )

    def _design(self, cluster: Cluster, workload: Workload, models: list[PerfModel]) -> PerfModel:
        """The request that placement plans for: the mean one; with slots, each as large as the longest."""
        mean = self._model(
            cluster, round(float(workload.prompt_tokens.mean())), max(1, round(float(workload.new_tokens.mean())))
        )
        if self.count_tokens:
            return mean
        return replace(mean, session_bytes=max(model.session_bytes for model in models))

    def _petals(self, cluster: Cluster, rng: np.random.Generator) -> PetalsSpec:
        tokens = _PETALS_CACHE_TOKENS if self.shape.kv_group == 1 else 4 * _PETALS_CACHE_TOKENS
        return PetalsSpec(
            join_order=tuple(int(j) for j in rng.permutation(len(cluster.devices))),
            hidden_size=self.shape.hidden_size,
            cache_bytes_per_block=self.shape.kv_bytes_per_token * tokens,
            forward_rps=np.array([device.forward_rps for device in cluster.devices]),
            network_rps=np.array([device.network_rps for device in cluster.devices]),
            hop_overhead_seconds=0.018,
            full_penalty_seconds=10.0,
            raw_rtt_seconds=cluster.raw_rtt_seconds,
            allocation_seconds=self.petals_allocation_seconds,
        )


def _shapes(workload: Workload) -> list[tuple[int, int]]:
    """The kinds of requests in their order: (prompt tokens, new tokens)."""
    return sorted(set(zip(workload.prompt_tokens.tolist(), workload.new_tokens.tolist(), strict=True)))


# --- reading ----------------------------------------------------------------------------------------------------


def load_scenario(path: Path) -> Scenario:
    """Read and check a file that holds one scenario. Raises InstanceError naming the file and the field."""
    found = load_scenarios(path)
    if found[0].point is not None:
        raise InstanceError(f"{path.name}: sweep: must be absent: one scenario is wanted")
    return found[0]


def load_scenarios(path: Path) -> tuple[Scenario, ...]:
    """Read and check a scenario file: the scenario, or the points of its sweeps one after the other.

    Raises InstanceError naming the file and the field.
    """
    root = parsed_file(path, "TOML", tomllib.loads)
    sweeps = root.child("sweep")
    base = _scenario(Field(path.name, "", {key: value for key, value in root.value.items() if key != "sweep"}), path)
    if sweeps.value is None:
        return (base,)
    return tuple(
        replace(_scenario(changed, path), name=f"{base.name}, {varied.rpartition('.')[2]} = {value:g}", point=point)
        for sweep in sweeps.items(least=1, most=20)
        for varied, values in (_sweep(sweep),)
        for value in values
        for changed in (_with_number(root, sweep.child("vary"), value),)
        for point in (SweepPoint(base.name, varied, float(value)),)
    )


def _sweep(field: Field) -> tuple[str, list[float]]:
    """The path that one [[sweep]] varies, and the values as they are written."""
    field.keys({"vary", "values"})
    items = field.child("values").items(least=2, most=100)
    numbers = [item.number(-1e18, 1e18) for item in items]
    for item, before, after in zip(items[1:], numbers, numbers[1:], strict=False):
        if after <= before:
            raise item.error("must be more than the value before it")
    return field.child("vary").text(), [item.value for item in items]


def _with_number(root: Field, vary: Field, value: float) -> Field:
    """The file's content with the number at the path `vary` replaced, without its sweeps."""
    *tables, last = vary.text().split(".")
    changed = {key: part for key, part in root.value.items() if key != "sweep"}
    inner = changed
    for name in tables:
        inner[name] = dict(inner[name]) if isinstance(inner.get(name), dict) else None
        if inner[name] is None:
            raise vary.error(f"{name!r} is no table of this file")
        inner = inner[name]
    before = inner.get(last)
    if before is not None and (isinstance(before, bool) or not isinstance(before, int | float)):
        raise vary.error(f"{vary.text()} is no number in this file")
    inner[last] = value
    return Field(root.file, "", changed)


def _scenario(root: Field, path: Path) -> Scenario:
    """The scenario of a parsed file without sweeps."""
    root.keys({"cluster", "workload"}, {"name", "seed", "runs", "policies", "model", "delays", "memory", "R", "churn"})
    work, delays = root.child("workload"), root.child("delays")
    work.keys({"rate_per_second"}, {"requests", "prompt_tokens", "new_tokens", "trace"})
    if delays.value is not None:
        delays.keys((), {"initial_seconds", "allocation_seconds", "petals_allocation_seconds"})
    rate = work.child("rate_per_second").number(0, 1e6, above=True)
    shape = _get(root.child("model"), _shape, ModelShape())
    place = _placer(root.child("cluster"), path.parent)
    servers = _server_count(root.child("cluster"))
    churn = _get(root.child("churn"), lambda f: read_churn(f, servers, shape.num_blocks), None)
    return Scenario(
        name=_get(root.child("name"), lambda f: f.text(), path.stem),
        seed=_get(root.child("seed"), lambda f: f.integer(0, 2**32), 0),
        runs=_get(root.child("runs"), lambda f: f.integer(1, 10_000), 1),
        policies=_policies(root.child("policies"), CHURN_POLICIES if churn is not None else ONLINE_POLICIES),
        shape=shape,
        place=place,
        prompt=_get(work.child("prompt_tokens"), _lengths, Lengths(20)),
        answer=_get(work.child("new_tokens"), _lengths, Lengths(128)),
        requests=_get(work.child("requests"), lambda f: f.integer(1, MOST_REQUESTS), 100),
        requests_per_second=rate,
        trace=_get(work.child("trace"), lambda f: path.parent / f.text(), None),
        count_tokens=_get(root.child("memory"), _counts_tokens, False),
        concurrency=_get(root.child("R"), lambda f: f.integer(1, 10**9), None),
        initial_seconds=_get(delays.child("initial_seconds"), lambda f: f.number(0, 1e6), 0.07),
        allocation_seconds=_get(delays.child("allocation_seconds"), lambda f: f.number(0, 1e6), 60.0),
        petals_allocation_seconds=_get(delays.child("petals_allocation_seconds"), lambda f: f.number(0, 1e6), 250.0),
        churn_spec=churn,
    )


def _get(field: Field, read: Callable[[Field], Any], default: Any) -> Any:
    return default if field.value is None else read(field)


def _policies(field: Field, possible: tuple[str, ...]) -> tuple[str, ...]:
    if field.value is None:
        return tuple(name for name in _DEFAULT_POLICIES if name in possible)
    for item in field.items(least=1, most=len(ONLINE_POLICIES)):
        if item.text() not in ONLINE_POLICIES:
            raise item.error(f"{item.value!r} is not one of {', '.join(ONLINE_POLICIES)}")
        if item.text() not in possible:
            raise item.error(f"{item.value!r} cannot run with [churn]; possible: {', '.join(possible)}")
    return tuple(field.value)


def _server_count(cluster: Field) -> int:
    """How many servers a cluster that `_placer` has accepted begins with."""
    clustered_sizes = cluster.child("clustered").value
    if clustered_sizes is not None:
        return int(clustered_sizes["fast"]) + int(clustered_sizes["slow"])
    return int(cluster.child("servers").value)


def _shape(field: Field) -> ModelShape:
    field.keys({"num_blocks", "block_gb", "hidden_size"}, {"kv_group"})
    return ModelShape(
        field.child("num_blocks").integer(1, 10_000),
        field.child("block_gb").number(0, 1e6, above=True) * GIGABYTE,
        field.child("hidden_size").integer(1, 10_000_000),
        _get(field.child("kv_group"), lambda f: f.integer(1, 1024), 1),
    )


def _lengths(field: Field) -> Lengths:
    if not isinstance(field.value, dict):
        return Lengths(field.integer(1, MOST_TOKENS))
    field.keys({"mean"}, {"spread", "step", "most"})
    return Lengths(
        field.child("mean").number(1, MOST_TOKENS),
        _get(field.child("spread"), lambda f: f.number(0, 5), 0.0),
        _get(field.child("step"), lambda f: f.integer(1, MOST_TOKENS), 16),
        _get(field.child("most"), lambda f: f.integer(1, MOST_TOKENS), MOST_TOKENS),
    )


def _counts_tokens(field: Field) -> bool:
    if field.value not in ("slots", "tokens"):
        raise field.error('must be "slots" or "tokens"')
    return bool(field.value == "tokens")


def _placer(field: Field, folder: Path) -> Callable[[np.random.Generator], Cluster]:
    """Where the servers go: on a map, a recorded RTT matrix or a planet; or the published clusters."""
    if isinstance(field.value, dict) and "clustered" in field.value:
        field.keys({"clustered"})
        shape = field.child("clustered")
        shape.keys({"fast", "slow"})
        fast, slow = shape.child("fast").integer(0, 10_000), shape.child("slow").integer(0, 10_000)
        if fast + slow == 0:
            raise shape.error("needs at least one server")
        return lambda rng: clustered(fast, slow)
    field.keys({"servers"}, {"topology", "rtt_matrix", "planet", "fast_fraction", "clients"})
    servers = field.child("servers").integer(1, 10_000)
    clients = _get(field.child("clients"), lambda f: f.integer(1, 1000), 1)
    fraction = _get(field.child("fast_fraction"), lambda f: f.number(0, 1), 0.2)
    sources = [key for key in ("topology", "rtt_matrix", "planet") if field.child(key).value is not None]
    if len(sources) != 1:
        raise field.error("needs exactly one of topology, rtt_matrix, planet")
    source = field.child(sources[0])
    if sources[0] == "planet":
        return lambda rng: scattered(
            Planet().rtt_seconds(servers + clients, random.Random(int(rng.integers(2**32)))),
            servers,
            fraction,
            clients,
            rng,
        )
    try:
        if sources[0] == "rtt_matrix":
            rtt = read_rtt_matrix(folder / source.text())
        elif source.text() in TOPOLOGIES:
            rtt = bundled_topology(source.text()).rtt_seconds()
        else:
            rtt = read_topology(folder / source.text()).rtt_seconds()
    except GeographyError as error:
        raise source.error(str(error)) from error
    if servers + clients > len(rtt):
        raise field.child("servers").error(f"{servers} servers and {clients} clients exceed the {len(rtt)} nodes")
    return lambda rng: scattered(rtt, servers, fraction, clients, rng)
