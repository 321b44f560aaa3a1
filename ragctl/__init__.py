"""ragctl: turn a corpus into a searchable index, ask it questions, measure the answers, clean up."""

__version__ = "0.1.0"
