"""Reports: results as text, JSON and HTML, and the command line."""

from frechet.report._schema import Report, from_estimate
from frechet.report._serialize import dumps, from_json, to_json

__all__ = ["Report", "dumps", "from_estimate", "from_json", "to_json"]
