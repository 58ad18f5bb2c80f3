"""The report, its figures, the cards."""
