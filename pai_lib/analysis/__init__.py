"""Analysis of records: verdicts and figures."""
