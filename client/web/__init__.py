"""The HTTP server of this project's programs: its port, and limits so that no client can block it for ever."""
