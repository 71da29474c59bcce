"""Questions to simulated runs: comparisons, replays, plans, and placement agents under churn."""
