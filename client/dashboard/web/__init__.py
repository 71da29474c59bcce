"""Serves the boards as pages, JSON and files: templates, routes, and limits on every answer."""
