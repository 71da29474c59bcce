"""How the dashboard sees swarms: it looks again and again, and keeps what it saw last and why it sees no more."""
