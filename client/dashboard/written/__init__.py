"""How values are written: in words, as JSON, as a spreadsheet, as curves. Pure, as the boards are."""
