"""The HTML page: its order, cautions, verdicts, answers and templates."""
