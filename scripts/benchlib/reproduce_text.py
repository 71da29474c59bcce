"""The words around the figures of docs/simulator.md."""

from __future__ import annotations

BEGINNING = """# The simulator: the published experiments again

This page is written by `scripts/reproduce_paper`; do not edit it. Everything follows from fixed seeds and from the
files in the clone.

**What is simulated.** BLOOM-176B in four bits (70 blocks of 1.32 GB), servers that are A100-80 (fast) or MIG
1g.10gb slices (slow, at most 4 blocks), {runs} Monte Carlo runs of 100 requests each (sweeps over the rate: 200 s
of arrivals), 20 prompt tokens (clustered: 10), 128 generated tokens unless varied, 0.5 requests/s, one client, a
fifth of the servers fast. *Clustered* is the testbed's shape (5 ms within a cluster, 100 ms between); otherwise
servers stand at random nodes of three published maps, round trips are twice the shortest path, plus 100 ms of
overhead per decoded token. Default numbers of servers in the sweeps: 9, 19 and 60.

| policy | placement | routing | memory and waiting |
| --- | --- | --- | --- |
| petals | PETALS, servers join in random order | PETALS | retry grid |
| petals_optimized_order | PETALS, servers join in CG-BP's order | PETALS | retry grid |
| petals_optimized_number | PETALS with CG-BP's sizes | PETALS | retry grid |
| petals_optimized_rr | PETALS | exact myopic optimum | retry grid |
| proposed | CG-BP, R by the published rule | WS-RR | retry grid |
| ours | CG-BP, our R | exact router, peers entered and left anywhere | the product's queue per peer |
| ours_push | the same as ours | the same router with the costs of pushing | the product's queue per peer |
| ours_chains | CG-BP, our R | GCA's chains, join the fastest free | one FIFO queue |

**Fixed delays.** The published simulator charges every PETALS request a constant 250 s (350 s on 26 servers) and
every other one 60 s before its first token, whatever the load. Spread over 128 tokens that is 1.95 s against 0.47 s
per token: most of the published absolute numbers and much of the difference. So everything is shown twice, and the
second time both constants are zero.

"–" is infeasible: in at least one of the runs the servers' memory does not hold the model under that policy.
"""

PUSH = """\
**Pushing.** Everywhere above but in `ours_push` the client is the hub, as published: every hop is a round trip from the
client. Our peers push to the next one: client, first peer, second peer, ..., client, once per token. A message is
charged half a raw round trip and half of the serialisation of a round trip, so that one peer alone takes the same
either way. The placement and R are those of `ours`, chosen for the dearer costs. Saved against `ours`:
"""

DESIGN = """\
The published rule takes the mean of a Poisson number in system plus its deviation, with the time of a lone request and
without the allocation delay. Ours takes the R whose chains (GCA on CG-BP's placement for that R) have the least mean
response by Theorem 4's lower bound, at 1.25 times the expected rate, all held time included; of equal ones the largest.
What cannot carry that rate is never chosen, where anything can. Every R that gives another placement counts, because
the best one lies right before a chain needs one more peer: a grid of sixty values that stepped over it chose 194
instead of 59 on BellCanada (19 servers, 256 tokens). The margin is an insurance: where it makes the chains one peer
longer, 100 requests that would just have fitted without it take longer with it.
"""

COORDINATES = """\
Vivaldi's model with height in three dimensions, and our way to fit it (`routing/coordinates.py`): a node that joins
pings 8 others, and from then on one every 10 s. Relative error of the prediction over all pairs, median / p90, after
10 minutes where nothing else is said. *Noise*: every round trip is measured 10 % too long on average, exponential, and
0.3 ms; on the maps, where many pairs are a fraction of a millisecond apart, that is most of the error. *10 % lie*: with
noise, a tenth of the nodes announce one far place, with an error of 0, and answer up to 0.5 s late; the others' pairs
count. *Changes*: with noise, announcements of another place, per node and hour, in the five minutes after the tenth.
"""

REST = """\
A swarm of volunteers: a fifth of the peers fast with 16 or 24 GB, the others slow with 6 to 12 GB, around three
places; the model has blocks of 1.3 GB. One peer joins or leaves at a time; `decide` is carried out until it rests;
then the swarm is compared with CG-BP from scratch for the same R.

* *Theorem 2's bound*: token time of the farthest client on its cheapest chain, over the bound for the placement
  from scratch.
* *Predicted mean*: mean request time of the clients among as many others as R is planned for, as the rule sees it.
* *Simulated mean*: mean time of 60 simulated requests with the exact router and FIFO queues, half of R in parallel
  on average. What counts here is room: a fast peer that hosts too many blocks is full after one or two sessions.

Negative is better than from scratch: the rule also uses peers that CG-BP drops, and half of what it
minimises is the clients' mean, not the farthest one's. Improvements have to save more over four hours than loading
takes at 25 MB/s.
"""

PROTOCOL = """\
### The protocol, through old and lossy records

Agents claim, wait, judge and move on their own snapshots: records arrive up to 40 s late (so that a snapshot is up
to 60 s old), some never; clocks are off by up to 2 s; peers join, drain and crash. "Last servers taken" counts
moves after which a block had no server though none of its servers had crashed within two minutes; moves that met a
crash are counted apart, no rule over records can rule those out. A block whose last server crashed is uncovered
until a repair has been claimed, judged and loaded (53 s per block), or if nobody can be spared until a peer joins.
"""

NOT_REPRODUCED = """## What was reproduced, what was not, and why

* **Reproduced:** the simulator's semantics, placements and routes of the published policy, of PETALS and of the
  ablations, on instances made from the published parameters. The random draws (which nodes, which joining order,
  which arrivals) are ours, so single numbers differ from the published ones; the reference instances, replayed with
  `swarm-sim replay`, are compared number by number in the tests instead.
* **The 60–80 % of the publication:** with its constants the published policy saves that much almost everywhere,
  here too. With zero fixed delays it depends on the set-up: as much or more where memory is scarce (nine servers,
  few fast ones) and under load, next to nothing where PETALS has plenty of servers.
* **One curve is not the one published:** in the published sweep over the fraction of fast servers "Optimized
  Number" was run with PETALS' own sizes by a mistake in its script; here it is what its name says.
* **Decision times** depend on the machine: `scripts/bench_routing --json` measures them.
* **Not reproduced: the testbed experiments** (real servers and links). The simulator has the performance model
  only.
* **Not reproduced: the follow-up's tables** (chain composition on an Azure trace and on RIPE Atlas round trips).
  Neither data set can be redistributed here. Its algorithms are implemented and tested on its worked example, and
  run here on CG-BP placements as `ours_chains`; recorded traces can be simulated with `trace` in a scenario file,
  recorded round trips with `rtt_matrix`.
* **Fixed delays of PETALS** come from the publication, not from a measurement of ours.
"""
