"""How one simulated run goes: its policy, its queues, its failures."""
