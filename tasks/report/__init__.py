"""The report: rendering only, from plain data to tables, figures, maps and one HTML page."""
