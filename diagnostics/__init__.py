"""Questions asked of a posterior: each a number, a verdict, advice and a figure."""
