"""How a program of this project serves HTTP: its port, and that no client can keep it waiting for ever."""
