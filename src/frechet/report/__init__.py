"""Reports: results as text, JSON and HTML, and the command line."""

from frechet.report._schema import Cost, Measured, Report, from_estimate
from frechet.report._serialize import dumps, from_json, to_json
from frechet.report._source import load

__all__ = ["Cost", "Measured", "Report", "dumps", "from_estimate", "from_json", "load", "to_json"]
