"""`tests/` mirrors the product: every module has its test at the same path, or a named test that drives it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.sources import ROOT, imports_of, package_files, relative_path

TESTED_BY = {
    "proto/weights/kernels/element.py": "tests/proto/weights/kernels/test_matrix.py",
    "proto/weights/kernels/host.py": "tests/proto/weights/kernels/test_matrix.py",
    "client/api/answering.py": "tests/client/api/test_app.py",
    "client/api/metrics.py": "tests/client/api/test_app.py",
    "client/api/pieces.py": "tests/client/api/run/test_texts.py",
    "client/api/responses.py": "tests/swarm/test_endpoint.py",
    "client/api/run/prompts.py": "tests/client/api/run/test_call.py",
    "client/api/served.py": "tests/client/api/run/test_call.py",
    "client/api/server.py": "tests/swarm/test_endpoint.py",
    "client/chain/machine/events.py": "tests/client/chain/machine/test_machine.py",
    "client/chain/machine/facts.py": "tests/client/chain/machine/test_machine.py",
    "client/chain/machine/repairing.py": "tests/client/chain/machine/test_machine.py",
    "client/chain/machine/reserve.py": "tests/client/chain/machine/test_machine.py",
    "client/chain/machine/roster.py": "tests/client/chain/machine/test_machine.py",
    "client/chain/machine/state.py": "tests/client/chain/machine/test_machine.py",
    "client/chain/machine/watching.py": "tests/client/chain/machine/test_machine.py",
    "client/config.py": "tests/swarm/test_session_machine.py",
    "client/dashboard/history/entries.py": "tests/client/dashboard/history/test_store.py",
    "client/dashboard/web/badge.py": "tests/client/dashboard/web/test_app.py",
    "client/dashboard/web/operation.py": "tests/client/dashboard/web/test_app.py",
    "client/dashboard/web/templating.py": "tests/client/dashboard/web/test_app.py",
    "client/dashboard/probe/program.py": "tests/client/dashboard/probe/test_child.py",
    "client/dashboard/watch/models.py": "tests/client/dashboard/watch/test_watcher.py",
    "client/dashboard/watch/sighting.py": "tests/client/dashboard/watch/test_keeper.py",
    "client/dashboard/web/api.py": "tests/client/dashboard/web/test_app.py",
    "client/dashboard/web/site.py": "tests/client/dashboard/web/test_app.py",
    "client/model/batch/packing.py": "tests/client/model/test_remote.py",
    "client/model/guess/drafter.py": "tests/client/model/guess/test_guesser.py",
    "client/peer_errors.py": "tests/client/chain/test_hop.py",
    "client/program/account.py": "tests/client/program/test_cli.py",
    "client/program/arguments.py": "tests/client/program/test_cli.py",
    "client/program/edge.py": "tests/client/program/test_cli.py",
    "client/program/options.py": "tests/client/program/test_cli.py",
    "client/program/serve.py": "tests/client/program/test_cli.py",
    "client/program/talk.py": "tests/client/program/test_cli.py",
    "client/program/terminal.py": "tests/client/program/test_cli.py",
    "client/web/sending.py": "tests/swarm/test_endpoint.py",
    "peer/engine/batch.py": "tests/peer/engine/test_engine.py",
    "peer/engine/blocks/padded.py": "tests/peer/engine/blocks/test_stage.py",
    "peer/engine/blocks/rows.py": "tests/peer/engine/blocks/test_attention.py",
    "peer/engine/blocks/view.py": "tests/peer/engine/blocks/test_stage.py",
    "peer/engine/cache/pool.py": "tests/peer/engine/cache/test_prefix_cache.py",
    "peer/engine/jobs.py": "tests/peer/engine/test_engine.py",
    "peer/engine/trial.py": "tests/peer/engine/test_device.py",
    "proto/weights/packed_gpu.py": "tests/peer/engine/test_device.py",
    "peer/key_lock.py": "tests/peer/test_cli.py",
    "peer/program/terminal.py": "tests/peer/test_cli.py",
    "peer/reach/tunnel.py": "tests/peer/reach/test_relay.py",
    "peer/setup.py": "tests/peer/test_serving.py",
    "peer/session/outlet.py": "tests/peer/session/test_service.py",
    "peer/session/parts.py": "tests/peer/session/test_service.py",
    "peer/session/reader.py": "tests/swarm/bad_input/test_frames.py",
    "peer/session/work/seams.py": "tests/swarm/test_session_machine.py",
    "proto/directory/hivemind/guard.py": "tests/proto/directory/hivemind/test_private.py",
    "proto/directory/hivemind/shim.py": "tests/proto/directory/hivemind/test_node.py",
    "proto/model/ends.py": "tests/proto/model/test_family.py",
    "proto/network/line.py": "tests/proto/network/test_transport.py",
    "proto/wire/messages/calls.py": "tests/proto/wire/messages/test_codec.py",
    "proto/wire/messages/opening.py": "tests/proto/wire/messages/test_codec.py",
    "proto/wire/messages/relay.py": "tests/proto/wire/messages/test_codec.py",
    "proto/wire/messages/session.py": "tests/proto/wire/messages/test_codec.py",
    "proto/wire/messages/steps.py": "tests/proto/wire/messages/test_codec.py",
    "proto/wire/messages/streams.py": "tests/proto/wire/messages/test_codec.py",
    "routing/admit/queue.py": "tests/routing/admit/test_table.py",
    "routing/place/moves.py": "tests/routing/place/test_agent.py",
    "routing/place/view.py": "tests/routing/place/test_rule.py",
    "routing/route/costs.py": "tests/routing/route/test_search.py",
    "routing/route/lattice.py": "tests/routing/route/test_search.py",
    "routing/route/passes.py": "tests/routing/route/test_search.py",
    "routing/sim/cli.py": "tests/routing/sim/worlds/test_scenario.py",
    "routing/sim/metrics.py": "tests/routing/sim/worlds/test_scenario.py",
    "routing/sim/runs/policies.py": "tests/routing/sim/worlds/test_scenario.py",
    "routing/sim/runs/churn.py": "tests/routing/sim/runs/test_under_churn.py",
    "routing/sim/runs/product.py": "tests/routing/sim/runs/test_under_churn.py",
    "routing/sim/runs/progress.py": "tests/routing/sim/runs/test_push.py",
    "routing/sim/runs/published.py": "tests/routing/sim/worlds/test_scenario.py",
    "routing/sim/studies/compare.py": "tests/routing/sim/worlds/test_scenario.py",
    "routing/sim/studies/plan.py": "tests/routing/sim/worlds/test_scenario.py",
    "routing/sim/worlds/churn_table.py": "tests/routing/sim/runs/test_under_churn.py",
    "routing/sim/worlds/cluster.py": "tests/routing/sim/worlds/test_scenario.py",
    "routing/sim/worlds/population.py": "tests/routing/sim/studies/test_agents.py",
    "routing/sim/worlds/workload.py": "tests/routing/sim/worlds/test_scenario.py",
}
"""Modules without a test of their own, and the tests that drive them: through the parts that use them."""

DECIDES_NOTHING = re.compile(r".*/(__init__|timing|step_record)\.py")


def test_every_module_has_its_test_at_the_same_path():
    """A reader finds a module's test by its path, or in the list above."""
    own, missing, superfluous = set(), [], []
    for path in map(relative_path, package_files()):
        folder, _, name = path.rpartition("/")
        if DECIDES_NOTHING.fullmatch(path):
            continue
        if (ROOT / "tests" / folder / f"test_{name}").exists():
            own.add(path)
        elif path not in TESTED_BY:
            missing.append(f"{path}: write tests/{folder}/test_{name}, or name the test that drives it in TESTED_BY")
    for path, test in TESTED_BY.items():
        if path in own or not (ROOT / path).exists():
            superfluous.append(f"TESTED_BY names {path}, which has a test of its own or is not there")
        elif not (ROOT / test).exists():
            missing.append(f"{path}: {test} is not there")
    assert not missing, "\n".join(missing)
    assert not superfluous, "\n".join(superfluous)


@pytest.mark.parametrize("path", sorted(set(TESTED_BY)))
def test_a_module_without_a_test_of_its_own_is_run_by_another(path: str):
    """The test that is named reaches the module by its imports, its helpers' included."""
    test = ROOT / TESTED_BY[path]
    assert path in reached_by(test), f"{TESTED_BY[path]} never imports {path}"


def reached_by(test: Path) -> set[str]:
    """The product's modules that a test imports, directly or through others."""
    found: set[str] = set()
    todo = [test]
    while todo:
        for imported in imports_of(todo.pop()):
            for module in (imported.module, *(f"{imported.module}.{name}" for name in imported.names)):
                parts = module.split(".")
                folder = {"blockswarm": ROOT, "support": ROOT / "tests" / "support"}.get(parts[0])
                path = folder.joinpath(*parts[1:]).with_suffix(".py") if folder and parts[1:] else None
                if path is not None and path.exists() and relative_path(path) not in found:
                    found.add(relative_path(path))
                    todo.append(path)
    return found
