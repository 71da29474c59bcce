"""The boards as pages, JSON and files: templates, routes, and the limits that every answer has."""
