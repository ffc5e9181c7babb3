"""Files: written whole or not at all, models, and tables of numbers."""
