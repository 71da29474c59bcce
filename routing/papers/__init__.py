"""What the product is compared with: published algorithms and exact programs, run by the simulator only."""
