"""What is asked of simulated runs: comparisons, replays, plans, and placement agents under churn."""
