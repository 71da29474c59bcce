"""Published algorithms and exact programs that the product is compared with; only the simulator runs them."""
