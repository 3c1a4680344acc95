"""A small trading bot for Kraken, written to be read before it is trusted."""

__version__ = "0.3.8"
