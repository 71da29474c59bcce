"""Watches the swarms: looks at them periodically, and keeps the last sighting, or why the last look failed."""
