"""The parts of the benchmarks. `scripts/bench_*` run these modules in the environment of `bootstrap.py`."""
