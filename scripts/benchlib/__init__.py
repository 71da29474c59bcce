"""What the benchmarks are made of. `scripts/bench_*` run these modules in the environment of `bootstrap.py`."""
