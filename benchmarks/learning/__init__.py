"""Do algorithms learn, and how fast: experiments, their runner and the report of their results."""
